"""Attention with a tangent in plain torch: the eager backend, the fp64 reference and an emulation of the kernels.

    S = c Q K^T             tS = c (tQ K^T + Q tK^T)
    P = softmax(S)          mu = rowsum(P * tS)
    O = P V                 tO = (P * tS) V + P tV - mu O          lse = log sum exp S,  its tangent is mu

Everything works on blocks of query rows, so memory grows with Lk, not with Lq Lk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rcm_kernels.problem import visible_keys

SCORES_PER_BLOCK = 1 << 24


class Result(NamedTuple):
    """Output [B,H,Lq,D], its tangent, log-sum-exp [B,H,Lq] and mu [B,H,Lq], the tangent of the log-sum-exp.

    `tangent` and `mu` are None when no tangent was given.
    """

    out: Tensor
    tangent: Tensor | None
    lse: Tensor
    mu: Tensor | None


def eager(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None = None,
    tk: Tensor | None = None,
    tv: Tensor | None = None,
    *,
    scale: float,
    frame: int = 0,
) -> Result:
    """Attention and its tangent in at least fp32 (fp64 stays fp64); out and tangent in the dtype of `q`.

    Args:
        q: [B, H, Lq, D].
        k: [B, H, Lk, D].
        v: [B, H, Lk, D].
        tq: Tangent of `q`, or None for zero; likewise `tk`, `tv`.
        tk: See `tq`.
        tv: See `tq`.
        scale: Factor of the scores.
        frame: Tokens per frame of the mask, 0 for none (`rcm_kernels.problem.frame_of`).
    """
    parts = [
        _rows(q, k, v, tq, tk, tv, torch.arange(first, last, device=q.device), scale, frame)
        for first, last in _blocks(q, k)
    ]
    out = torch.cat([part.out for part in parts], dim=2).to(q.dtype)
    lse = torch.cat([part.lse for part in parts], dim=2)
    if parts[0].tangent is None:
        return Result(out, None, lse, None)
    tangent = torch.cat([_given(part.tangent) for part in parts], dim=2).to(q.dtype)
    return Result(out, tangent, lse, torch.cat([_given(part.mu) for part in parts], dim=2))


def fp64_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    rows: Tensor,
    *,
    scale: float,
    frame: int = 0,
) -> Result:
    """The reference for the query rows `rows` [n] over all keys, in fp64."""
    tq, tk, tv = (None if x is None else x.double() for x in (tq, tk, tv))
    return _rows(q.double(), k.double(), v.double(), tq, tk, tv, rows, scale, frame)


def eager_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *, scale: float, frame: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from the saved output and natural-log log-sum-exp, in at least fp32."""
    wide = _wide(q.dtype)
    keys, values = k.to(wide), v.to(wide)
    grad_k, grad_v = torch.zeros_like(keys), torch.zeros_like(values)
    grad_q = torch.empty_like(q)
    for first, last in _blocks(q, k):
        rows = torch.arange(first, last, device=q.device)
        block_q, block_grad = q[:, :, first:last].to(wide), grad[:, :, first:last].to(wide)
        scores = _masked(block_q @ keys.mT * scale, rows, frame)
        weights = torch.exp(scores - lse[:, :, first:last, None].to(wide))
        grad_v += weights.mT @ block_grad
        inner = (block_grad * out[:, :, first:last].to(wide)).sum(-1, keepdim=True)
        grad_scores = weights * (block_grad @ values.mT - inner) * scale
        grad_q[:, :, first:last] = grad_scores @ keys
        grad_k += grad_scores.mT @ block_q
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)


def emulated(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    rows: Tensor,
    *,
    scale: float,
    frame: int = 0,
    centre_keys: int = 64,
) -> Result:
    """The kernels' roundings without their order of sums: P and H rounded to the inputs' dtype, sums in fp32.

    H is centred on its row's mean over the first `centre_keys` keys and mu sums the rounded H. What a kernel adds
    beyond this is its own error; tests allow it a tenth.
    """
    low = q.dtype
    q, k, v = q.float(), k.float(), v.float()
    tq, tk, tv = (None if x is None else x.float() for x in (tq, tk, tv))
    scores = _masked(q[:, :, rows] @ k.mT * scale, rows, frame)
    top = scores.amax(-1, keepdim=True)
    p = torch.exp(scores - top)
    total = p.sum(-1, keepdim=True)
    rounded = p.to(low).float()
    out = rounded @ v / total
    tangent = torch.zeros_like(out) if tv is None else rounded @ tv / total
    mu = torch.zeros_like(total)
    score_tangent = _score_tangent(q[:, :, rows], k, None if tq is None else tq[:, :, rows], tk, scale)
    if score_tangent is not None:
        centre = score_tangent[..., :centre_keys].mean(-1, keepdim=True)
        h = (p * (score_tangent - centre)).to(low).float()
        mu = h.sum(-1, keepdim=True) / total
        tangent = tangent + h @ v / total - mu * out
        mu = mu + centre
    lse = top + total.log()
    return Result(out.to(low), tangent.to(low), lse.squeeze(-1), mu.squeeze(-1))


