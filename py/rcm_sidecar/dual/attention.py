"""Attention with a tangent, a backward from the saved output and log-sum-exp, and the seam for fused kernels.

`runs_fused`, `forward_kernel` and `backward_kernel` are the only places that decide how attention is computed.
Everything else (autograd, Duals, what a checkpoint keeps) is the same for eager code and fused kernels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rcm_sidecar.dual.kept import kept_results
from rcm_sidecar.dual.number import Dual, DualOrTensor, join, split, widen

Mask: TypeAlias = None | Literal["causal"] | tuple[Literal["block-causal"], int]

KERNELS_VARIABLE = "RCM_KERNELS_ATTENTION"
FUSED_HEAD_DIMS = (32, 64, 96, 128, 256)

# Below this many scores per head, one batched product per step beats the tiled kernel behind torch's own attention
# (measured on a CPU at 16 tokens: 0.37 ms against 0.52 forward, 0.4 against 1.2 backward).
SMALL_SCORES = 128 * 128

# More scores than these (2 GiB in float32) are computed some rows at a time: a video in float32 has 10^10.
LARGEST_SCORES = 1 << 29

_aten = torch.ops.aten


class SharedAttention(Protocol):
    """Attention among tokens that several processes share, each with a part of them (`distributed.context_parallel`).

    All processes call it together. Tensors hold the process's own tokens: [B, H, n, d].
    """

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        tq: Tensor | None,
        tk: Tensor | None,
        tv: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Output, its tangent and the log-sum-exp `attend_backward` needs, as `forward_kernel` without a mask."""
        ...

    def attend_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v, as `backward_kernel`."""
        ...


def attention(
    q: DualOrTensor,
    k: DualOrTensor,
    v: DualOrTensor,
    *,
    scale: float | None = None,
    mask: Mask = None,
    share: SharedAttention | None = None,
) -> DualOrTensor:
    """Softmax attention; `tS = (dQ K^T + Q dK^T) a`, `dO = P dV + (P*tS) V - rowsum(P*tS) O`.

    Args:
        q: [B, H, Lq, d].
        k: [B, H, Lk, d]; a Tensor (text keys) costs no tangent products.
        v: [B, H, Lk, d].
        scale: Factor of the scores, default d^-1/2.
        mask: None, "causal" or ("block-causal", tokens_per_frame); query i sees keys j <= i, or keys of the same and
            earlier frames.
        share: Where the tokens are shared by several processes: how these attend to each other's tokens. Without mask.

    Returns:
        [B, H, Lq, d] in the dtype of `q`.
    """
    if share is not None and mask is not None:
        raise ValueError("attention among the tokens of several processes knows no mask")
    (qp, tq), (kp, tk), (vp, tv) = split(q), split(k), split(v)
    factor = 1.0 / math.sqrt(qp.shape[-1]) if scale is None else scale
    dual = isinstance(q, Dual) or isinstance(k, Dual) or isinstance(v, Dual)
    kept = kept_results()
    large = qp.shape[-2] * kp.shape[-2] > SMALL_SCORES
    if large and not dual and kept is None and share is None and not runs_fused(qp):
        allowed = None if mask is None else allowed_keys(mask, qp.shape[-2], kp.shape[-2], qp.device)
        return F.scaled_dot_product_attention(qp, kp, vp, attn_mask=allowed, scale=factor)
    tangent = None
    result = None if kept is None else kept.replay("attention")
    if result is None:
        with torch.no_grad():
            if share is None:
                out, tangent, lse, _ = forward_kernel(qp, kp, vp, tq, tk, tv, factor, mask)
            else:
                out, tangent, lse = share.attend(qp, kp, vp, tq, tk, tv, factor)
        if kept is not None:
            kept.record("attention", out, lse)
    else:
        out, lse = result
    if torch.is_grad_enabled():
        out = _Attention.apply(qp, kp, vp, out, lse, factor, mask, share)  # type: ignore[no-untyped-call]
    return join(out, tangent, q, k, v)


def runs_fused(q: Tensor) -> bool:
    """Whether `rcm_kernels` computes attention of `q`.

    On a CPU the explicit rules below are faster at small sizes; heads of other widths than the kernels take run by
    them everywhere.
    """
    return q.is_cuda and q.dtype in (torch.bfloat16, torch.float16) and q.shape[-1] in FUSED_HEAD_DIMS


def choose_kernels(name: Literal["auto", "hopper", "triton", "eager"]) -> None:
    """Let all attention of this process run on the kernels of `compute.attention`; auto leaves the choice to dispatch.

    The choice is kept where `rcm_kernels` reads it, in the environment, because gradients are computed on threads of
    their own and a recomputation has to run on the same kernels as the forward.
    """
    if name != "auto":
        os.environ[KERNELS_VARIABLE] = name


def forward_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    scale: float,
    mask: Mask,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Output, log-sum-exp and their tangents, without gradient: fused kernels on a GPU, plain torch elsewhere.

    Shapes as in `attention`; any tangent may be None. Returns (out [B,H,Lq,d], tangent, lse [B,H,Lq], mu): `mu`
    [B,H,Lq] is the tangent of the log-sum-exp. Without tangents of the inputs, `tangent` and `mu` are None; without
    those of q and k, `mu` may be None.
    """
    if runs_fused(q):
        from rcm_kernels import attention_jvp

        result = attention_jvp(q, k, v, tq, tk, tv, scale=scale, mask=mask)
        return result.out, result.tangent, result.lse, result.mu
    return eager_forward(q, k, v, tq, tk, tv, scale, mask)


