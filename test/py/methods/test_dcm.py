"""dCM loss: grid, Euler path, target without gradient, both ends."""

import math

import pytest
import torch

from rcm_sidecar.methods.dcm import dcm_loss, grid_times


def wide(x):
    return x.reshape(-1, 1, 1, 1, 1)


def f_of(network, x_u, u, text, time_scale):
    c, s = wide(u.cos()), wide(u.sin())
    v = network.plain(x_u / (c + s), time_scale * (s / (c + s)).flatten(), text)
    return ((c - s) * x_u + v) / (c + s)


def test_grid_is_the_shifted_uniform_grid():
    q = torch.tensor([0.0, 0.3, 1 - 2 / 48], dtype=torch.float64)
    u = grid_times(q, 48, 2, 5.0)
    for k in range(3):
        t = 1 - (q + k / 48)
        shifted = 5 * t / (1 + 4 * t)
        torch.testing.assert_close(torch.tan(u[k, 1:2]), (shifted / (1 - shifted))[1:2], rtol=1e-12, atol=0)
    assert u[0, 0] == math.pi / 2 and u[2, 2] == 0
    assert (u[1:] < u[:-1]).all()
    rounded_up = torch.tensor([1 - 1 / 48 + 1e-7])  # a float32 draw may lie above its bound
    assert grid_times(rounded_up, 48, 1, 5.0)[1] == 0


@pytest.mark.parametrize("skip", [1, 3])
def test_matches_the_long_form(toy, batch, skip):
    student, teacher, b = toy(1), toy(2), batch()
    q = torch.linspace(0.05, 0.9, 6, dtype=torch.float64)
    loss = dcm_loss(student, teacher, b.x0, b.noise, q, **b.condition, skip=skip)

    u = grid_times(q, 48, skip, 5.0)
    x_u = wide(u[0].cos()) * b.x0 + wide(u[0].sin()) * b.noise
    f = f_of(student, x_u, u[0], b.text, b.time_scale)
    prediction = wide(u[0].cos()) * x_u - wide(u[0].sin()) * f
    with torch.no_grad():
        for k in range(skip):
            positive = f_of(teacher, x_u, u[k], b.text, b.time_scale)
            negative = f_of(teacher, x_u, u[k], b.negative, b.time_scale)
            x_u = x_u + wide(u[k + 1] - u[k]) * (negative + b.guidance * (positive - negative))
        f = f_of(student, x_u, u[skip], b.text, b.time_scale)
        target = wide(u[skip].cos()) * x_u - wide(u[skip].sin()) * f
    reference = (prediction - target).square().flatten(1).sum(1)
    torch.testing.assert_close(loss.per_sample, reference, rtol=1e-10, atol=1e-12)
    ours = torch.autograd.grad(loss.total, student.parameters())
    theirs = torch.autograd.grad(reference.mean(), student.parameters())
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)
    assert [call.grad for call in student.calls] == [True, False]
    assert len(teacher.calls) == 2 * skip and not any(call.grad for call in teacher.calls)


def test_gradient_reaches_only_the_student(toy, batch):
    student, teacher, b = toy(1), toy(2), batch()
    dcm_loss(student, teacher, b.x0, b.noise, b.u / 2, **b.condition).total.backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_exact_student_of_a_point_has_no_loss(batch):
    b = batch()
    point = b.x0[0]

    def exact(x, t, text):
        return (x - point) / (t / b.time_scale).clamp(min=1e-300).reshape(-1, 1, 1, 1, 1)

    options = {**b.condition, "guidance": 1.0, "negative": None}
    q = torch.linspace(0.0, 0.95, 6, dtype=torch.float64)
    loss = dcm_loss(exact, exact, point.expand_as(b.x0), b.noise, q, **options)
    assert loss.total < 1e-24


def test_both_ends_of_the_grid_are_safe(toy, batch):
    student, teacher, b = toy(1, torch.float32), toy(2, torch.float32), batch(2, torch.float32)
    q = torch.tensor([0.0, 1 - 1 / 48])
    loss = dcm_loss(student, teacher, b.x0, b.noise, q, **b.condition)
    assert torch.isfinite(loss.per_sample).all() and loss.total.dtype == torch.float32
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss.total, student.parameters()))
    assert torch.stack(list(loss.scalars.values())).isfinite().all()
