"""Ring attention: keys and values, with their tangents, go round the group; partial results are merged exactly.

For any number of heads. The transfer of the next block runs while the present one is attended to. In backward the
gradients of a block travel with it and are home after one round.

Source: Ring Attention (arXiv 2310.01889); the merge of tangents is jvp-kernels.md section 1.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from rcm_sidecar.dual.attention import backward_kernel, forward_kernel
from rcm_sidecar.dual.number import wide_dtype, widen
from rcm_sidecar.step_clock import StepClock, region_of

if TYPE_CHECKING:
    from rcm_sidecar.distributed.context_parallel import TokenShare

# Blocks and their gradients are on the way at the same time.
_BLOCK_TAG, _GRADIENT_TAG = 0, 1


@dataclass(frozen=True)
class Part:
    """Attention to some of the keys, in at least float32.

    Attributes:
        out: [B, H, Lq, d].
        tangent: As `out`, or None.
        lse: Log-sum-exp of the scores [B, H, Lq].
        mu: Tangent of `lse`, or None where it is zero.
    """

    out: Tensor
    tangent: Tensor | None
    lse: Tensor
    mu: Tensor | None


def merge(a: Part, b: Part) -> Part:
    """Attention to the keys of both: O = sum w O_a, mu = sum w mu_a, tO = sum w (tO_a + (mu_a - mu) O_a)."""
    lse = torch.logaddexp(a.lse, b.lse)
    weight_a, weight_b = (a.lse - lse).exp(), (b.lse - lse).exp()
    out = weight_a[..., None] * a.out + weight_b[..., None] * b.out
    if a.tangent is None or b.tangent is None:
        return Part(out, None, lse, None)
    tangent = weight_a[..., None] * a.tangent + weight_b[..., None] * b.tangent
    if a.mu is None or b.mu is None:
        return Part(out, tangent, lse, None)
    mu = weight_a * a.mu + weight_b * b.mu
    tangent.addcmul_((weight_a * (a.mu - mu))[..., None], a.out)
    tangent.addcmul_((weight_b * (b.mu - mu))[..., None], b.out)
    return Part(out, tangent, lse, mu)


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
    """Output and tangent [B, H, rows, d] of the own tokens [B, H, rows, d], and their lse without padding."""
    own = share.real_rows(share.rank)
    queries, query_tangent = q[:, :, :own], None if tq is None else tq[:, :, :own]
    total: Part | None = None
    block = torch.stack([x for x in (k, v, tk, tv) if x is not None])
    for step in range(share.size):
        arriving = _pass_on(block, share, _BLOCK_TAG) if step + 1 < share.size else None
        rows = share.real_rows((share.rank - step) % share.size)
        if own and rows:
            keys = iter(block[:, :, :, :rows])
            pieces = [None if x is None else next(keys) for x in (k, v, tk, tv)]
            part = _attend(queries, query_tangent, pieces, scale)
            total = part if total is None else merge(total, part)
        if arriving is not None:
            block = arriving.wait()
    return _padded(total, q, dual=not (tq is None and tk is None and tv is None))


def backward(
    share: TokenShare, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v [B, H, rows, d], summed in at least float32; `out` and `lse` are those of all keys."""
    own = share.real_rows(share.rank)
    grad, queries, out = (x[:, :, :own] for x in (grad, q, out))
    block = torch.stack([k, v])
    wide = wide_dtype(q.dtype)
    grad_q = torch.zeros_like(q, dtype=wide)
    gradients: _Arrival | None = None
    for step in range(share.size):
        arriving = _pass_on(block, share, _BLOCK_TAG) if step + 1 < share.size else None
        rows = share.real_rows((share.rank - step) % share.size)
        here = torch.zeros_like(block, dtype=wide)
        if own and rows:
            keys, values = block[:, :, :, :rows]
            part = backward_kernel(grad, queries, keys, values, out, lse, scale, None)
            grad_q[:, :, :own] += part[0]
            here[:, :, :, :rows] = torch.stack(part[1:])
        if gradients is not None:
            here += gradients.wait()
        gradients = _pass_on(here, share, _GRADIENT_TAG)
        if arriving is not None:
            block = arriving.wait()
    assert gradients is not None
    grad_k, grad_v = gradients.wait().to(q.dtype)
    return grad_q.to(q.dtype), grad_k, grad_v


def _attend(q: Tensor, tq: Tensor | None, keys: list[Tensor | None], scale: float) -> Part:
    k, v, tk, tv = keys
    assert k is not None and v is not None
    out, tangent, lse, mu = forward_kernel(q, k, v, tq, tk, tv, scale, None)
    return Part(widen(out), None if tangent is None else widen(tangent), lse, mu)


def _padded(total: Part | None, q: Tensor, *, dual: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """The result in the dtype of `q`, zeros for padding; `total` is None where all tokens are padding."""
    if total is None:
        zeros = torch.zeros_like(q)
        return zeros, zeros if dual else None, q.new_zeros(*q.shape[:2], 0, dtype=wide_dtype(q.dtype))
    padding = q.shape[2] - total.out.shape[2]

    def pad(x: Tensor) -> Tensor:
        return F.pad(x.to(q.dtype), [0, 0, 0, padding]) if padding else x.to(q.dtype)

    return pad(total.out), None if total.tangent is None else pad(total.tangent), total.lse


@dataclass(frozen=True)
class _Arrival:
    """A transfer under way; it holds what is sent until `wait`."""

    sent: Tensor
    received: Tensor
    works: list[dist.Work]
    clock: StepClock | None

    def wait(self) -> Tensor:
        """What arrived."""
        with region_of(self.clock, "communication"):
            for work in self.works:
                work.wait()
        return self.received


def _pass_on(x: Tensor, share: TokenShare, tag: int) -> _Arrival:
    """Send `x` to the next process and receive the previous one's."""
    received = torch.empty_like(x)
    following, previous = (share.rank + 1) % share.size, (share.rank - 1) % share.size
    transfers = [
        dist.P2POp(dist.isend, x, group=share.group, group_peer=following, tag=tag),
        dist.P2POp(dist.irecv, received, group=share.group, group_peer=previous, tag=tag),
    ]
    with region_of(share.clock, "communication"):
        works = dist.batch_isend_irecv(transfers)
    return _Arrival(x, received, works, share.clock)