def backward_kernel(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, mask: Mask
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from the saved output and log-sum-exp: cuDNN's or FA2's kernel on a GPU."""
    if runs_fused(q):
        from rcm_kernels import attention_backward

        gradients: tuple[Tensor, Tensor, Tensor] = attention_backward(grad, q, k, v, out, lse, scale=scale, mask=mask)
        return gradients
    return eager_backward(grad, q, k, v, out, lse, scale, mask)


def eager_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    scale: float,
    mask: Mask,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """`forward_kernel` in plain torch, in at least float32; without a mask it holds at most `LARGEST_SCORES` scores."""
    rows = max(1, LARGEST_SCORES // (q.shape[0] * q.shape[1] * k.shape[-2]))
    if mask is None and rows < q.shape[-2]:
        parts = [
            eager_forward(part, k, v, tangent, tk, tv, scale, mask)
            for part, tangent in zip(q.split(rows, -2), _split_rows(tq, q.shape[-2], rows), strict=True)
        ]
        outs, tangents, lses, mus = zip(*parts, strict=True)
        return torch.cat(outs, -2), _joined_rows(tangents, -2), torch.cat(lses, -1), _joined_rows(mus, -1)
    heads = q.shape[:2]
    q3, k3, v3 = _matrices(q), _matrices(k), _matrices(v)
    scores = _masked(_scores(q3, k3, scale), mask)
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.softmax(scores, dim=-1)
    out = torch.bmm(weights, v3)
    tangent, mu = None, None
    if tq is not None or tk is not None:
        score_tangent = None if tq is None else _scores(_matrices(tq), k3, scale)
        if tk is not None:
            score_tangent = _scores(q3, _matrices(tk), scale, score_tangent)
        # P * (tS - rowsum(P * tS)): softmax has a symmetric Jacobian, so this is its backward kernel.
        weight_tangent = _aten._softmax_backward_data(score_tangent, weights, -1, weights.dtype)
        tangent = torch.bmm(weight_tangent, v3)
        mu = torch.linalg.vecdot(weights, score_tangent).unflatten(0, heads)
    if tv is not None:
        tv3 = _matrices(tv)
        tangent = torch.bmm(weights, tv3) if tangent is None else torch.baddbmm(tangent, weights, tv3)
    narrow = None if tangent is None else tangent.to(q.dtype).unflatten(0, heads)
    return out.to(q.dtype).unflatten(0, heads), narrow, lse.unflatten(0, heads), mu


def eager_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, mask: Mask
) -> tuple[Tensor, Tensor, Tensor]:
    """`backward_kernel` in plain torch, in at least float32; holds the whole score matrix."""
    heads = q.shape[:2]
    q3, k3, v3, grad3 = _matrices(q), _matrices(k), _matrices(v), _matrices(grad)
    weights = _masked(_scores(q3, k3, scale), mask).sub_(lse.flatten(0, 1).unsqueeze(-1)).exp_()
    grad_v = torch.bmm(weights.mT, grad3)
    rows = (grad3 * _matrices(out)).sum(dim=-1, keepdim=True)
    grad_scores = torch.bmm(grad3, v3.mT).sub_(rows).mul_(weights)
    grad_q = _scaled_bmm(grad_scores, k3, scale)
    grad_k = _scaled_bmm(grad_scores.mT, q3, scale)
    return tuple(g.to(q.dtype).unflatten(0, heads) for g in (grad_q, grad_k, grad_v))


def _matrices(x: Tensor) -> Tensor:
    """[B, H, L, d] as contiguous [B H, L, d] in at least float32."""
    return widen(x).contiguous().flatten(0, 1)


def _split_rows(x: Tensor | None, length: int, rows: int) -> Sequence[Tensor | None]:
    return [None] * -(-length // rows) if x is None else x.split(rows, -2)


def _joined_rows(parts: Sequence[Tensor | None], dim: int) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present, dim) if present else None


def _scores(q: Tensor, k: Tensor, scale: float, plus: Tensor | None = None) -> Tensor:
    """`scale q k^T (+ plus)` of [N, L, d] matrices."""
    if plus is None:
        return _scaled_bmm(q, k.mT, scale)
    return torch.baddbmm(plus, q, k.mT, alpha=scale)


def _scaled_bmm(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """`scale a b`, the factor applied inside the product."""
    return torch.baddbmm(a.new_zeros(1, 1, 1), a, b, beta=0, alpha=scale)


def allowed_keys(mask: Mask, queries: int, keys: int, device: torch.device) -> Tensor:
    """Boolean [queries, keys]: True where a query may look at a key."""
    row = torch.arange(queries, device=device)[:, None]
    column = torch.arange(keys, device=device)[None, :]
    if mask is None:
        return torch.ones(queries, keys, dtype=torch.bool, device=device)
    if mask == "causal":
        return column <= row
    kind, tokens = mask
    if kind != "block-causal" or tokens < 1:
        raise ValueError(f"unknown attention mask {mask!r}")
    return column // tokens <= row // tokens


def _masked(scores: Tensor, mask: Mask) -> Tensor:
    if mask is None:
        return scores
    allowed = allowed_keys(mask, scores.shape[-2], scores.shape[-1], scores.device)
    return scores.masked_fill_(~allowed, -torch.inf)


class _Attention(torch.autograd.Function):
    """Ties an already computed output to q, k and v, so that forward and recomputation build the same graph node."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        scale: float,
        mask: Mask,
        share: SharedAttention | None,
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.scale, ctx.mask, ctx.share = scale, mask, share
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        if ctx.share is None:
            grads = backward_kernel(grad, q, k, v, out, lse, ctx.scale, ctx.mask)
        else:
            grads = ctx.share.attend_backward(grad, q, k, v, out, lse, ctx.scale)
        return *(g if needed else None for g, needed in zip(grads, ctx.needs_input_grad, strict=False)), *(None,) * 5
