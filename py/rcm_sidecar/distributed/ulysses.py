"""Ulysses: processes exchange tokens for heads, attend with a part of the heads to all tokens, and exchange back.

One all-to-all each way, forward and backward: q, k, v and their tangents in one buffer, output and tangent in another.
What backward needs is saved in the layout of the process's own tokens and exchanged again there. A recomputation that
has output and log-sum-exp therefore does not communicate.

Source: DeepSpeed-Ulysses (arXiv 2309.14509); tangents and packing are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from rcm_sidecar.dual.attention import backward_kernel, forward_kernel
from rcm_sidecar.step_clock import region_of

if TYPE_CHECKING:
    from rcm_sidecar.distributed.context_parallel import TokenShare


def forward(
    share: TokenShare,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Output and tangent of the own tokens, all [B, H, rows, d], and the lse [B, H/size, tokens] of the own heads."""
    tensors = (q, k, v, tq, tk, tv)
    exchanged = iter(_heads_for_tokens([x for x in tensors if x is not None], share))
    q, k, v, tq, tk, tv = (x if x is None else next(exchanged) for x in tensors)  # type: ignore[assignment]
    out, tangent, lse, _ = forward_kernel(q, k, v, tq, tk, tv, scale, None)
    if tangent is None:
        return _tokens_for_heads([out], share)[0], None, lse
    out, tangent = _tokens_for_heads([out, tangent], share)
    return out, tangent, lse


def backward(
    share: TokenShare, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; all [B, H, rows, d] of the own tokens, lse as `forward` returned it."""
    grad, q, k, v, out = _heads_for_tokens([grad, q, k, v, out], share)
    grad_q, grad_k, grad_v = _tokens_for_heads(backward_kernel(grad, q, k, v, out, lse, scale, None), share)
    return grad_q, grad_k, grad_v


def _heads_for_tokens(parts: Sequence[Tensor], share: TokenShare) -> tuple[Tensor, ...]:
    """Own tokens of all heads [B, H, rows, d] to all tokens of own heads [B, H/size, tokens, d], without padding."""
    first = parts[0]
    batch, heads, rows, width = first.shape
    sent = first.new_empty(share.size, len(parts), batch, rows, heads // share.size, width)
    for index, part in enumerate(parts):
        sent[:, index] = part.unflatten(1, (share.size, -1)).permute(1, 0, 3, 2, 4)
    received = _exchange(sent, share)
    whole = received.permute(1, 2, 0, 3, 4, 5).flatten(2, 3).transpose(2, 3)
    return whole[:, :, :, : share.tokens].unbind(0)


def _tokens_for_heads(parts: Sequence[Tensor], share: TokenShare) -> tuple[Tensor, ...]:
    """The inverse of `_heads_for_tokens`; padding comes back as zeros."""
    first = parts[0]
    batch, heads, tokens, width = first.shape
    sent = first.new_empty(share.size, len(parts), batch, share.rows, heads, width)
    padding = share.size * share.rows - tokens
    for index, part in enumerate(parts):
        padded = F.pad(part, [0, 0, 0, padding]) if padding else part
        sent[:, index] = padded.unflatten(2, (share.size, -1)).permute(2, 0, 3, 1, 4)
    received = _exchange(sent, share)
    return received.permute(1, 2, 3, 0, 4, 5).flatten(3, 4).transpose(2, 3).unbind(0)


def _exchange(sent: Tensor, share: TokenShare) -> Tensor:
    """Row i of `sent` [size, ...] goes to process i; row i of the result came from it."""
    received = torch.empty_like(sent)
    with region_of(share.clock, "communication"):
        dist.all_to_all_single(received, sent, group=share.group)
    return received
