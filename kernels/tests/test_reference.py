"""The eager backend against independent derivations, in fp64."""

import pytest
import torch
from cases import inputs, relative

from rcm_kernels import attention, attention_backward, attention_jvp, merge
from rcm_kernels.problem import frame_of, visible_keys, visible_pairs
from rcm_kernels.reference import Result, eager, emulated, fp64_rows

F64 = torch.float64
MASKS = [None, "causal", ("block-causal", 1), ("block-causal", 4), ("block-causal", 50)]
PATTERNS = ["q", "k", "v", "qk", "qv", "kv", "qkv"]


def plain(q, k, v, mask=None, scale=None):
    """Attention written another way: softmax over a boolean mask built from the definition."""
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        frame = 1 if mask == "causal" else mask[1]
        i, j = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])[None]
        scores = scores.masked_fill(j // frame > i // frame, -torch.inf)
    return torch.softmax(scores, -1) @ v


def zeros_for_none(args):
    q, k, v, *tangents = args
    return q, k, v, *(torch.zeros_like(p) if t is None else t for p, t in zip((q, k, v), tangents, strict=True))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_equals_functorch_jvp(mask, pattern):
    for queries, keys in ((9, 13), (13, 9), (1, 1), (7, 7)):
        args = inputs(2, 3, queries, keys, 16, dtype=F64, pattern=pattern)
        q, k, v, tq, tk, tv = zeros_for_none(args)
        out, tangent = torch.func.jvp(lambda *x: plain(*x, mask, 0.4), (q, k, v), (tq, tk, tv))
        result = attention_jvp(*args, mask=mask, scale=0.4)
        torch.testing.assert_close(result.out, out, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(result.tangent, tangent, rtol=1e-11, atol=1e-12)


def test_equals_central_differences():
    q, k, v, tq, tk, tv = inputs(1, 2, 33, 21, 16, dtype=F64)
    step = 1e-5
    ahead, behind = (plain(q + e * tq, k + e * tk, v + e * tv) for e in (step, -step))
    assert relative(attention_jvp(q, k, v, tq, tk, tv).tangent, (ahead - behind) / (2 * step)) < 1e-7


def test_mu_is_the_tangent_of_lse():
    q, k, v, tq, tk, tv = inputs(1, 2, 33, 21, 16, dtype=F64)
    step = 1e-5
    ahead, behind = (attention_jvp(q + e * tq, k + e * tk, v).lse for e in (step, -step))
    torch.testing.assert_close(
        attention_jvp(q, k, v, tq, tk, tv).mu, (ahead - behind) / (2 * step), atol=1e-8, rtol=1e-7
    )


def test_linear_in_the_tangents():
    q, k, v, *one = inputs(1, 2, 20, 30, 16, dtype=F64)
    two = inputs(1, 2, 20, 30, 16, dtype=F64, seed=50)[3:]
    both = attention_jvp(q, k, v, *(2.0 * a - 3.0 * b for a, b in zip(one, two, strict=True))).tangent
    parts = 2.0 * attention_jvp(q, k, v, *one).tangent - 3.0 * attention_jvp(q, k, v, *two).tangent
    torch.testing.assert_close(both, parts)


def test_only_values_move():
    q, k, v, _, _, tv = inputs(1, 2, 20, 30, 16, dtype=F64)
    result = attention_jvp(q, k, v, tv=tv)
    torch.testing.assert_close(result.tangent, plain(q, k, tv))
    assert torch.count_nonzero(result.mu) == 0


def test_one_vector_added_to_all_tangent_keys_moves_nothing():
    q, k, v, *_ = inputs(1, 2, 20, 30, 16, dtype=F64)
    shift = torch.randn(1, 2, 1, 16, dtype=F64).expand_as(k).contiguous()
    assert attention_jvp(q, k, v, tk=shift).tangent.abs().max() < 1e-13


def test_key_shift_permutation_and_constant_values():
    q, k, v, tq, tk, tv = inputs(1, 2, 20, 30, 16, dtype=F64)
    base = attention_jvp(q, k, v, tq, tk, tv)
    shifted = attention_jvp(q, k + torch.randn(1, 2, 1, 16, dtype=F64), v, None, tk, tv)
    torch.testing.assert_close(shifted.tangent, attention_jvp(q, k, v, None, tk, tv).tangent)
    order = torch.randperm(30)
    mixed = attention_jvp(q, k[:, :, order], v[:, :, order], tq, tk[:, :, order], tv[:, :, order])
    for a, b in zip(base, mixed, strict=True):
        torch.testing.assert_close(a, b)
    same = v[:, :, :1].expand_as(v)
    constant = attention_jvp(q, k, same, tq, tk, tv)
    torch.testing.assert_close(constant.out, same[:, :, :1].expand_as(constant.out))
    torch.testing.assert_close(constant.tangent, plain(q, k, tv))


def test_missing_tangents_equal_zero_tangents_and_primal_bits_do_not_change():
    args = inputs(2, 2, 20, 30, 16, dtype=torch.float32, pattern="q")
    full = attention_jvp(*zeros_for_none(args))
    cheap = attention_jvp(*args)
    torch.testing.assert_close(cheap.tangent, full.tangent)
    assert torch.equal(cheap.out, full.out) and torch.equal(cheap.out, attention_jvp(*args[:3]).out)
    assert attention_jvp(*args[:3]).tangent is None and attention_jvp(*args[:3]).mu is None


@pytest.mark.parametrize("cuts", [(10, 20), (1, 29), (7, 8, 9)])
def test_merge_of_parts_in_any_order(cuts):
    q, k, v, tq, tk, tv = inputs(1, 2, 20, 30, 16, dtype=F64)
    k = k * 30  # maxima of the parts far apart
    whole = attention_jvp(q, k, v, tq, tk, tv)
    bounds = [0, *cuts, 30]
    parts = [
        Result(*attention_jvp(q, k[:, :, a:b], v[:, :, a:b], tq, tk[:, :, a:b], tv[:, :, a:b]))
        for a, b in zip(bounds, bounds[1:], strict=False)
    ]
    empty = Result(*(torch.zeros_like(x) for x in parts[0]))._replace(lse=torch.full_like(parts[0].lse, -torch.inf))
    for order in (parts, parts[::-1], [empty, *parts]):
        for a, b in zip(merge(order), whole, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_blocks_of_rows_give_the_same_result(monkeypatch):
    args = inputs(1, 2, 50, 30, 16, dtype=F64)
    whole = eager(*args, scale=0.25, frame=7)
    monkeypatch.setattr("rcm_kernels.reference.SCORES_PER_BLOCK", 600)
    for a, b in zip(eager(*args, scale=0.25, frame=7), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)
    rows = torch.tensor([0, 3, 49])
    for a, b in zip(fp64_rows(*args, rows, scale=0.25, frame=7), whole, strict=True):
        torch.testing.assert_close(a, b[:, :, rows])


@pytest.mark.parametrize("mask", MASKS)
def test_backward_equals_autograd(mask):
    q, k, v, *_ = inputs(2, 2, 11, 9, 16, dtype=F64)
    grad = torch.randn(2, 2, 11, 16, dtype=F64)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    expected = torch.autograd.grad(plain(*leaves, mask), leaves, grad)
    result = attention_jvp(q, k, v, mask=mask)
    for a, b in zip(attention_backward(grad, q, k, v, result.out, result.lse, mask=mask), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_emulation_is_close_and_centring_helps():
    """The input family of section 4.6 where the plain form is worst: only tQ moves, K and V have means."""
    q, k, v, tq, _, _ = inputs(1, 1, 256, 2048, 64, dtype=torch.float32, pattern="q")
    k, v, tq = k + torch.randn(1, 1, 1, 64), v + torch.randn(1, 1, 1, 64), 10 * tq
    low = [x.bfloat16() for x in (q, k, v, tq)]
    rows = torch.arange(256)
    exact = fp64_rows(*low, None, None, rows, scale=0.125).tangent
    centred = emulated(*low, None, None, rows, scale=0.125).tangent
    assert relative(centred, exact) < 4e-3


@pytest.mark.parametrize("queries,keys,frame", [(10, 7, 0), (10, 7, 1), (7, 10, 3), (50, 21, 8), (5, 5, 100)])
def test_visible_pairs_counts_the_mask(queries, keys, frame):
    assert visible_pairs(queries, keys, frame) == int(visible_keys(torch.arange(queries), frame, keys).sum())


def test_forward_mode_doors():
    q, k, v, tq, tk, tv = inputs(1, 2, 12, 15, 16, dtype=F64)
    expected = torch.func.jvp(plain, (q, k, v), (tq, tk, tv))
    got = torch.func.jvp(attention, (q, k, v), (tq, tk, tv))
    torch.testing.assert_close(got, expected)
    partial = torch.func.jvp(lambda x: plain(x, k, v), (q,), (tq,))
    with torch.autograd.forward_ad.dual_level():
        dual = attention(torch.autograd.forward_ad.make_dual(q, tq), k, v)
        torch.testing.assert_close(tuple(torch.autograd.forward_ad.unpack_dual(dual)), partial)


@pytest.mark.parametrize("mask,frame", [(None, 0), ("causal", 1), (("block-causal", 5), 5), (["block-causal", 2], 2)])
def test_masks_are_understood(mask, frame):
    assert frame_of(mask) == frame
