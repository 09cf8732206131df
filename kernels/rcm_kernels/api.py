"""The public functions: attention with explicit tangents, and attention for code that runs under forward-mode AD."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rcm_kernels import operators
from rcm_kernels.problem import Mask, check, check_backward, check_tensors

AUTOCAST_DEVICES = ("cpu", "cuda")
NO_VMAP = "rcm_kernels: attention does not work under vmap; put the mapped dimension into the batch"


class AttentionJvp(NamedTuple):
    """What `attention_jvp` returns: out [B,H,Lq,D], tangent like it, lse [B,H,Lq] and mu [B,H,Lq]."""

    out: Tensor
    tangent: Tensor | None
    lse: Tensor
    mu: Tensor | None


def attention_jvp(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None = None,
    tk: Tensor | None = None,
    tv: Tensor | None = None,
    *,
    scale: float | None = None,
    mask: Mask = None,
) -> AttentionJvp:
    """Softmax attention and its Jacobian-vector product in one pass.

    `S = c Q K^T`, `tS = c (tQ K^T + Q tK^T)`, `P = softmax(S)`, `mu = rowsum(P tS)`, `O = P V`,
    `tO = (P tS) V + P tV - mu O`; `mu` is the tangent of the log-sum-exp (jvp-kernels.md section 1.1).

    `out` carries a gradient; `tangent`, `lse` and `mu` do not: a backward through them raises. Under autocast all
    tensors are cast to its dtype, fp64 excepted.

    Args:
        q: [B, H, Lq, D], contiguous or a view with any batch, head and row strides (on CUDA multiples of 16 bytes).
            On CUDA bf16 or fp16 with D in {32, 64, 96, 128, 256}; other dtypes, and CPU tensors, run eager.
        k: [B, H, Lk, D], Lk >= 1 and independent of Lq.
        v: [B, H, Lk, D].
        tq: Tangent of `q`. None is zero and costs nothing: with tk = tv = None 4 matrix products run instead of 6.
        tk: Tangent of `k`, or None.
        tv: Tangent of `v`, or None.
        scale: Factor of the scores, default D^-1/2.
        mask: None, "causal", or ("block-causal", tokens_per_frame): query i sees the keys of its own and earlier
            frames, `j // tokens <= i // tokens`.

    Returns:
        (out, tangent, lse, mu). out and tangent have q's dtype; lse (natural log) and mu are fp32, fp64 for fp64.
        Without any tangent, tangent and mu are None.

    Raises:
        ValueError: Shapes, dtypes, devices, strides or mask that do not fit; the message names the argument.
    """
    check_tensors(q=q, k=k, v=v, tq=tq, tk=tk, tv=tv)
    _refuse_vmap(q, k, v, tq, tk, tv)
    q, k, v, tq, tk, tv = _autocast(q, k, v, tq, tk, tv)
    problem = check(q, k, v, tq, tk, tv, scale, mask)
    if tq is None and tk is None and tv is None:
        out, lse = operators.attn(q, k, v, problem.scale, problem.frame)
        return AttentionJvp(out, None, lse, None)
    if tq is not None and tk is not None and tv is not None:
        return AttentionJvp(*operators.attn_jvp(q, k, v, tq, tk, tv, problem.scale, problem.frame))
    if tq is not None and tk is None and tv is None:
        return AttentionJvp(*operators.attn_jvp_q(q, k, v, tq, problem.scale, problem.frame))
    return AttentionJvp(*operators.attn_jvp_some(q, k, v, tq, tk, tv, problem.scale, problem.frame))


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, mask: Mask = None) -> Tensor:
    """Attention for code that is not ours: works under `torch.func.jvp` and `torch.autograd.forward_ad`.

    Outside forward mode it is attention with a gradient. Under forward mode the output is a dual tensor whose tangent
    comes from `attention_jvp`; a gradient through that tangent raises. vmap over q, k or v is refused; over tangents
    alone (`torch.func.jacfwd`) it makes one call each.

    Args:
        q: [B, H, Lq, D]; see `attention_jvp`.
        k: [B, H, Lk, D].
        v: [B, H, Lk, D].
        scale: Factor of the scores, default D^-1/2.
        mask: As in `attention_jvp`.

    Returns:
        [B, H, Lq, D].

    Raises:
        ValueError: Arguments that do not fit; the message names the argument.
    """
    check_tensors(q=q, k=k, v=v)
    _refuse_vmap(q, k, v)
    q, k, v = _autocast(q, k, v)
    problem = check(q, k, v, None, None, None, scale, mask)
    out: Tensor = _ForwardMode.apply(q, k, v, problem.scale, problem.frame)[0]  # type: ignore[no-untyped-call]
    return out


def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    scale: float | None = None,
    mask: Mask = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from the saved `out` and `lse` of `attention_jvp`, by the fastest backward there is.

    Args:
        grad: Gradient of `out`, [B, H, Lq, D], any floating point dtype.
        q: As given to the forward (under autocast: in its dtype); likewise k, v, scale, mask.
        k: See `q`.
        v: See `q`.
        out: The forward's output, in q's dtype.
        lse: The forward's log-sum-exp [B, H, Lq].
        scale: See `q`.
        mask: See `q`.

    Raises:
        ValueError: Shapes, dtypes, devices, scale or mask that do not fit; the message names the argument.
    """
    check_tensors(grad=grad, q=q, k=k, v=v, out=out, lse=lse)
    problem = check_backward(grad, q, k, v, out, lse, scale, mask)
    grads = operators.attn_backward(grad.to(q.dtype), q, k, v, out, lse, problem.scale, problem.frame)
    return grads[0], grads[1], grads[2]


class _ForwardMode(torch.autograd.Function):
    """The door for forward-mode AD; the forward is `attn`, the tangent comes from a second, fused call."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, frame: int) -> tuple[Tensor, Tensor]:
        out, lse = operators.attn(q, k, v, scale, frame)
        return out, lse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q, k, v, ctx.scale, ctx.frame = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, *output)
        ctx.save_for_forward(q, k, v, *output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_lse is not None:
            raise RuntimeError(operators.NO_GRADIENT.format(name="log-sum-exp"))
        if grad is None:
            return (None,) * 5
        q, k, v, out, lse = ctx.saved_tensors
        return (*operators.attn_backward(grad, q, k, v, out, lse, ctx.scale, ctx.frame), None, None)

    @staticmethod
    def jvp(ctx: Any, tq: Tensor | None, tk: Tensor | None, tv: Tensor | None, *_: Any) -> tuple[Tensor, Tensor]:
        q, k, v, _out, lse = ctx.saved_tensors
        _, tangent, _, mu = operators.attn_jvp_some(q, k, v, tq, tk, tv, ctx.scale, ctx.frame)
        return tangent, mu.to(lse.dtype)

    @staticmethod
    def vmap(*_: Any) -> tuple[Any, Any]:
        """Refuses mapped primals. Being there lets mapped tangents through (`torch.func.jacfwd`): one call each."""
        raise RuntimeError(NO_VMAP)


def _autocast(*tensors: Any) -> tuple[Any, ...]:
    """All tensors in autocast's dtype where it is on; fp64 is left alone, as torch does."""
    device = tensors[0].device.type
    if device not in AUTOCAST_DEVICES or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x is None or x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def _refuse_vmap(*tensors: Tensor | None) -> None:
    if torch.compiler.is_compiling():
        return
    if any(x is not None and torch._C._functorch.is_batchedtensor(x) for x in tensors):
        raise RuntimeError(NO_VMAP)
