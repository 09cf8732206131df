"""Rollout, DMD and critic losses against the public x0 forms; where gradients go; both ends of the interval."""

import math

import pytest
import torch

from rcm_sidecar.diffusion.guidance import MissingNegativeError
from rcm_sidecar.methods.dmd import critic_loss, dmd_loss, rollout
from rcm_sidecar.methods.rcm import rollout_times


def wide(x):
    return x.reshape(-1, 1, 1, 1, 1)


def x0_of(network, x_u, u, text, time_scale):
    """The public denoiser: x0 = (x_u - sin u v) / (cos u + sin u)."""
    c, s = wide(u.cos()), wide(u.sin())
    v = network.plain(x_u / (c + s), time_scale * (s / (c + s)).flatten(), text)
    return (x_u - s * v) / (c + s)


def public_dmd(generated, b, critic, teacher):
    x_u = b.cos * generated.detach() + b.sin * b.noise
    with torch.no_grad():
        fake = x0_of(critic, x_u, b.u, b.text, b.time_scale)
        positive = x0_of(teacher, x_u, b.u, b.text, b.time_scale)
        negative = x0_of(teacher, x_u, b.u, b.negative, b.time_scale)
        real = negative + b.guidance * (positive - negative)
        weight = (generated - real).abs().mean(dim=(1, 2, 3, 4), keepdim=True).clip(min=1e-5)
        gradient = (fake - real) / weight
    return (generated - (generated - gradient).detach()).square().flatten(1).sum(1), gradient