def merge(parts: Sequence[Result]) -> Result:
    """Combine results over disjoint sets of keys (ring attention, split keys) into the result over all of them.

    `w_a = exp(lse_a - lse)`, `O = sum w_a O_a`, `mu = sum w_a mu_a`, `tO = sum w_a (tO_a + (mu_a - mu) O_a)`, in at
    least fp32. An empty part has lse = -inf. Parts must all have a tangent or none.
    """
    lse = torch.logsumexp(torch.stack([part.lse for part in parts]), dim=0)
    wide = _wide(parts[0].out.dtype)
    weights = [torch.exp(part.lse - lse) for part in parts]
    out = torch.zeros_like(parts[0].out, dtype=wide)
    for weight, part in zip(weights, parts, strict=True):
        out += weight[..., None] * part.out.to(wide)
    if parts[0].tangent is None:
        return Result(out, None, lse, None)
    mu, tangent = torch.zeros_like(lse), torch.zeros_like(out)
    for weight, part in zip(weights, parts, strict=True):
        mu += weight * _given(part.mu)
    for weight, part in zip(weights, parts, strict=True):
        # mu_a - mu first: the rounding of a bf16 O_a must not be multiplied by all of mu_a
        shift = (_given(part.mu) - mu)[..., None]
        tangent += weight[..., None] * (_given(part.tangent).to(wide) + shift * part.out.to(wide))
    return Result(out, tangent, lse, mu)


def _given(x: Tensor | None) -> Tensor:
    if x is None:
        raise ValueError("parts: all must have a tangent, or none")
    return x


def _rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    rows: Tensor,
    scale: float,
    frame: int,
) -> Result:
    wide = _wide(q.dtype)
    q, k, v = q[:, :, rows].to(wide), k.to(wide), v.to(wide)
    scores = _masked(q @ k.mT * scale, rows, frame)
    lse = torch.logsumexp(scores, -1)
    p = torch.exp(scores - lse[..., None])
    out = p @ v
    if tq is None and tk is None and tv is None:
        return Result(out, None, lse, None)
    tangent = torch.zeros_like(out) if tv is None else p @ tv.to(wide)
    mu = torch.zeros_like(lse)
    rows_tq = None if tq is None else tq[:, :, rows].to(wide)
    score_tangent = _score_tangent(q, k, rows_tq, None if tk is None else tk.to(wide), scale)
    if score_tangent is not None:
        h = p * score_tangent
        mu = h.sum(-1)
        tangent = tangent + h @ v - mu[..., None] * out
    return Result(out, tangent, lse, mu)


def _score_tangent(q: Tensor, k: Tensor, tq: Tensor | None, tk: Tensor | None, scale: float) -> Tensor | None:
    products = []
    if tq is not None:
        products.append(tq @ k.mT)
    if tk is not None:
        products.append(q @ tk.mT)
    if not products:
        return None
    return (products[0] if len(products) == 1 else products[0] + products[1]) * scale


def _masked(scores: Tensor, rows: Tensor, frame: int) -> Tensor:
    if frame == 0:
        return scores
    keys = scores.shape[-1]
    hidden = torch.arange(keys, device=scores.device) >= visible_keys(rows, frame, keys)[:, None]
    return scores.masked_fill(hidden, -torch.inf)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _blocks(q: Tensor, k: Tensor) -> list[tuple[int, int]]:
    step = max(1, SCORES_PER_BLOCK // (q.shape[0] * q.shape[1] * k.shape[2]))
    return [(first, min(first + step, q.shape[2])) for first in range(0, q.shape[2], step)]
