"""Samplers on Gaussian data, where velocity and flow are known: exactness, order, grids, calls, precision."""

import math

import numpy as np
import pytest
import torch

from rcm_sidecar.diffusion.guidance import MissingNegativeError
from rcm_sidecar.diffusion.samplers import sample_student, sample_teacher, student_times, teacher_grid
from rcm_sidecar.diffusion.unipc import sample_unipc

MEAN, STD, SCALE = 0.7, 0.4, 1000.0
NOISE = torch.randn(5, 2, 1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TEXT = torch.zeros(5, 1, 1, dtype=torch.float64)


def spread(t):
    """Standard deviation of x_t for data N(MEAN, STD^2)."""
    return ((1 - t) ** 2 * STD**2 + t**2) ** 0.5


def column(t):
    return (t.double() / SCALE).reshape(-1, 1, 1, 1, 1)


class Gaussian:
    """The exact velocity E[e - x0 | x_t] of Gaussian data."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, t, text):
        self.calls.append((x, t, text))
        t = column(t)
        away = (x - (1 - t) * MEAN) / spread(t) ** 2
        return (t * away - (MEAN + (1 - t) * STD**2 * away)).to(x.dtype)


def exact_student(x, t, text):
    """The velocity whose x0 is the end of the exact flow: a perfect consistency model."""
    t = column(t)
    return ((x - (MEAN + STD * (x - (1 - t) * MEAN) / spread(t))) / t).to(x.dtype)


def teacher(**options):
    defaults = {"steps": 50, "shift": 1.0, "guidance": 1.0, "text": TEXT, "negative": None, "time_scale": SCALE}
    return sample_teacher(Gaussian(), NOISE, **{**defaults, **options})


def test_student_times():
    assert student_times(1, 80.0, [1.5, 1.4, 1.0]) == [math.atan(80), 0.0]
    times = student_times(4, 80.0, [1.5, 1.4, 1.0])
    rectified = [math.sin(u) / (math.sin(u) + math.cos(u)) for u in times]
    assert np.allclose(rectified, [0.987654, 0.933781, 0.852895, 0.608979, 0], atol=5e-7)  # wan2.1 section 9.6
    for steps, mid in ((5, [1.5, 1.4, 1.0]), (0, []), (2, [1.57]), (3, [1.4, 1.5])):
        with pytest.raises(ValueError):
            student_times(steps, 80.0, mid)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_student_on_gaussian_data_is_the_affine_recursion(steps):
    times = student_times(steps, 80.0, [1.5, 1.4, 1.0])
    fresh = torch.randn(steps - 1, *NOISE.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = sample_student(exact_student, NOISE, times, fresh, text=TEXT, time_scale=SCALE)
    x_u = math.sin(times[0]) * NOISE
    for index, u in enumerate(times[:-1]):
        c, s = math.cos(u), math.sin(u)
        x0 = MEAN + STD * (x_u - c * MEAN) / math.sqrt(c**2 * STD**2 + s**2)
        if index + 1 < steps:
            x_u = math.cos(times[index + 1]) * x0 + math.sin(times[index + 1]) * fresh[index]
    torch.testing.assert_close(got, x0, rtol=1e-11, atol=1e-11)


def test_student_reaches_the_data_distribution():
    noise = torch.randn(20_000, 1, 1, 1, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    fresh = torch.randn(1, *noise.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for steps in (1, 2):
        times = student_times(steps, 80.0, [1.5])
        got = sample_student(exact_student, noise, times, fresh[: steps - 1], text=TEXT, time_scale=SCALE)
        assert abs(got.mean().item() - MEAN) < 0.02 and abs(got.std().item() - STD) < 0.01


def test_student_precision_at_the_networks_border():
    seen = []

    def network(x, t, text):
        seen.append((x.dtype, t.dtype, t[0].item()))
        return torch.zeros_like(x)

    noise = NOISE.bfloat16()
    got = sample_student(network, noise, [1.5, 1.0, 0.0], [noise], text=TEXT, time_scale=SCALE)
    assert got.dtype == torch.float32
    assert [(x, t) for x, t, _ in seen] == [(torch.bfloat16, torch.float32)] * 2
    expected = SCALE * math.sin(1.5) / (math.sin(1.5) + math.cos(1.5))
    assert seen[0][2] == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("times,fresh", [([1.5, 1.0], None), ([0.0], None), ([1.5, 1.0, 0.0], None)])
def test_student_refuses_times_and_noises_that_do_not_fit(times, fresh):
    with pytest.raises(ValueError):
        sample_student(exact_student, NOISE, times, fresh, text=TEXT, time_scale=SCALE)


def test_samplers_keep_no_graph():
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    got = sample_student(lambda x, t, c: weight * x, NOISE, [1.5, 0.0], None, text=TEXT, time_scale=SCALE)
    assert not got.requires_grad


def test_official_unipc_grid():
    """wan2.1 section 9.3: ten steps, shift 5."""
    grid = teacher_grid(10, 5.0, "unipc")
    expected = [0.9998, 0.978048, 0.952154, 0.92081, 0.882093, 0.833055, 0.768935, 0.681508, 0.555247, 0.356888, 0]
    assert np.allclose(grid, expected, atol=6e-7)
    assert [int(1000 * s) for s in grid[:-1]] == [999, 978, 952, 920, 882, 833, 768, 681, 555, 356]
    for shift, ends in ((5.0, [302, 241, 172, 92]), (3.0, [206, 160, 111, 57]), (8.0, [409, 337, 249, 140])):
        assert [int(1000 * s) for s in teacher_grid(50, shift, "unipc")[46:50]] == ends


def test_euler_grids():
    assert teacher_grid(4, 1.0) == [1.0, 0.75, 0.5, 0.25, 0.0]
    for shift in (3.0, 5.0):
        grid = teacher_grid(100, shift, "euler", sigma_max=5000.0)
        assert grid[0] == pytest.approx(5000 / 5001, rel=1e-12) and grid[-1] == 0 and len(grid) == 101
        base = [s / (shift - (shift - 1) * s) for s in grid]
        assert np.allclose(np.diff(base), -base[0] / 100, rtol=1e-9)
    with pytest.raises(ValueError):
        teacher_grid(0, 1.0)


def test_euler_is_the_hand_written_loop_and_converges_with_order_one():
    x = NOISE
    for index in range(4):
        t = 1 - index / 4
        x = x - 0.25 * Gaussian()(x, torch.full((5,), SCALE * t, dtype=torch.float64), TEXT)
    torch.testing.assert_close(teacher(steps=4), x, rtol=1e-12, atol=1e-12)
    errors = [(teacher(steps=n) - (MEAN + STD * NOISE)).abs().max().item() for n in (20, 40, 80)]
    assert 1.8 < errors[0] / errors[1] < 2.3 and 1.8 < errors[1] / errors[2] < 2.3


def test_unipc_converges_with_order_two():
    exact = MEAN + STD * (NOISE - 0.1 * MEAN) / spread(0.9)

    def error(kind, steps):
        return (teacher(steps=steps, kind=kind, sigma_max=9.0) - exact).abs().max().item()

    errors = [error("unipc", steps) for steps in (40, 80, 160)]
    orders = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert all(1.9 < order < 2.2 for order in orders), orders
    assert errors[-1] < error("euler", 160) / 10


def textbook_unipc(x, grid, velocity):
    """UniPC-2 (bh2) in numpy as its paper states it: history, R rho = b solved as a linear system."""

    def lam(s):
        return math.log((1 - s) / s)

    history, last, order, out = [], None, 0, x
    steps = len(grid) - 1
    for i in range(steps):
        s = grid[i]
        m = out - s * velocity(out, s)
        if i > 0:
            h = lam(s) - lam(grid[i - 1])
            bh = math.expm1(-h)
            ratios = [(lam(grid[i - 1 - j]) - lam(grid[i - 1])) / h for j in range(1, order)] + [1.0]
            phi, b, factorial = math.expm1(-h) / -h - 1, [], 1.0
            for k in range(1, order + 1):
                b.append(phi * factorial / bh)
                factorial *= k + 1
                phi = phi / -h - 1 / factorial
            matrix = np.array([[r**k for r in ratios] for k in range(order)])
            rho = np.array([0.5]) if order == 1 else np.linalg.solve(matrix, np.array(b))
            differences = [(history[-1 - j] - history[-1]) / ratios[j - 1] for j in range(1, order)]
            differences.append(m - history[-1])
            out = s / grid[i - 1] * last - (1 - s) * bh * history[-1]
            out = out - (1 - s) * bh * sum(w * d for w, d in zip(rho, differences, strict=True))
        history.append(m)
        last = out
        order = min(2, steps - i, i + 1)
        following = grid[i + 1]
        if following == 0:
            return m
        h = lam(following) - lam(s)
        growth = (1 - following) * math.expm1(-h)
        out = following / s * last - growth * m
        if order == 2:
            ratio = (lam(grid[i - 1]) - lam(s)) / h
            out = out - growth * 0.5 * (history[-2] - m) / ratio
    return out


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_unipc_closed_form_equals_the_textbook(steps):
    def velocity(x, s):
        return np.tanh(1.3 * x) * (1 - 0.4 * s) + 0.2 * s**2

    grid = teacher_grid(steps, 5.0, "unipc")
    reference = textbook_unipc(NOISE.numpy(), grid, velocity)
    got = sample_unipc(lambda x, s: torch.from_numpy(velocity(x.numpy(), s)), NOISE, grid)
    np.testing.assert_allclose(got.numpy(), reference, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("grid", [[1.0, 0.5, 0.0], [0.9, 0.95, 0.0], [0.9, 0.5]])
def test_unipc_refuses_grids_it_cannot_integrate(grid):
    with pytest.raises(ValueError, match="falling times"):
        sample_unipc(lambda x, s: x, NOISE, grid)


@pytest.mark.parametrize("kind", ["euler", "unipc"])
def test_one_point_is_reached_exactly_whatever_the_steps(kind):
    def point(x, t, text):
        return (x - MEAN) / column(t)

    for steps in (1, 3):
        got = sample_teacher(
            point, NOISE, steps=steps, shift=3.0, guidance=1.0, text=TEXT, negative=None, time_scale=SCALE, kind=kind
        )
        torch.testing.assert_close(got, torch.full_like(NOISE, MEAN), rtol=1e-11, atol=1e-11)


def test_teacher_calls_and_precision():
    network = Gaussian()
    options = {"steps": 3, "shift": 5.0, "text": TEXT, "time_scale": SCALE}
    got = sample_teacher(network, NOISE.float(), guidance=1.0, negative=None, **options)
    assert len(network.calls) == 3 and got.dtype == torch.float32
    assert {(x.dtype, t.dtype) for x, t, _ in network.calls} == {(torch.float32, torch.float32)}
    network.calls.clear()
    sample_teacher(network, NOISE, guidance=2.0, negative=TEXT + 1, **options)
    assert [text[0].item() for _, _, text in network.calls] == [0, 1] * 3
    with pytest.raises(MissingNegativeError):
        sample_teacher(network, NOISE, guidance=2.0, negative=None, **options)
    with pytest.raises(ValueError, match="unknown sampler"):
        teacher(kind="heun")