def test_dmd_equals_the_public_x0_form(toy, batch):
    critic, teacher, b = toy(3), toy(2), batch()
    generated = b.x0.clone().requires_grad_()
    loss = dmd_loss(generated, b.noise, b.u, critic=critic, teacher=teacher, **b.condition)
    reference, gradient = public_dmd(generated, b, critic, teacher)
    torch.testing.assert_close(loss.per_sample, reference, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(loss.total, reference.mean(), rtol=1e-11, atol=1e-12)
    (ours,) = torch.autograd.grad(loss.total, generated)
    torch.testing.assert_close(ours, 2 * gradient / len(b.u), rtol=1e-10, atol=1e-12)
    expected = 2 * gradient.flatten(1).norm(dim=1).mean()
    torch.testing.assert_close(loss.scalars["grad_norm"], expected, rtol=1e-11, atol=0)


def test_dmd_floor_binds_for_a_teacher_that_is_exactly_right(toy, batch):
    critic, b = toy(3), batch()
    b.guidance = 1.0

    def exact(x, t, text):
        return b.noise - b.x0

    loss = dmd_loss(b.x0, b.noise, b.u, critic=critic, teacher=exact, **b.condition)
    assert loss.scalars["normaliser"] == pytest.approx(1e-5)
    assert torch.isfinite(loss.total)


def test_dmd_keeps_the_gradient_in_float32(toy, batch):
    """G - (G - grad) in float32 would lose a small grad beside a large G; the difference is taken in float64."""
    critic, teacher, b = toy(3, torch.float32), toy(2, torch.float32), batch(dtype=torch.float32)
    far = (b.x0 + 3e4).requires_grad_()
    loss = dmd_loss(far, b.noise, b.u, critic=critic, teacher=teacher, **b.condition)
    assert loss.total.dtype == torch.float32
    (ours,) = torch.autograd.grad(loss.total, far)
    norm = ours.double().flatten(1).norm(dim=1).mean() * len(b.u)
    torch.testing.assert_close(norm, loss.scalars["grad_norm"], rtol=1e-6, atol=0)


def test_dmd_gradient_reaches_the_student_only(toy, batch):
    student, critic, teacher, b = toy(1), toy(3), toy(2), batch()
    times = rollout_times(2, 6, [1.2])
    generated = rollout(student, b.noise, times, b.x0[None], text=b.text, time_scale=b.time_scale)
    dmd_loss(generated, b.x0, b.u, critic=critic, teacher=teacher, **b.condition).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    assert all(p.grad is None for p in critic.parameters() + teacher.parameters())
    assert not any(call.grad for call in critic.calls + teacher.calls)


@pytest.mark.parametrize("u", [0.0, math.pi / 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_of_the_interval_are_safe(toy, batch, u, dtype):
    critic, teacher, b = toy(3, dtype), toy(2, dtype), batch(dtype=dtype)
    b.u = torch.full_like(b.u, u)
    generated = b.x0.clone().requires_grad_()
    loss = dmd_loss(generated, b.noise, b.u, critic=critic, teacher=teacher, **b.condition)
    (gradient,) = torch.autograd.grad(loss.total, generated)
    assert torch.isfinite(gradient).all()
    critical = critic_loss(b.x0, b.noise, b.u, critic=critic, text=b.text, time_scale=b.time_scale)
    assert torch.isfinite(critical.total)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(critical.total, critic.parameters()))


def test_dmd_non_finite_velocity_makes_the_loss_non_finite(toy, batch):
    teacher, b = toy(2), batch()

    def critic(x, t, text):
        out = teacher(x, t, text).clone()
        out[1, 0, 0, 0, 0] = math.inf
        return out

    loss = dmd_loss(b.x0, b.noise, b.u, critic=critic, teacher=teacher, **b.condition)
    assert torch.isfinite(loss.per_sample).tolist() == [True, False, True, True, True, True]
    assert not torch.isfinite(loss.total)
    assert loss.scalars["non_finite"] == 1 and loss.scalars["non_finite_sample"] == 1
    assert torch.isfinite(loss.scalars["grad_norm"])


def test_dmd_guidance_one_never_calls_the_negative_and_needs_none(toy, batch):
    critic, teacher, b = toy(3), toy(2), batch()
    options = {**b.condition, "guidance": 1.0, "negative": None}
    dmd_loss(b.x0, b.noise, b.u, critic=critic, teacher=teacher, **options)
    assert len(teacher.calls) == len(critic.calls) == 1
    with pytest.raises(MissingNegativeError):
        dmd_loss(b.x0, b.noise, b.u, critic=critic, teacher=teacher, **{**options, "guidance": 2.0})


def test_critic_equals_the_public_form(toy, batch):
    critic, b = toy(3), batch()
    generated = b.x0.clone().requires_grad_()
    loss = critic_loss(generated, b.noise, b.u, critic=critic, text=b.text, time_scale=b.time_scale)
    x0 = x0_of(critic, b.cos * b.x0 + b.sin * b.noise, b.u, b.text, b.time_scale)
    reference = ((b.x0 - x0).square() / b.sin**2).flatten(1).sum(1)
    torch.testing.assert_close(loss.per_sample, reference, rtol=1e-10, atol=1e-12)
    theirs = torch.autograd.grad(reference.mean(), critic.parameters())
    loss.total.backward()
    for parameter, gradient in zip(critic.parameters(), theirs, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-12)
    assert generated.grad is None


def test_rollout_follows_the_trigflow_recursion(toy, batch):
    student, b = toy(1), batch()
    fresh = torch.stack([b.x0, b.noise.flip(0)])
    draws = torch.rand(2, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 1.5
    times = rollout_times(3, 6, draws)
    got = rollout(student, b.noise, times, fresh, text=b.text, time_scale=b.time_scale)

    x_u = b.noise
    for index, u in enumerate(times):
        x0 = x0_of(student, x_u, u, b.text, b.time_scale)
        if index < 2:
            x_u = wide(times[index + 1].cos()) * x0 + wide(times[index + 1].sin()) * fresh[index]
    torch.testing.assert_close(got, x0, rtol=1e-12, atol=1e-12)
    assert [call.grad for call in student.calls] == [False, False, True]
    assert student.calls[0].t.tolist() == [b.time_scale] * 6


def test_rollout_gradient_is_that_of_the_last_call(toy, batch):
    student, b = toy(1), batch()
    times = rollout_times(2, 6, [0.9])
    got = rollout(student, b.noise, times, b.x0[None], text=b.text, time_scale=b.time_scale)
    last = student.calls[-1]
    t = wide(last.t / b.time_scale)
    alone = last.x - t * student.plain(last.x.detach(), last.t, b.text)
    ours = torch.autograd.grad(got.square().sum(), student.parameters())
    theirs = torch.autograd.grad(alone.square().sum(), student.parameters())
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-13)


def test_rollout_without_gradient_for_the_critic(toy, batch):
    student, b = toy(1), batch()
    with torch.no_grad():
        got = rollout(student, b.noise, rollout_times(1, 6, []), None, text=b.text, time_scale=b.time_scale)
    assert not got.requires_grad and not student.calls[0].grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_everything_is_in_at_least_float32(toy, batch, dtype):
    compute = torch.promote_types(dtype, torch.float32)
    student, critic, b = toy(1, compute), toy(3, compute), batch(dtype=dtype)
    text = b.text.to(compute)
    times = rollout_times(2, 6, [0.9])
    got = rollout(student, b.noise, times, b.x0[None], text=text, time_scale=b.time_scale)
    loss = critic_loss(got, b.noise, b.u, critic=critic, text=text, time_scale=b.time_scale)
    assert got.dtype == loss.total.dtype == compute
    assert {c.t.dtype for c in student.calls + critic.calls} == {compute}
    assert {c.x.dtype for c in student.calls + critic.calls} == {compute}
    assert torch.stack(list(loss.scalars.values())).dtype == torch.float64


def test_rollout_refuses_the_wrong_number_of_noises(toy, batch):
    b = batch()
    with pytest.raises(ValueError, match="n - 1 fresh noises"):
        rollout(toy(1), b.noise, rollout_times(2, 6, [1.0]), None, text=b.text, time_scale=b.time_scale)
