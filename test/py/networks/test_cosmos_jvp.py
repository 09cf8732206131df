"""Values and derivatives of the Cosmos-Predict2 network: golden numbers, an eager twin, differences, mutations."""

from __future__ import annotations

import pytest
import torch
from networks import cosmos_twin
from networks.small_cosmos import small_inputs, small_network
from networks.small_wan import derivative, relative

from rcm_sidecar.dual import Dual, ops
from rcm_sidecar.networks import TextCache, build

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


def test_velocity_equals_the_formulas_in_fp64():
    net = small_network()
    for frames in (1, 2):
        x, t, text, *_ = small_inputs(frames=frames)
        twin = cosmos_twin.velocity(dict(net.named_parameters()), net.config, x, t, text)
        assert relative(net(x, t, text), twin) < 1e-13
        assert relative(net(Dual(x, None), t, text).primal, twin) < 1e-13


@pytest.mark.parametrize("parts", ["xt", "x", "t"])
def test_derivative_equals_functorch_of_the_twin(parts):
    net = small_network()
    x, t, text, tx, tt = small_inputs()
    tx, tt = (tx if "x" in parts else None), (tt if "t" in parts else None)
    weights = {name: p.detach() for name, p in net.named_parameters()}
    tangents = (torch.zeros_like(x) if tx is None else tx, torch.zeros_like(t) if tt is None else tt)
    value, wanted = torch.func.jvp(lambda x, t: cosmos_twin.velocity(weights, net.config, x, t, text), (x, t), tangents)
    for dual_x, dual_t in (
        (Dual(x, tx), Dual(t, tt)),
        (x if tx is None else Dual(x, tx), t if tt is None else Dual(t, tt)),
    ):
        out = net(dual_x, dual_t, text)
        assert relative(out.primal, value) < 1e-13
        assert relative(out.tangent, wanted) < 1e-12


def test_derivative_equals_central_differences():
    net = small_network()
    x, t, text, tx, tt = small_inputs()
    h = 1e-5
    with torch.no_grad():
        wanted = (net(x + h * tx, t + h * tt, text) - net(x - h * tx, t - h * tt, text)) / (2 * h)
    assert relative(derivative(net, x, t, text, tx, tt).tangent, wanted) < 1e-8


def test_a_tangent_has_no_graph_and_none_gives_none():
    net = small_network()
    x, t, text, tx, tt = small_inputs()
    out = derivative(net, x, t, text, tx, tt)
    assert out.primal.requires_grad and not out.tangent.requires_grad
    assert net(Dual(x, None), Dual(t, None), text).tangent is None
    assert isinstance(net(x, t, text), torch.Tensor)


# Every tangent rule of the network, as (op, argument whose tangent is dropped).
RULES = [
    ("linear", 0),
    ("layer_norm", 0),
    ("rms_norm", 0),
    ("modulate", 0),
    ("modulate", 1),
    ("modulate", 2),
    ("gate", 0),
    ("gate", 1),
    ("gate", 2),
    ("add", 0),
    ("add", 1),
    ("gelu", 0),
    ("silu", 0),
    ("rope", 0),
    ("sinusoid", 0),
    ("attention", 0),
    ("attention", 1),
    ("attention", 2),
    ("linear_map", 1),
    ("unbind", 0),
    ("norm_modulate", 0),
    ("norm_modulate", 1),
    ("norm_modulate", 2),
    ("residual_norm", 0),
    ("residual_norm", 1),
    ("residual_norm", 2),
    ("rms_norm_rope", 0),
]


@pytest.fixture(scope="module")
def small_dual():
    return derivative(small_network(), *small_inputs())


@pytest.mark.parametrize(("name", "position"), RULES)
def test_a_deleted_tangent_rule_is_noticed(monkeypatch, small_dual, name, position):
    original = getattr(ops, name)

    def without(*args, **kwargs):
        args = list(args)
        if isinstance(args[position], Dual):
            args[position] = Dual(args[position].primal, None)
        return original(*args, **kwargs)

    monkeypatch.setattr(ops, name, without)
    out = derivative(small_network(), *small_inputs())
    assert torch.equal(out.primal, small_dual.primal)
    broken = out.tangent if out.tangent is not None else torch.zeros_like(out.primal)
    assert relative(broken, small_dual.tangent) > 1e-3


def test_every_op_the_network_uses_is_in_the_mutation_table(monkeypatch):
    used = set()
    for name in ops.__all__:
        original = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *a, _o=original, _n=name, **k: used.add(_n) or _o(*a, **k))
    derivative(small_network(), *small_inputs())
    assert used - {"primal_of"} == {name for name, _ in RULES}


def test_bf16_weights_keep_the_derivative_close():
    wanted = derivative(small_network(), *small_inputs())
    for residual in ("bf16", "fp32"):
        net = small_network().to(torch.bfloat16)
        net.residual = residual
        out = derivative(net, *small_inputs(torch.float32))
        assert out.primal.dtype == out.tangent.dtype == torch.float32
        assert relative(out.primal.double(), wanted.primal) < 0.03
        assert relative(out.tangent.double(), wanted.tangent) < 0.05


def test_fp32_residual_stream_is_used_when_asked_for():
    seen = []
    net = small_network().to(torch.bfloat16)
    net.blocks[1].register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    x, t, text, *_ = small_inputs(torch.float32)
    for residual in ("bf16", "fp32"):
        net.residual = residual
        net(x, t, text)
    assert seen == [torch.bfloat16, torch.float32]


def test_text_cache_gives_the_same_velocity_and_runs_no_text_projection_again():
    net = small_network()
    x, t, text, *_ = small_inputs()
    calls = []
    for block in net.blocks:
        block.cross_attn.k_proj.register_forward_hook(lambda *_: calls.append(1))
    cache = TextCache()
    with torch.no_grad():
        wanted = net(x, t, text), net(x * 2, t / 2, text)
        calls.clear()
        assert torch.equal(net(x, t, text, kv_cache=cache), wanted[0])
        assert torch.equal(net(x * 2, t / 2, text, kv_cache=cache), wanted[1])
    assert len(calls) == net.config.num_layers
