"""Coordinates: round trips, identities of rcm-method section 2, ends of the interval, one rounding."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rcm_sidecar.diffusion import coordinates as co

UNIT = st.floats(0.0, 1.0)
INNER = st.floats(1e-6, 1 - 1e-6)
ANGLE = st.floats(0.0, math.pi / 2)
SHIFT = st.floats(0.1, 20.0)
VALUE = st.floats(-1e3, 1e3)


def scalar(value):
    return torch.tensor([value], dtype=torch.float64)


def close(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@given(UNIT)
def test_rf_trigflow_round_trip(t):
    close(co.rf_from_trigflow(co.trigflow_from_rf(scalar(t))), scalar(t))


@given(ANGLE)
def test_trigflow_rf_round_trip(u):
    close(co.trigflow_from_rf(co.rf_from_trigflow(scalar(u))), scalar(u))


@given(INNER)
def test_sigma_round_trips_and_the_three_times_agree(t):
    sigma = co.sigma_from_rf(scalar(t))
    close(co.rf_from_sigma(sigma), scalar(t))
    close(co.trigflow_from_sigma(sigma), co.trigflow_from_rf(scalar(t)))
    close(co.sigma_from_trigflow(co.trigflow_from_sigma(sigma)), sigma, 1e-8)


@given(UNIT, SHIFT)
def test_shift_round_trip_keeps_the_ends_and_the_order(t, shift):
    shifted = co.shift_time(scalar(t), shift)
    assert 0 <= shifted <= 1
    close(co.unshift_time(shifted, shift), scalar(t), 1e-11)
    assert co.shift_time(scalar(0.0), shift) == 0
    assert co.shift_time(scalar(1.0), shift) == 1


@given(ANGLE, VALUE, VALUE)
def test_states_and_velocities_of_a_point_agree(u, clean, noise):
    x0, e = scalar(clean)[:, None], scalar(noise)[:, None]
    point = co.trig_point(scalar(u), x0)
    x_t = co.noisy_state(x0, e, point)
    x_u = co.trigflow_state(x_t, point)
    close(x_u, math.cos(u) * x0 + math.sin(u) * e, 1e-9)
    close(co.rectified_state(x_u, point), x_t)
    velocity = e - x0
    close(co.x0_from_velocity(x_t, velocity, point.t), x0, 1e-9)
    trig = co.trigflow_velocity(x_u, velocity, point)
    close(trig, math.cos(u) * e - math.sin(u) * x0, 1e-9)
    close(co.rectified_velocity(x_u, trig, point), velocity, 1e-9)


@given(ANGLE)
def test_coefficients_are_the_formulas(u):
    point = co.trig_point(scalar(u), torch.zeros(1, 1, dtype=torch.float64))
    close(point.k, point.t * (1 - point.t))
    assert 0 <= point.k <= 0.25 + 1e-15 and 0 <= point.t <= 1 and 1 - 1e-15 <= point.total <= math.sqrt(2) + 1e-15
    close(point.network_time(1000.0), 1000.0 * point.t.flatten())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_are_exact_and_float32_half_pi_does_not_leave_the_interval(dtype):
    u = torch.tensor([0.0, math.pi / 2, 4.0], dtype=dtype)
    point = co.trig_point(u, torch.zeros(3, 2, dtype=dtype))
    assert point.t.flatten().tolist() == [0, 1, 1]
    assert (point.cos >= 0).all() and (point.k >= 0).all()
    assert point.t.dtype == dtype and point.u.dtype == torch.float64


def test_float32_coefficients_are_float64_ones_rounded_once():
    u = torch.linspace(0, math.pi / 2, 101, dtype=torch.float64)
    narrow = co.trig_point(u, torch.zeros(101, 1))
    wide = co.trig_point(u, torch.zeros(101, 1, dtype=torch.float64))
    for name in ("cos", "sin", "total", "t", "k"):
        assert torch.equal(getattr(narrow, name), getattr(wide, name).float())
    assert torch.equal(narrow.network_time(1000.0), wide.network_time(1000.0).float())


def test_half_precision_states_get_float32_coefficients():
    point = co.trig_point(torch.rand(2), torch.zeros(2, 3, dtype=torch.bfloat16))
    assert point.t.dtype == torch.float32 and point.t.shape == (2, 1)


def test_times_of_another_batch_are_refused():
    with pytest.raises(ValueError, match="times must have shape"):
        co.trig_point(torch.zeros(3), torch.zeros(2, 1))
