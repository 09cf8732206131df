"""The calls to the elementwise kernels behind the seam, on their CPU form: eager numbers, gradients, checkpoints."""

from __future__ import annotations

import pytest
import torch
from networks import small_cosmos, small_wan
from networks.checks import MODES, CountOps, assert_equal_gradients, gradients, loss_of

from rcm_sidecar.dual import Dual, attention, fused, ops

NETWORKS = {"wan2.1": small_wan, "cosmos-predict2": small_cosmos}


@pytest.fixture
def through_kernels(monkeypatch):
    """Everything that would run fused on a GPU calls `rcm_kernels`; counts how often the seam is asked."""
    asked = []
    monkeypatch.setattr(fused, "runs_fused", lambda x: asked.append(x.shape) or True)
    return asked


def randn(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def dual(seed, *shape):
    return Dual(randn(seed, *shape), randn(seed + 1000, *shape))


CALLS = {
    "add": lambda: (ops.add, dual(0, 2, 5, 12), dual(1, 2, 5, 12)),
    "add to a constant": lambda: (ops.add, randn(0, 2, 5, 12), dual(1, 2, 5, 12)),
    "layer_norm": lambda: (lambda x, w, b: ops.layer_norm(x, w, b), dual(0, 2, 5, 12), randn(1, 12), randn(2, 12)),
    "layer_norm without affine": lambda: (ops.layer_norm, dual(0, 2, 5, 12)),
    "gate": lambda: (ops.gate, dual(0, 2, 5, 12), dual(1, 2, 5, 12), dual(2, 2, 1, 12)),
    "gate of a constant": lambda: (ops.gate, randn(0, 2, 5, 12), randn(1, 2, 5, 12), dual(2, 1, 1, 12)),
    "norm_modulate": lambda: (ops.norm_modulate, dual(0, 2, 5, 12), dual(1, 2, 1, 12), dual(2, 2, 1, 12)),
    "norm_modulate of a constant": lambda: (
        *(ops.norm_modulate, randn(0, 2, 5, 12)),
        *(dual(1, 2, 1, 12), Dual(randn(2, 2, 1, 12), None)),
    ),
    "residual_norm, affine": lambda: (
        lambda x, y, g, w, b: ops.residual_norm(x, y, g, weight=w, bias=b)[1],
        *(dual(0, 2, 5, 12), dual(1, 2, 5, 12), dual(2, 2, 1, 12), randn(3, 12), randn(4, 12)),
    ),
    "residual_norm, modulated": lambda: (
        lambda x, y, s, c: ops.residual_norm(x, y, modulation=(s, c))[1],
        *(dual(0, 2, 5, 12), dual(1, 2, 5, 12), dual(2, 2, 1, 12), dual(3, 2, 1, 12)),
    ),
    "residual_norm, residual": lambda: (
        lambda x, y, g: ops.residual_norm(x, y, g)[0],
        *(dual(0, 2, 5, 12), dual(1, 2, 5, 12), dual(2, 2, 1, 12)),
    ),
    "rms_norm of rows": lambda: (ops.rms_norm, dual(0, 2, 5, 12), randn(1, 12)),
    "rms_norm of heads": lambda: (ops.rms_norm, dual(0, 2, 5, 3, 4), randn(1, 4)),
    "rms_norm_rope, rows, interleaved": lambda: (
        lambda x, w: ops.rms_norm_rope(x, w, table(5, 2)),
        *(dual(0, 2, 5, 12), randn(1, 12)),
    ),
    "rms_norm_rope, heads, halves": lambda: (
        lambda x, w: ops.rms_norm_rope(x, w, table(5, 2), interleaved=False),
        *(dual(0, 2, 5, 12), randn(1, 4)),
    ),
    "gelu tanh": lambda: (ops.gelu, dual(0, 2, 5, 12)),
    "gelu erf": lambda: (lambda x: ops.gelu(x, "none"), dual(0, 2, 5, 12)),
    "silu": lambda: (ops.silu, dual(0, 7)),
}


def table(length, pairs):
    angles = randn(9, length, pairs)
    return torch.stack([angles.cos(), angles.sin()], -1)


def value_tangent_gradients(call):
    """Of one call, with and without recording a graph."""
    op, *args = call()
    with torch.no_grad():
        quiet = op(*args)
    leaves = [(a.primal if isinstance(a, Dual) else a).requires_grad_() for a in args]
    out = op(*(Dual(leaf, a.tangent) if isinstance(a, Dual) else leaf for leaf, a in zip(leaves, args, strict=True)))
    weights = torch.linspace(-1, 2, out.primal.numel(), dtype=torch.float64).reshape(out.primal.shape)
    assert not out.tangent.requires_grad
    assert torch.equal(quiet.primal, out.primal) and torch.equal(quiet.tangent, out.tangent)
    return [out.primal.detach(), out.tangent, *torch.autograd.grad((out.primal * weights).sum(), leaves)]


@pytest.mark.parametrize("name", CALLS)
def test_kernels_give_the_eager_numbers(name, request):
    eager = value_tangent_gradients(CALLS[name])
    asked = request.getfixturevalue("through_kernels")
    through = value_tangent_gradients(CALLS[name])
    assert asked
    for one, other in zip(through, eager, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def step(network, mode, tangents=True, frozen=()):
    """Value, tangent and gradients of one forward and backward."""
    net = network.small_network()
    net.activation_checkpointing = mode
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    x, t, text, tx, tt = network.small_inputs()
    out = small_wan.derivative(net, x, t, text, tx, tt) if tangents else Dual(net(x, t, text), None)
    loss_of(out.primal).backward()
    return out, gradients(net)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", NETWORKS)
@pytest.mark.parametrize("tangents", [True, False], ids=["dual", "plain"])
def test_a_network_through_the_kernels(family, mode, tangents, request):
    """The checkpoint raises when the recomputation saves other tensors, or in another order, than the dual forward."""
    network = NETWORKS[family]
    frozen = ("patch_embedding", "text_embedding", "time_embedding", "x_embedder", "t_embedder")
    eager = [step(network, "none", tangents), step(network, "none", tangents, frozen)]
    request.getfixturevalue("through_kernels")
    for (out, grads), kept in zip(eager, ((), frozen), strict=True):
        through, through_grads = step(network, mode, tangents, kept)
        torch.testing.assert_close(through.primal, out.primal, rtol=1e-12, atol=1e-12)
        if tangents:
            assert ((through.tangent - out.tangent).norm() / out.tangent.norm()) < 1e-12
        assert_equal_gradients(through_grads, grads)


@pytest.mark.parametrize("family", NETWORKS)
def test_dual_and_plain_forward_save_the_same(family, through_kernels):
    network = NETWORKS[family]
    saved = []
    for tangents in (True, False):
        net = network.small_network()
        x, t, text, tx, tt = network.small_inputs()
        seen = []
        with torch.autograd.graph.saved_tensors_hooks(lambda a, seen=seen: seen.append(a) or a, lambda a: a):
            small_wan.derivative(net, x, t, text, tx, tt) if tangents else net(x, t, text)
        saved.append(seen)
    assert len(saved[0]) == len(saved[1]) > 50
    for one, other in zip(*saved, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize("mode", ["asymmetric", "selective"])
@pytest.mark.parametrize("family", NETWORKS)
def test_one_step_runs_attention_once_a_layer(family, mode, through_kernels, monkeypatch):
    """Dual self attention once, with constant text once, no attention in the recomputation, no tangent twice."""
    monkeypatch.setattr(attention, "runs_fused", lambda q: True)
    net = NETWORKS[family].small_network()
    net.activation_checkpointing = mode
    layers = net.config.num_layers
    x, t, text, tx, tt = NETWORKS[family].small_inputs()
    with CountOps() as forward:
        out = small_wan.derivative(net, x, t, text, tx, tt)
    with CountOps() as backward:
        loss_of(out.primal).backward()
    names = ("attn_jvp", "attn_jvp_q", "attn_jvp_some", "attn", "attn_backward")
    assert [forward.counts[name] for name in names] == [layers, layers, 0, 0, 0]
    assert [backward.counts[name] for name in names] == [0, 0, 0, 0, 2 * layers]
    for name in ("layer_norm", "rms_norm"):
        recomputed = backward.counts[f"{name}_jvp"]
        assert 0 < recomputed <= forward.counts[f"{name}_jvp"]
        assert backward.counts[f"{name}_backward"] == forward.counts[f"{name}_jvp"]


def test_a_gradient_of_a_tangent_is_an_error():
    from rcm_kernels import activation_jvp, layer_norm_jvp, rms_norm_jvp
    from rcm_kernels.elementwise import LayerNormTangents

    x, tx = randn(0, 2, 5, 12).requires_grad_(), randn(1, 2, 5, 12)
    rates = (
        layer_norm_jvp(x, tangents=LayerNormTangents(x=tx)).tangent,
        layer_norm_jvp(x, x, tangents=LayerNormTangents(x=tx), norm=False).residual_tangent,
        rms_norm_jvp(x.unsqueeze(2), randn(2, 12), tangent=tx.unsqueeze(2))[1],
        activation_jvp(x, "silu", tx)[1],
    )
    for rate in rates:
        with pytest.raises(RuntimeError, match="has no gradient"):
            (x.sum() + rate.sum()).backward()


@pytest.mark.parametrize("tangents", [True, False], ids=["dual", "plain"])
def test_value_and_tangent_without_gradient_are_one_product(tangents, through_kernels):
    x, weight = dual(0, 1, 5, 12), randn(1, 7, 12)
    bias = randn(2, 7)
    with torch.no_grad():
        normed = ops.layer_norm(x)
        assert fused.adjacent_halves(normed.primal, normed.tangent) is not None
        out = ops.linear(normed if tangents else normed.primal, weight)
        with_bias = ops.linear(normed, weight, bias)
    pair = out if tangents else Dual(out, None)
    torch.testing.assert_close(pair.primal, normed.primal @ weight.T)
    if tangents:
        assert fused.adjacent_halves(out.primal, out.tangent) is not None, "it was not one product"
        torch.testing.assert_close(out.tangent, normed.tangent @ weight.T)
    torch.testing.assert_close(with_bias.primal, normed.primal @ weight.T + bias)
    torch.testing.assert_close(with_bias.tangent, normed.tangent @ weight.T)


def test_halves_that_are_not_adjacent_are_two_products():
    x = dual(0, 1, 5, 12)
    buffer = randn(3, 3, 1, 5, 12)
    assert fused.adjacent_halves(*x) is None
    assert fused.adjacent_halves(buffer[0], buffer[2]) is None
    assert fused.adjacent_halves(buffer[1], buffer[0]) is None
    assert fused.adjacent_halves(buffer[0].mT, buffer[1].mT) is None
    assert torch.equal(fused.adjacent_halves(buffer[1], buffer[2]), buffer[1:])


def test_a_product_with_gradient_is_not_stacked(through_kernels):
    buffer = randn(0, 2, 1, 5, 12)
    weight = randn(1, 7, 12).requires_grad_()
    out = ops.linear(Dual(buffer[0], buffer[1]), weight)
    assert out.primal.requires_grad and not out.tangent.requires_grad
    assert fused.adjacent_halves(out.primal, out.tangent) is None


def test_a_cpu_float64_and_small_tensors_run_eager():
    assert not fused.runs_fused(torch.zeros(1 << 20))
