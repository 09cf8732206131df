"""The golden numbers of Cosmos-Predict2 (cosmos-predict2.md section 14)."""

from __future__ import annotations

import pytest
import torch
from networks import cosmos_twin
from networks.small_wan import derivative, relative

from rcm_sidecar.networks import build

# rms; the first four numbers of the first row; the last four of the last (cosmos-predict2.md section 14).
GOLDEN_VELOCITY = (
    1.6327642585, -1.6033711914, 1.1718907890, -0.9965076879, 0.2840138156,
    -2.8057512210, 3.0083873447, -0.7140627736, 2.9745263703,
)  # fmt: skip
GOLDEN_DERIVATIVE = (
    0.8899074973, -1.1757838290, -0.4743277413, -0.6832226083, 0.1868555658,
    0.8441023371, -0.5858636083, 0.3543167033, -0.5341983010,
)  # fmt: skip
GOLDEN_MEAN = 0.1311751566


@pytest.fixture(scope="module")
def golden_net():
    return cosmos_twin.fill(build("cosmos-predict2-tiny", dtype=torch.float64))


@pytest.fixture(scope="module")
def golden_dual(golden_net):
    with torch.no_grad():
        return derivative(golden_net, *cosmos_twin.golden_inputs())


def assert_golden(actual, golden, tolerance):
    rms = actual.square().mean().sqrt()
    numbers = torch.stack([rms, *actual[0, 0, 0, 0, :4], *actual[1, 15, 0, -1, -4:]]).double()
    assert (numbers - torch.tensor(golden, dtype=torch.float64)).abs().max() < tolerance


def test_golden_velocity_and_derivative(golden_net, golden_dual):
    assert len(list(golden_net.parameters())) == 47
    assert sum(p.numel() for p in golden_net.parameters()) == 1_950_848
    assert_golden(golden_dual.primal, GOLDEN_VELOCITY, 1e-9)
    assert_golden(golden_dual.tangent, GOLDEN_DERIVATIVE, 1e-9)
    assert abs(golden_dual.primal.mean().item() - GOLDEN_MEAN) < 1e-9


def test_golden_numbers_in_fp32():
    net = cosmos_twin.fill(build("cosmos-predict2-tiny"))
    x, t, text, tx, tt = cosmos_twin.golden_inputs(torch.float32)
    with torch.no_grad():
        out = derivative(net, x, t, text, tx, tt)
        assert_golden(net(x, t, text), GOLDEN_VELOCITY, 2e-5)
    assert out.primal.dtype == out.tangent.dtype == torch.float32
    assert_golden(out.primal, GOLDEN_VELOCITY, 2e-5)
    assert_golden(out.tangent, GOLDEN_DERIVATIVE, 2e-5)


def test_time_rounded_to_bf16_is_far_outside_the_golden_tolerance(golden_net, golden_dual):
    x, t, text, tx, tt = cosmos_twin.golden_inputs()
    with torch.no_grad():
        rounded = derivative(golden_net, x, t.bfloat16().double(), text, tx, tt)
    assert relative(rounded.primal, golden_dual.primal) > 1e-5
    with pytest.raises(TypeError, match="float32 or float64"):
        golden_net(x, t.bfloat16(), text)
