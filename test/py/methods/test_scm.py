"""sCM loss: closed form against the paper's long form, warm-up variants, derivatives, gradients, non-finite rules."""

import math

import pytest
import torch

from rcm_sidecar.diffusion.guidance import MissingNegativeError
from rcm_sidecar.dual import Dual
from rcm_sidecar.methods.loss import Loss
from rcm_sidecar.methods.scm import normalise, scm_loss

RATIOS = (0.0, 0.25, 0.5, 0.75, 1.0)


def long_form(student, teacher, b, ratio, warmup):
    """g as the paper writes it: F from a division by sin u, its tangent by torch.func.jvp in TrigFlow coordinates."""
    cos, sin = b.cos, b.sin
    x_u = cos * b.x0 + sin * b.noise

    def f_of(network, x, u):
        c, s = (fn(u).reshape(-1, 1, 1, 1, 1) for fn in (torch.cos, torch.sin))
        t = s / (c + s)
        v = network(x / (c + s), (b.time_scale * t).flatten())
        x0 = x / (c + s) - s / (c + s) * v
        return (c * x - x0) / s

    def guided(x, t):
        positive, negative = teacher.plain(x, t, b.text), teacher.plain(x, t, b.negative)
        return negative + b.guidance * (positive - negative)

    with torch.no_grad():
        f_teacher = f_of(guided, x_u, b.u)
        tangents = (cos * sin * f_teacher, (cos * sin).flatten())
        f_student, tangent_f = torch.func.jvp(
            lambda x, u: f_of(lambda a, t: student.plain(a, t, b.text), x, u), (x_u, b.u), tangents
        )
        q = cos if warmup == "fastgen" else torch.sqrt(1 - ratio**2 * sin**2)
        tangent_ratio = 1.0 if warmup == "publicSnapshot" else ratio
        return -cos * q * (f_student - f_teacher) - ratio * cos * sin * x_u - tangent_ratio * tangent_f


def gradients(loss: Loss, parameters):
    return torch.autograd.grad(loss.total, parameters)


