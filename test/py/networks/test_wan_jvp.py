"""Values, derivatives and gradients of the Wan2.1 network: golden numbers, an eager twin, differences, mutations."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from networks import wan_twin
from networks.small_wan import derivative, relative, small_inputs, small_network

from rcm_sidecar.dual import Dual, ops
from rcm_sidecar.networks import build
from rcm_sidecar.networks.text_cache import TextCache

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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_time_in_another_dtype_is_refused(dtype):
    net = small_network(torch.float32)
    x, t, text, *_ = small_inputs(torch.float32)
    with pytest.raises(TypeError, match="float32 or float64"):
        net(x, t.to(dtype), text)


def test_velocity_equals_the_formulas_in_fp64():
    net = small_network()
    x, t, text, *_ = small_inputs()
    twin = wan_twin.velocity(dict(net.named_parameters()), net.config, x, t, text)
    assert relative(net(x, t, text), twin) < 1e-13
    assert relative(net(Dual(x, None), t, text).primal, twin) < 1e-13


@pytest.mark.parametrize("parts", ["xt", "x", "t"])
def test_derivative_equals_functorch_of_the_twin(parts):
    net = small_network()
    x, t, text, tx, tt = small_inputs()
    tx, tt = (tx if "x" in parts else None), (tt if "t" in parts else None)
    weights = {name: p.detach() for name, p in net.named_parameters()}
    tangents = (torch.zeros_like(x) if tx is None else tx, torch.zeros_like(t) if tt is None else tt)
    value, wanted = torch.func.jvp(lambda x, t: wan_twin.velocity(weights, net.config, x, t, text), (x, t), tangents)
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
    assert relative(derivative(net, x, t, text, tx, tt).tangent, wanted) < 1e-6


def test_no_tangent_in_gives_no_tangent_out():
    net = small_network()
    x, t, text, *_ = small_inputs()
    out = net(Dual(x, None), Dual(t, None), text)
    assert out.tangent is None
    assert isinstance(net(x, t, text), torch.Tensor)


def test_tangent_carries_no_graph_and_primal_does():
    net = small_network()
    out = derivative(net, *small_inputs())
    assert out.primal.requires_grad
    assert not out.tangent.requires_grad


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


@pytest.mark.parametrize(("name", "position"), RULES)
def test_a_deleted_tangent_rule_is_noticed(monkeypatch, golden_net, golden_dual, name, position):
    original = getattr(ops, name)

    def without(*args, **kwargs):
        args = list(args)
        if isinstance(args[position], Dual):
            args[position] = Dual(args[position].primal, None)
        return original(*args, **kwargs)

    monkeypatch.setattr(ops, name, without)
    with torch.no_grad():
        out = derivative(golden_net, *wan_twin.golden_inputs())
    assert torch.equal(out.primal, golden_dual.primal)
    broken = out.tangent if out.tangent is not None else torch.zeros_like(out.primal)
    assert relative(broken, golden_dual.tangent) > 1e-3


def test_every_op_the_network_uses_is_in_the_mutation_table(monkeypatch):
    used = set()
    for name in ops.__all__:
        original = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *a, _o=original, _n=name, **k: used.add(_n) or _o(*a, **k))
    derivative(small_network(), *small_inputs())
    assert used - {"primal_of"} == {name for name, _ in RULES}


def test_bf16_weights_keep_the_derivative_close():
    exact = small_network()
    x, t, text, tx, tt = small_inputs()
    wanted = derivative(exact, x, t, text, tx, tt)
    for residual in ("bf16", "fp32"):
        net = small_network().to(torch.bfloat16)
        net.residual = residual
        out = derivative(net, x.float(), t.float(), text.float(), tx.float(), tt.float())
        assert out.primal.dtype == out.tangent.dtype == torch.float32
        assert relative(out.primal.double(), wanted.primal) < 0.02
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
    x, t, text, tx, tt = small_inputs()
    calls = []
    for block in net.blocks:
        block.cross_attn.k.register_forward_hook(lambda *_: calls.append(1))
    cache = TextCache()
    with torch.no_grad():
        wanted = net(x, t, text), net(x * 2, t / 2, text)
        calls.clear()
        assert torch.equal(net(x, t, text, kv_cache=cache), wanted[0])
        assert torch.equal(net(x * 2, t / 2, text, kv_cache=cache), wanted[1])
        assert len(calls) == net.config.num_layers
        with pytest.raises(ValueError, match="another text"):
            net(x, t, text.clone(), kv_cache=cache)
    with pytest.raises(RuntimeError, match="no-grad"):
        net(x, t, text, kv_cache=TextCache())


def test_padding_rows_take_part_in_cross_attention():
    net = small_network()
    x, t, text, *_ = small_inputs()
    padded = torch.cat([text, torch.zeros_like(text)], dim=1)
    with torch.no_grad():
        assert relative(net(x, t, padded), net(x, t, text)) > 1e-3


def test_wrong_shapes_are_named():
    net = small_network()
    x, t, text, *_ = small_inputs()
    with pytest.raises(ValueError, match="x must be"):
        net(x[:, :2], t, text)
    with pytest.raises(ValueError, match="patches"):
        net(x[..., :5], t, text)
    with pytest.raises(ValueError, match="t must be"):
        net(x, t[:1], text)
    with pytest.raises(ValueError, match="text must be"):
        net(x, t, text[..., :4])


def test_sizes_are_read_from_the_config_and_frozen():
    net = small_network()
    assert net.config.dim == 24
    with pytest.raises(dataclasses.FrozenInstanceError):
        net.config.dim = 32
