"""Each tangent rule against torch.func.jvp in fp64, each backward against finite differences, precision, and misuse."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rcm_sidecar.dual import Dual, attention, checkpoint_block, ops

quick = settings(deadline=None, max_examples=25, derandomize=True)
TOLERANCE = 1e-12
SIZES = st.tuples(st.integers(1, 3), st.integers(1, 5), st.sampled_from([2, 4, 6, 16]))
SEEDS = st.integers(0, 2**31)


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check(op, formula, *values, seed=0, which=None):
    """`op` of Duals equals torch.func.jvp of `formula`, for every choice of arguments that carry a tangent."""
    for chosen in [which] if which else [tuple(range(len(values))), *((i,) for i in range(len(values)))]:
        tangents = [randn(seed + 7 * i + 1, *v.shape) if i in chosen else None for i, v in enumerate(values)]
        zeros = [
            torch.zeros_like(v) if tangent is None else tangent for v, tangent in zip(values, tangents, strict=True)
        ]
        value, wanted = torch.func.jvp(formula, tuple(values), tuple(zeros))
        out = op(*(v if i not in chosen else Dual(v, tangents[i]) for i, v in enumerate(values)))
        assert isinstance(out, Dual)
        torch.testing.assert_close(out.primal, value, rtol=TOLERANCE, atol=TOLERANCE)
        torch.testing.assert_close(out.tangent, wanted, rtol=TOLERANCE, atol=TOLERANCE)
        assert out.tangent.shape == out.primal.shape
        as_missing = op(*(v if i not in chosen else Dual(v, None) for i, v in enumerate(values)))
        assert as_missing.tangent is None
    plain = op(*values)
    assert isinstance(plain, torch.Tensor)
    torch.testing.assert_close(plain, formula(*values), rtol=TOLERANCE, atol=TOLERANCE)


@quick
@given(SIZES, SEEDS)
def test_linear(sizes, seed):
    batch, length, dim = sizes
    weight, bias = randn(seed, 3, dim), randn(seed + 1, 3)
    check(lambda x: ops.linear(x, weight, bias), lambda x: x @ weight.T + bias, randn(seed + 2, batch, length, dim))


@quick
@given(SIZES, SEEDS, st.booleans())
def test_layer_norm(sizes, seed, affine):
    weight, bias = (randn(seed, sizes[-1]), randn(seed + 1, sizes[-1])) if affine else (None, None)

    def formula(x):
        centred = x - x.mean(-1, keepdim=True)
        out = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-6)
        return out * weight + bias if affine else out

    check(lambda x: ops.layer_norm(x, weight, bias, 1e-6), formula, 3 + 2 * randn(seed + 2, *sizes))


@quick
@given(SIZES, SEEDS)
def test_rms_norm(sizes, seed):
    weight = randn(seed, sizes[-1])

    def formula(x):
        return weight * x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-6)

    check(lambda x: ops.rms_norm(x, weight, 1e-6), formula, 1 + randn(seed + 2, *sizes))


@quick
@given(SIZES, SEEDS)
def test_modulate_and_gate(sizes, seed):
    batch, _, dim = sizes
    x, y = randn(seed, *sizes), randn(seed + 1, *sizes)
    shift, scale = randn(seed + 2, batch, 1, dim), randn(seed + 3, batch, 1, dim)
    check(ops.modulate, lambda x, s, c: x * (1 + c) + s, x, shift, scale)
    check(ops.gate, lambda x, y, g: x + y * g, x, y, scale)


@quick
@given(SIZES, SEEDS)
def test_add_with_broadcasting(sizes, seed):
    check(ops.add, lambda a, b: a + b, randn(seed, *sizes), randn(seed + 1, 1, 1, sizes[-1]))
    check(ops.add, lambda a, b: a + b, randn(seed, *sizes), randn(seed + 1, *sizes))


@pytest.mark.parametrize("form", ["tanh", "none"])
def test_gelu(form):
    def formula(x):
        if form == "none":
            return x / 2 * (1 + torch.erf(x / math.sqrt(2)))
        return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    check(lambda x: ops.gelu(x, form), formula, 3 * randn(1, 4, 5, 6))


def test_silu():
    check(ops.silu, lambda x: x / (1 + torch.exp(-x)), 3 * randn(1, 4, 5, 6))


@quick
@given(SIZES, SEEDS, st.booleans())
def test_rope(sizes, seed, interleaved):
    batch, length, dim = sizes
    angles = randn(seed, length, dim // 2)
    table = torch.stack([angles.cos(), angles.sin()], dim=-1)

    def formula(x):
        first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        parts = first * cos - second * sin, first * sin + second * cos
        return torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1)

    check(lambda x: ops.rope(x, table, interleaved=interleaved), formula, randn(seed + 1, batch, length, 3, dim))


@quick
@given(st.integers(1, 4), st.sampled_from([2, 8, 64]), SEEDS)
def test_sinusoid(batch, dim, seed):
    frequencies = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))

    def formula(t):
        return torch.cat([torch.cos(t[:, None] * frequencies), torch.sin(t[:, None] * frequencies)], dim=1)

    check(lambda t: ops.sinusoid(t, dim), formula, 500 + 300 * randn(seed, batch))


def naive_attention(mask):
    def formula(q, k, v):
        scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1])
        if mask is not None:
            tokens = 1 if mask == "causal" else mask[1]
            rows, columns = torch.arange(scores.shape[-2]), torch.arange(scores.shape[-1])
            scores = scores.masked_fill(columns[None] // tokens > rows[:, None] // tokens, -math.inf)
        return torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)

    return formula


@quick
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([None, "causal", ("block-causal", 3)]), SEEDS)
def test_attention(queries, keys, mask, seed):
    q, k, v = randn(seed, 2, 3, queries, 4), randn(seed + 1, 2, 3, keys, 4), randn(seed + 2, 2, 3, keys, 4)
    op = lambda q, k, v: ops.attention(q, k, v, mask=mask)  # noqa: E731
    check(op, naive_attention(mask), q, k, v, seed=seed)


def test_attention_of_shifted_scores_stays_finite_and_exact():
    q, k, v = 30 * randn(1, 1, 2, 5, 4), 30 * randn(2, 1, 2, 7, 4), randn(3, 1, 2, 7, 4)
    check(ops.attention, naive_attention(None), q, k, v)


@pytest.mark.parametrize("mask", [None, "causal", ("block-causal", 2)])
def test_attention_of_many_scores_equals_that_of_few(monkeypatch, mask):
    q, k, v = (randn(i, 2, 2, 6, 4) for i in range(3))
    few = ops.attention(q, k, v, mask=mask, scale=0.3)
    monkeypatch.setattr(attention, "SMALL_SCORES", 0)
    torch.testing.assert_close(ops.attention(q, k, v, mask=mask, scale=0.3), few, rtol=TOLERANCE, atol=TOLERANCE)


def test_an_unknown_mask_is_refused():
    q = randn(0, 1, 1, 4, 4)
    with pytest.raises(ValueError, match="unknown attention mask"):
        ops.attention(q, q, q, mask=("sliding", 3))


@pytest.mark.parametrize("mask", [None, "causal"])
def test_attention_backward_equals_differences(mask):
    leaves = [randn(i, 1, 2, 3 + (i > 0 and mask is None), 4).requires_grad_() for i in range(3)]
    assert torch.autograd.gradcheck(lambda q, k, v: ops.attention(q, k, v, mask=mask), leaves)
    tangent = randn(9, *leaves[0].shape)
    with_tangent = lambda q, k, v: ops.attention(Dual(q, tangent), k, v, mask=mask).primal  # noqa: E731
    assert torch.autograd.gradcheck(with_tangent, leaves)


@pytest.mark.parametrize("trainable", [(True, True), (True, False), (False, True)])
def test_rms_norm_backward_equals_differences(trainable):
    x, weight = randn(1, 2, 3, 6).requires_grad_(trainable[0]), randn(2, 6).requires_grad_(trainable[1])
    assert torch.autograd.gradcheck(ops.rms_norm, (x, weight))


def test_linear_map_and_unbind():
    x = randn(1, 2, 3, 4)
    check(lambda x: ops.linear_map(lambda a: a.transpose(0, 2) * 3, x), lambda x: x.transpose(0, 2) * 3, x)
    parts = ops.unbind(Dual(x, 2 * x), 1)
    assert len(parts) == 3
    assert torch.equal(parts[1].primal, x[:, 1])
    assert torch.equal(parts[1].tangent, 2 * x[:, 1])
    assert [part.tangent for part in ops.unbind(Dual(x, None), 1)] == [None] * 3


OPERATORS = [
    lambda d: d + d,
    lambda d: d + d.primal,
    lambda d: d.primal + d,
    lambda d: 1.0 + d,
    lambda d: d - d,
    lambda d: 2.0 - d,
    lambda d: d * 2,
    lambda d: 2 * d,
    lambda d: d.primal * d,
    lambda d: d / 2.0,
    lambda d: d @ d.primal,
]


@pytest.mark.parametrize("use", OPERATORS)
def test_operators_on_duals_raise_and_name_the_op(use):
    dual = Dual(torch.ones(2), torch.ones(2))
    with pytest.raises(TypeError, match=r"use rcm_sidecar\.dual\.ops\."):
        use(dual)


def test_tangents_never_enter_a_graph():
    weight = torch.ones(4, requires_grad=True)
    x, tangent = torch.randn(2, 4, requires_grad=True), torch.randn(2, 4)
    for out in (
        ops.linear(Dual(x, tangent), weight[None]),
        ops.rms_norm(Dual(x, tangent), weight),
        ops.layer_norm(Dual(x, tangent), weight, weight),
        ops.modulate(Dual(x, tangent), weight, weight),
        ops.gate(x, Dual(x, tangent), weight),
        ops.attention(Dual(x[None, None], tangent[None, None]), x[None, None], x[None, None]),
    ):
        assert out.primal.requires_grad
        assert not out.tangent.requires_grad


def to_bf16(*tensors):
    return tuple(t.bfloat16() for t in tensors)


def assert_rounded_once(actual, exact):
    """Half precision in, one rounding of a wide result out: within one unit in the last place of bf16."""
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.double(), exact, rtol=2**-8, atol=1e-6)


def test_half_precision_is_computed_wide_and_returned_narrow():
    x, y, tx = to_bf16(100 + randn(1, 2, 5, 8), randn(2, 2, 5, 8), randn(3, 2, 5, 8))
    shift, scale, weight = randn(4, 2, 1, 8).float(), randn(5, 2, 1, 8).float(), randn(6, 8).float()
    wide = [a.double() for a in (x, y, tx, shift, scale, weight)]
    xw, yw, txw, sw, cw, ww = wide
    for op, arguments, exact in (
        (ops.modulate, (shift, scale), (sw, cw)),
        (ops.gate, (y, scale), (yw, cw)),
        (ops.add, (y,), (yw,)),
        (ops.layer_norm, (weight, weight), (ww, ww)),
        (ops.rms_norm, (weight,), (ww,)),
    ):
        out, reference = op(Dual(x, tx), *arguments), op(Dual(xw, txw), *exact)
        assert_rounded_once(out.primal, reference.primal)
        assert_rounded_once(out.tangent, reference.tangent)
        assert reference.primal.dtype == torch.float64


def test_sinusoid_is_rounded_from_fp64_and_never_below_fp32():
    t = torch.tensor([999.123], dtype=torch.float32)
    exact = ops.sinusoid(Dual(t.double(), torch.ones(1, dtype=torch.float64)), 256)
    out = ops.sinusoid(Dual(t, torch.ones(1)), 256)
    assert torch.equal(out.primal, exact.primal.float())
    assert torch.equal(out.tangent, exact.tangent.float())
    assert ops.sinusoid(t.bfloat16(), 256).dtype == torch.float32


def test_linear_casts_to_the_weight_and_nothing_else_casts():
    x = Dual(torch.randn(2, 4), torch.randn(2, 4))
    out = ops.linear(x, torch.randn(3, 4).bfloat16())
    assert out.primal.dtype == out.tangent.dtype == torch.bfloat16
    half = Dual(x.primal.bfloat16(), x.tangent.bfloat16())
    for op in (ops.gelu, ops.silu, lambda d: ops.linear_map(torch.neg, d)):
        assert op(half).primal.dtype == torch.bfloat16
        assert op(x).primal.dtype == torch.float32


def test_a_checkpointed_body_that_saves_other_tensors_for_tensors_is_an_error():
    weight = torch.randn(4, 4, requires_grad=True)

    def body(x):
        out = ops.linear(x, weight)
        return ops.silu(ops.linear(out, weight)) if isinstance(x, Dual) else ops.silu(out)

    out = checkpoint_block(body, Dual(torch.randn(2, 4), torch.randn(2, 4)))
    with pytest.raises(torch.utils.checkpoint.CheckpointError):
        out.primal.sum().backward()