@pytest.mark.parametrize("warmup", ["scaled", "publicSnapshot", "fastgen"])
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("offset", [0.1, None])
def test_matches_the_long_form(toy, batch, warmup, ratio, offset):
    student, teacher, b = toy(1), toy(2), batch()
    loss = scm_loss(
        student, teacher, b.x0, b.noise, b.u, **b.condition, warmup_ratio=ratio, warmup=warmup, norm_offset=offset
    )
    g = long_form(student, teacher, b, ratio, warmup)
    norm = g.flatten(1).norm(dim=1)
    scaled = g if offset is None else g / (norm + offset).reshape(-1, 1, 1, 1, 1)
    x_t = (b.cos * b.x0 + b.sin * b.noise) / (b.cos + b.sin)
    t = b.time_scale * (b.sin / (b.cos + b.sin)).flatten()
    f = student.plain(x_t, t, b.text) / (b.cos + b.sin)  # F up to a constant
    reference = (f - f.detach() - scaled).square().flatten(1).sum(1)

    torch.testing.assert_close(loss.per_sample, reference, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(loss.total, reference.mean(), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(loss.scalars["g_norm"], norm.mean(), rtol=1e-11, atol=1e-12)
    expected_grad_norm = 2 * scaled.flatten(1).norm(dim=1).mean()
    torch.testing.assert_close(loss.scalars["grad_norm"], expected_grad_norm, rtol=1e-11, atol=1e-12)
    ours = gradients(loss, student.parameters())
    theirs = torch.autograd.grad(reference.mean(), student.parameters())
    for ours_one, theirs_one in zip(ours, theirs, strict=True):
        torch.testing.assert_close(ours_one, theirs_one, rtol=1e-11, atol=1e-12)


class PointStudent:
    """Exact velocity for data of one point a: v = (x_t - a) / t, with its tangent."""

    def __init__(self, point, time_scale):
        self.point, self.time_scale = point, time_scale

    def plain(self, x, t):
        return (x - self.point) / (t / self.time_scale).reshape(-1, 1, 1, 1, 1)

    def __call__(self, x, t, text):
        if not isinstance(x, Dual):
            return self.plain(x, t)
        return Dual(*torch.func.jvp(self.plain, (x.primal, t.primal), (x.tangent, t.tangent)))


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("warmup", ["scaled", "fastgen"])
def test_exact_student_of_a_point_has_no_tangent(batch, ratio, warmup):
    b = batch()
    b.x0 = b.x0[:1].expand_as(b.x0).clone()
    exact = PointStudent(b.x0[0], b.time_scale)
    options = {**b.condition, "guidance": 1.0, "negative": None}
    loss = scm_loss(exact, exact, b.x0, b.noise, b.u, **options, warmup_ratio=ratio, warmup=warmup)
    assert loss.scalars["g_norm"] < 1e-12
    assert loss.total < 1e-22


def test_public_snapshot_moves_an_exact_student_during_warmup(batch):
    b = batch()
    b.x0 = b.x0[:1].expand_as(b.x0).clone()
    exact = PointStudent(b.x0[0], b.time_scale)
    options = {**b.condition, "guidance": 1.0, "negative": None, "warmup": "publicSnapshot", "norm_offset": None}
    x_u = b.cos * b.x0 + b.sin * b.noise
    for ratio in RATIOS:
        loss = scm_loss(exact, exact, b.x0, b.noise, b.u, **options, warmup_ratio=ratio)
        wrong = ((1 - ratio) * b.cos * b.sin * x_u).flatten(1).norm(dim=1).mean()
        torch.testing.assert_close(loss.scalars["g_norm"], wrong, rtol=1e-10, atol=1e-12)
    assert loss.scalars["g_norm"] < 1e-12  # and only at the end of the warm-up is it right


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("derivative", ["exact", "semiContinuous", "finiteDifference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ends_of_the_interval_are_safe(toy, batch, ratio, derivative, dtype):
    student, teacher, b = toy(1, dtype), toy(2, dtype), batch(3, dtype)
    b.u = torch.tensor([0.0, math.pi / 2, 5e-5], dtype=dtype)
    loss = scm_loss(student, teacher, b.x0, b.noise, b.u, **b.condition, warmup_ratio=ratio, derivative=derivative)
    assert torch.isfinite(loss.per_sample).all()
    for gradient in gradients(loss, student.parameters()):
        assert torch.isfinite(gradient).all()
    for call in student.calls + teacher.calls:
        assert (call.t >= 0).all() and (call.t <= b.time_scale).all()


def test_gradient_reaches_only_the_student(toy, batch):
    student, teacher, b = toy(1), toy(2), batch()
    b.x0.requires_grad_()
    scm_loss(student, teacher, b.x0, b.noise, b.u, **b.condition).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert b.x0.grad is None
    assert all(not call.grad for call in teacher.calls)


def test_one_dual_call_of_the_student_and_two_of_the_teacher(toy, batch):
    student, teacher, b = toy(1), toy(2), batch()
    scm_loss(student, teacher, b.x0, b.noise, b.u, **b.condition)
    assert [call.dual for call in student.calls] == [True]
    t = b.sin / (b.cos + b.sin)
    torch.testing.assert_close(student.calls[0].t, b.time_scale * t.flatten())
    torch.testing.assert_close(student.calls[0].t_tangent, b.time_scale * (t * (1 - t)).flatten())
    assert [call.text is text for call, text in zip(teacher.calls, (b.text, b.negative), strict=True)] == [True] * 2


def test_guidance_one_never_calls_the_negative(toy, batch):
    student, teacher, b = toy(1), toy(2), batch()
    b.guidance = 1.0
    scm_loss(student, teacher, b.x0, b.noise, b.u, **b.condition)
    assert len(teacher.calls) == 1 and teacher.calls[0].text is b.text


def test_missing_negative_is_an_error(toy, batch):
    b = batch()
    with pytest.raises(MissingNegativeError) as error:
        scm_loss(toy(1), toy(2), b.x0, b.noise, b.u, **{**b.condition, "negative": None})
    assert error.value.code == "E_CONFIG_VALUE" and error.value.hint


def test_batched_branches_give_the_same_loss(toy, batch):
    student, teacher, b = toy(1), toy(2), batch()
    one = scm_loss(student, teacher, b.x0, b.noise, b.u, **b.condition)
    teacher.calls.clear()
    two = scm_loss(student, teacher, b.x0, b.noise, b.u, **b.condition, branches="batched")
    assert len(teacher.calls) == 1
    torch.testing.assert_close(one.per_sample, two.per_sample, rtol=1e-13, atol=0)


@pytest.mark.parametrize("derivative", ["semiContinuous", "finiteDifference"])
def test_difference_forms_are_within_five_percent_in_float32(toy, batch, derivative):
    def jvp_and_gradient(form, dtype):
        student, teacher, b = toy(1, dtype), toy(2, dtype), batch(8, dtype)
        loss = scm_loss(student, teacher, b.x0, b.noise, b.u, **b.condition, derivative=form, norm_offset=None)
        return torch.cat([g.flatten() for g in gradients(loss, student.parameters())]).double()

    exact = jvp_and_gradient("exact", torch.float64)
    near = jvp_and_gradient(derivative, torch.float32)
    assert (near - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize("derivative", ["semiContinuous", "finiteDifference"])
def test_difference_forms_converge_to_the_exact_one(toy, batch, derivative):
    student, teacher, b = toy(1), toy(2), batch()
    b.u[0] = 1e-3  # below the step: the difference looks forward

    def g_norms(form, step):
        options = {**b.condition, "derivative": form, "difference_step": step, "norm_offset": None}
        return scm_loss(student, teacher, b.x0, b.noise, b.u, **options).per_sample

    exact = g_norms("exact", 1e-4)
    errors = [(g_norms(derivative, step) - exact).abs().max().item() for step in (1e-2, 1e-3, 1e-4)]
    assert errors[1] < errors[0] / 5 and errors[2] < errors[1] / 5 and errors[2] < 1e-3


def test_difference_forms_call_the_network_as_promised(toy, batch):
    teacher, b = toy(2), batch()
    calls = {}
    for derivative in ("semiContinuous", "finiteDifference"):
        student = toy(1)
        scm_loss(student, teacher, b.x0, b.noise, b.u, **b.condition, derivative=derivative)
        calls[derivative] = [(call.dual, call.grad) for call in student.calls]
        if derivative == "semiContinuous":
            assert (student.calls[0].t_tangent == 0).all()
        assert (student.calls[1].t < student.calls[0].t).all()
    assert calls == {
        "semiContinuous": [(True, True), (False, False)],
        "finiteDifference": [(False, True), (False, False)],
    }


@pytest.mark.parametrize("derivative", ["semiContinuous", "finiteDifference"])
def test_difference_looks_forward_where_the_step_would_leave_the_interval(toy, batch, derivative):
    student, b = toy(1), batch(2)
    b.u = torch.tensor([1e-3, 1.0], dtype=torch.float64)
    scm_loss(student, toy(2), b.x0, b.noise, b.u, **b.condition, derivative=derivative, difference_step=1e-2)
    assert (student.calls[1].t > student.calls[0].t).tolist() == [True, False]


class Corrupting:
    """Wraps a network; puts a value into one sample's velocity or tangent."""

    def __init__(self, network, sample, value, where):
        self.network, self.sample, self.value, self.where = network, sample, value, where

    def parameters(self):
        return self.network.parameters()

    def __call__(self, x, t, text):
        out = self.network(x, t, text)
        if not isinstance(out, Dual):
            return out
        primal, tangent = (part.clone() for part in out)
        target = tangent if self.where == "tangent" else primal
        target[self.sample, 0, 0, 0, 0] = self.value
        return Dual(primal, tangent)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_tangent_overflow_drops_the_sample_and_its_gradient(toy, batch, value):
    student, teacher, b = toy(1), toy(2), batch()
    loss = scm_loss(Corrupting(student, 2, value, "tangent"), teacher, b.x0, b.noise, b.u, **b.condition)
    clean = scm_loss(student, teacher, b.x0, b.noise, b.u, **b.condition)
    keep = torch.tensor([0, 1, 3, 4, 5])
    assert loss.per_sample[2] == 0
    torch.testing.assert_close(loss.per_sample[keep], clean.per_sample[keep], rtol=0, atol=0)
    expected = torch.autograd.grad(clean.per_sample[keep].sum() / 6, student.parameters())
    for ours, theirs in zip(gradients(loss, student.parameters()), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert loss.scalars["non_finite_tangent"] == 1 and loss.scalars["non_finite_tangent_sample"] == 2
    assert loss.scalars["non_finite_velocity"] == 0 and loss.scalars["non_finite_velocity_sample"] == -1
    assert all(torch.isfinite(scalar) for scalar in loss.scalars.values())


def test_teacher_overflow_counts_as_a_tangent_overflow(toy, batch):
    student, teacher, b = toy(1), toy(2), batch()
    b.guidance = 1.0

    def broken(x, t, text):
        out = teacher(x, t, text).clone()
        out[4] = math.inf
        return out

    loss = scm_loss(student, broken, b.x0, b.noise, b.u, **b.condition)
    assert loss.per_sample[4] == 0 and torch.isfinite(loss.total)
    assert loss.scalars["non_finite_teacher"] == 1 and loss.scalars["non_finite_tangent_sample"] == 4
    assert all(torch.isfinite(g).all() for g in gradients(loss, student.parameters()))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_velocity_overflow_makes_the_loss_non_finite(toy, batch, value):
    student, teacher, b = toy(1), toy(2), batch()
    loss = scm_loss(Corrupting(student, 3, value, "primal"), teacher, b.x0, b.noise, b.u, **b.condition)
    assert not torch.isfinite(loss.total)
    assert torch.isfinite(loss.per_sample).tolist() == [True, True, True, False, True, True]
    assert loss.scalars["non_finite_velocity"] == 1 and loss.scalars["non_finite_velocity_sample"] == 3
    assert torch.isfinite(loss.scalars["g_norm"])


def test_teacher_gap_by_time_bucket(toy, batch):
    student, teacher, b = toy(1), toy(2), batch(4)
    b.u = torch.tensor([0.1, 0.2, 1.0, math.pi / 2], dtype=torch.float64)
    loss = scm_loss(student, teacher, b.x0, b.noise, b.u, **b.condition)
    counts = [loss.scalars[f"teacher_gap_count_{i}"].item() for i in range(4)]
    means = [loss.scalars[f"teacher_gap_bucket_{i}"].item() for i in range(4)]
    assert counts == [2, 0, 1, 1] and means[1] == 0
    whole = sum(mean * n for mean, n in zip(means, counts, strict=True)) / 4
    assert whole == pytest.approx(loss.scalars["teacher_gap"].item(), rel=1e-12)
    x_t = (b.cos * b.x0 + b.sin * b.noise) / (b.cos + b.sin)
    t = b.time_scale * (b.sin / (b.cos + b.sin)).flatten()
    positive, negative = teacher.plain(x_t, t, b.text), teacher.plain(x_t, t, b.negative)
    gap = student.plain(x_t, t, b.text) - (negative + b.guidance * (positive - negative))
    assert means[2] == pytest.approx(gap[2].norm().item(), rel=1e-12)


def test_scalars_are_detached_float64_and_stackable(toy, batch):
    b = batch(dtype=torch.float32)
    loss = scm_loss(toy(1, torch.float32), toy(2, torch.float32), b.x0, b.noise, b.u, **b.condition)
    stacked = torch.stack(list(loss.scalars.values()))
    assert stacked.dtype == torch.float64 and not stacked.requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_computes_in_at_least_float32(toy, batch, dtype):
    compute = torch.promote_types(dtype, torch.float32)
    student, teacher, b = toy(1, compute), toy(2, compute), batch(dtype=dtype)
    b.text, b.negative = b.text.to(compute), b.negative.to(compute)
    loss = scm_loss(student, teacher, b.x0, b.noise, b.u, **b.condition)
    assert loss.total.dtype == loss.per_sample.dtype == compute
    assert {c.x.dtype for c in student.calls + teacher.calls} == {compute}
    assert {c.t.dtype for c in student.calls + teacher.calls} == {compute}
    assert student.calls[0].t_tangent.dtype == compute


def test_weight_is_not_applied_and_weighted_applies_it(toy, batch):
    b = batch()
    loss = scm_loss(toy(1), toy(2), b.x0, b.noise, b.u, **b.condition)
    assert 0.5 < loss.total < 1  # the squared norm of a normalised tangent, not 100 times it
    heavy = loss.weighted(100.0)
    torch.testing.assert_close(heavy.total, 100 * loss.total)
    assert heavy.scalars["grad_norm"] == 100 * loss.scalars["grad_norm"]
    assert heavy.scalars["g_norm"] == loss.scalars["g_norm"]


def test_normalise_bounds_the_norm():
    g = (
        torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1e-8, 1, 1e8, 1e30])[:, None, None]
    )
    norm = g.double().flatten(1).norm(dim=1)
    torch.testing.assert_close(
        normalise(g, 0.1).double().flatten(1).norm(dim=1), norm / (norm + 0.1), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("options", [{"warmup": "none"}, {"derivative": "forward"}, {"difference_step": 0.0}])
def test_unknown_options_are_refused(toy, batch, options):
    b = batch()
    options = {"derivative": "finiteDifference", **options}
    with pytest.raises(ValueError, match=r"warmup|derivative|difference_step"):
        scm_loss(toy(1), toy(2), b.x0, b.noise, b.u, **b.condition, **options)
    with pytest.raises(ValueError, match="times must have shape"):
        scm_loss(toy(1), toy(2), b.x0, b.noise, b.u[:, None], **b.condition)
