"""Values and derivatives of both families: an eager twin, differences, mutations, precision, the text cache."""

from __future__ import annotations

import pytest
import torch
from networks.small_wan import derivative, relative

from rcm_sidecar.dual import Dual, ops
from rcm_sidecar.networks.text_cache import TextCache


@pytest.fixture(scope="module")
def exact(family):
    """Velocity and derivative in fp64."""
    with torch.no_grad():
        return derivative(family.small.small_network(), *family.small.small_inputs())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_time_in_another_dtype_is_refused(family, dtype):
    net = family.small.small_network(torch.float32)
    x, t, text, *_ = family.small.small_inputs(torch.float32)
    with pytest.raises(TypeError, match="float32 or float64"):
        net(x, t.to(dtype), text)


def test_velocity_equals_the_formulas_in_fp64(family):
    net = family.small.small_network()
    x, t, text, *_ = family.small.small_inputs()
    twin = family.twin.velocity(dict(net.named_parameters()), net.config, x, t, text)
    assert relative(net(x, t, text), twin) < 1e-13
    assert relative(net(Dual(x, None), t, text).primal, twin) < 1e-13


@pytest.mark.parametrize("parts", ["xt", "x", "t"])
def test_derivative_equals_functorch_of_the_twin(family, parts):
    net = family.small.small_network()
    x, t, text, tx, tt = family.small.small_inputs()
    tx, tt = (tx if "x" in parts else None), (tt if "t" in parts else None)
    weights = {name: p.detach() for name, p in net.named_parameters()}
    tangents = (torch.zeros_like(x) if tx is None else tx, torch.zeros_like(t) if tt is None else tt)
    value, wanted = torch.func.jvp(lambda x, t: family.twin.velocity(weights, net.config, x, t, text), (x, t), tangents)
    for dual_x, dual_t in (
        (Dual(x, tx), Dual(t, tt)),
        (x if tx is None else Dual(x, tx), t if tt is None else Dual(t, tt)),
    ):
        out = net(dual_x, dual_t, text)
        assert relative(out.primal, value) < 1e-13
        assert relative(out.tangent, wanted) < 1e-12


def test_derivative_equals_central_differences(family):
    net = family.small.small_network()
    x, t, text, tx, tt = family.small.small_inputs()
    h = 1e-5
    with torch.no_grad():
        wanted = (net(x + h * tx, t + h * tt, text) - net(x - h * tx, t - h * tt, text)) / (2 * h)
    assert relative(derivative(net, x, t, text, tx, tt).tangent, wanted) < family.difference_error


def test_no_tangent_in_gives_no_tangent_out(family):
    net = family.small.small_network()
    x, t, text, *_ = family.small.small_inputs()
    out = net(Dual(x, None), Dual(t, None), text)
    assert out.tangent is None
    assert isinstance(net(x, t, text), torch.Tensor)


def test_tangent_carries_no_graph_and_primal_does(family):
    net = family.small.small_network()
    out = derivative(net, *family.small.small_inputs())
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
def test_a_deleted_tangent_rule_is_noticed(family, monkeypatch, exact, name, position):
    original = getattr(ops, name)

    def without(*args, **kwargs):
        args = list(args)
        if isinstance(args[position], Dual):
            args[position] = Dual(args[position].primal, None)
        return original(*args, **kwargs)

    monkeypatch.setattr(ops, name, without)
    with torch.no_grad():
        out = derivative(family.small.small_network(), *family.small.small_inputs())
    assert torch.equal(out.primal, exact.primal)
    broken = out.tangent if out.tangent is not None else torch.zeros_like(out.primal)
    assert relative(broken, exact.tangent) > 1e-3


def test_every_op_the_network_uses_is_in_the_mutation_table(family, monkeypatch):
    used = set()
    for name in ops.__all__:
        original = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *a, _o=original, _n=name, **k: used.add(_n) or _o(*a, **k))
    derivative(family.small.small_network(), *family.small.small_inputs())
    assert used - {"primal_of"} == {name for name, _ in RULES}


def test_bf16_weights_keep_the_derivative_close(family, exact):
    for residual in ("bf16", "fp32"):
        net = family.small.small_network().to(torch.bfloat16)
        net.residual = residual
        out = derivative(net, *family.small.small_inputs(torch.float32))
        assert out.primal.dtype == out.tangent.dtype == torch.float32
        assert relative(out.primal.double(), exact.primal) < 0.03
        assert relative(out.tangent.double(), exact.tangent) < 0.05


def test_fp32_residual_stream_is_used_when_asked_for(family):
    seen = []
    net = family.small.small_network().to(torch.bfloat16)
    net.blocks[1].register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    x, t, text, *_ = family.small.small_inputs(torch.float32)
    for residual in ("bf16", "fp32"):
        net.residual = residual
        net(x, t, text)
    assert seen == [torch.bfloat16, torch.float32]


def test_text_cache_gives_the_same_velocity_and_runs_no_text_projection_again(family):
    net = family.small.small_network()
    x, t, text, tx, tt = family.small.small_inputs()
    calls = []
    for block in net.blocks:
        block.cross_attn.get_submodule(family.key_projection).register_forward_hook(lambda *_: calls.append(1))
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


def test_padding_rows_take_part_in_cross_attention(family):
    net = family.small.small_network()
    x, t, text, *_ = family.small.small_inputs()
    padded = torch.cat([text, torch.zeros_like(text)], dim=1)
    with torch.no_grad():
        assert relative(net(x, t, padded), net(x, t, text)) > 1e-3


def test_wrong_shapes_are_named(family):
    net = family.small.small_network()
    x, t, text, *_ = family.small.small_inputs()
    with pytest.raises(ValueError, match="x must be"):
        net(x[:, :2], t, text)
    with pytest.raises(ValueError, match="patches"):
        net(x[..., :5], t, text)
    with pytest.raises(ValueError, match="t must be"):
        net(x, t[:1], text)
    with pytest.raises(ValueError, match="text must be"):
        net(x, t, text[..., :4])


def test_permuting_text_rows_changes_nothing(family):
    net = family.small.small_network()
    x, t, text, *_ = family.small.small_inputs()
    with torch.no_grad():
        assert relative(net(x, t, text.flip(1)), net(x, t, text)) < 1e-13


def test_samples_of_a_batch_do_not_mix(family):
    net = family.small.small_network()
    x, t, text, *_ = family.small.small_inputs()
    with torch.no_grad():
        assert relative(net(x, t, text)[1:], net(x[1:], t[1:], text[1:])) < 1e-13
