"""Weight averages: exponent, weights of the past, width, constant decay, resume."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rcm_sidecar.errors import CheckpointError
from rcm_sidecar.training.ema import Ema, constant_decay, power_decay, power_gamma


def one(value):
    return {"weight": torch.full((2,), value)}


def test_gamma_of_the_paper():
    assert power_gamma(0.1) == pytest.approx(6.937203937601809, abs=1e-12)


@settings(max_examples=30)
@given(st.floats(0.01, 0.28))
def test_gamma_solves_the_cubic_and_gives_the_width(width):
    gamma = power_gamma(width)
    inverse = width**-2
    residual = gamma**3 + 7 * gamma**2 + (16 - inverse) * gamma + 12 - inverse
    assert abs(residual) < 1e-6 * inverse
    # Density (gamma+1) x^gamma on [0, 1] has this standard deviation.
    variance = (gamma + 1) / (gamma + 3) - ((gamma + 1) / (gamma + 2)) ** 2
    assert math.sqrt(variance) == pytest.approx(width, rel=1e-6)


def test_power_average_weighs_the_past_as_a_power_law():
    updates, rule = 400, power_decay(0.1)
    shares = []
    for index in range(updates):
        ema = Ema(one(0.0), rule)
        ema.updates = index
        ema.update(one(1.0))
        shares = [share * (1 - ema.weights["weight"][0].item()) for share in shares] + [ema.weights["weight"][0].item()]
    assert sum(shares) == pytest.approx(1, abs=1e-4)  # the first update copies: nothing of the start is left
    positions = [(index + 1) / updates for index in range(updates)]
    mean = sum(s * p for s, p in zip(shares, positions, strict=True))
    std = math.sqrt(sum(s * (p - mean) ** 2 for s, p in zip(shares, positions, strict=True)))
    assert std == pytest.approx(0.1, rel=0.02)


def test_update_is_the_recursion_in_float32():
    generator = torch.Generator().manual_seed(0)
    history = [torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(9)]
    ema, constant = Ema({"a": history[0]}, power_decay(0.1)), Ema({"a": history[0]}, constant_decay(0.999))
    power, slow = history[0].clone(), history[0].clone()
    for index, value in enumerate(history):
        beta = (1 - 1 / (index + 1)) ** (6.937203937601809 + 1)
        power = beta * power + (1 - beta) * value
        slow = 0.999 * slow + 0.001 * value
        ema.update({"a": value})
        constant.update({"a": value})
    assert ema.weights["a"].dtype == torch.float32
    torch.testing.assert_close(ema.weights["a"], power.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(constant.weights["a"], slow.float(), rtol=1e-5, atol=1e-6)


def test_first_power_update_copies_and_the_average_is_its_own_memory():
    weights = one(3.0)
    ema = Ema(one(-7.0), power_decay(0.1))
    ema.update(weights)
    weights["weight"].fill_(9.0)
    assert ema.weights["weight"].tolist() == [3.0, 3.0] and ema.updates == 1


def test_resume_is_bit_equal():
    generator = torch.Generator().manual_seed(1)
    values = [{"weight": torch.randn(7, generator=generator)} for _ in range(8)]
    straight = Ema(values[0], power_decay(0.1))
    for index, value in enumerate(values):
        straight.update(value)
        if index == 3:
            kept, updates = {name: w.clone() for name, w in straight.weights.items()}, straight.updates
    resumed = Ema(values[0], power_decay(0.1))
    resumed.load(kept, updates)
    for value in values[4:]:
        resumed.update(value)
    assert torch.equal(resumed.weights["weight"], straight.weights["weight"]) and resumed.updates == 8


def test_wrong_states_and_settings_are_refused():
    ema = Ema(one(1.0), constant_decay(0.5))
    for state in ({}, {"weight": torch.zeros(3)}, {"other": torch.zeros(2)}):
        with pytest.raises(CheckpointError):
            ema.load(state, 1)
    assert ema.updates == 0
    for bad in (0.0, 0.3):
        with pytest.raises(ValueError, match="relativeWidth"):
            power_gamma(bad)
    with pytest.raises(ValueError, match="decay"):
        constant_decay(1.0)
