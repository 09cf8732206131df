"""The golden numbers of Wan2.1 (wan2.1.md section 16.1)."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from networks import wan_twin
from networks.small_wan import derivative, relative, small_network

from rcm_sidecar.networks import build

# v, Jv: rms, then the first four numbers (wan2.1.md section 16.1).
GOLDEN_VELOCITY = (1.1540197, 1.6265966, -0.35122958, 2.6895487, 0.47119075)
GOLDEN_DERIVATIVE = (18.315643, 1.3945427, -11.371923, -30.280514, 12.229981)


@pytest.fixture(scope="module")
def golden_net():
    return wan_twin.fill(build("wan2.1-tiny"))


@pytest.fixture(scope="module")
def golden_dual(golden_net):
    with torch.no_grad():
        return derivative(golden_net, *wan_twin.golden_inputs())


def assert_golden(actual, golden):
    numbers = torch.stack([actual.square().mean().sqrt(), *actual[0, 0, 0, 0, :4]]).double()
    wanted = torch.tensor(golden, dtype=torch.float64)
    assert ((numbers - wanted).abs() / wanted.abs()).max() < 1e-5


def test_golden_velocity_and_derivative(golden_net, golden_dual):
    assert len(list(golden_net.parameters())) == 69
    assert sum(p.numel() for p in golden_net.parameters()) == 2_227_008
    assert_golden(golden_dual.primal, GOLDEN_VELOCITY)
    assert_golden(golden_dual.tangent, GOLDEN_DERIVATIVE)
    x, t, text, *_ = wan_twin.golden_inputs()
    with torch.no_grad():
        assert_golden(golden_net(x, t, text), GOLDEN_VELOCITY)


def test_time_rounded_to_bf16_is_far_outside_the_golden_tolerance(golden_net, golden_dual):
    x, t, text, tx, tt = wan_twin.golden_inputs()
    with torch.no_grad():
        rounded = derivative(golden_net, x, t.bfloat16().float(), text, tx, tt.bfloat16().float())
    assert relative(rounded.tangent, golden_dual.tangent) > 0.05
    assert relative(rounded.primal, golden_dual.primal) > 1e-3


def test_sizes_are_read_from_the_config_and_frozen():
    net = small_network()
    assert net.config.dim == 24
    with pytest.raises(dataclasses.FrozenInstanceError):
        net.config.dim = 32
