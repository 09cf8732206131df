"""Attention without a tangent by torch's own kernels: forward, and gradients from our output and log-sum-exp.

The backward is cuDNN, FlashAttention-2 or eager torch. cuDNN's, the fastest, adds parts of dQ in whatever order they
come; with `torch.use_deterministic_algorithms` FlashAttention-2 runs, which then keeps a dQ of its own for every group
of programs and adds these in order. Both fused backwards take O and the natural-log LSE of any
forward. Their masks know none and causal; a block-causal mask is one call a frame, over the keys that frame sees.

cuDNN caches a plan by the strides of q, k, v and dO but not of O, and gives silently wrong gradients when O has other
strides than the plan was built with (measured, jvp-kernels.md section 0.1). So q is brought to O's strides where they
differ: then a plan's O strides follow from its key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from rcm_kernels.problem import KERNEL_DTYPES, Problem
from rcm_kernels.reference import eager_backward

BackwardBackend: TypeAlias = Literal["cudnn", "flash", "eager"]
Gradients: TypeAlias = tuple[Tensor, Tensor, Tensor]

_aten: Any = torch.ops.aten
One: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float, bool], Gradients]


def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    scale: float,
    frame: int = 0,
    backend: BackwardBackend | None = None,
) -> Gradients:
    """Gradients of q, k and v.

    Args:
        grad: Gradient of the output, [B, H, Lq, D].
        q: [B, H, Lq, D].
        k: [B, H, Lk, D].
        v: [B, H, Lk, D].
        out: The saved output.
        lse: The saved natural-log log-sum-exp [B, H, Lq].
        scale: Factor of the scores.
        frame: Tokens per frame of the mask, 0 for none, 1 causal.
        backend: None takes `choose_backward`'s.
    """
    chosen = backend or choose_backward(q, k, frame)
    if chosen == "eager":
        return eager_backward(grad, q, k, v, out, lse, scale=scale, frame=frame)
    one = _cudnn if chosen == "cudnn" else _flash
    if frame <= 1:
        return one(grad, q, k, v, out, lse, scale, frame == 1)
    return _by_frame(one, grad, q, k, v, out, lse, scale, frame)


def has_plain_kernel(q: Tensor, k: Tensor, problem: Problem) -> bool:
    """Whether torch has a fused attention, forward and backward, for these tensors and this mask."""
    return problem.frame <= 1 and fastest(q, k, problem.frame) != "eager"


def plain_forward(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """(out, natural-log lse [B, H, Lq]) by cuDNN or FlashAttention-2; out has q's layout."""
    causal = problem.frame == 1
    if fastest(q, k, problem.frame) == "cudnn":
        out, lse, *_ = _aten._scaled_dot_product_cudnn_attention(
            q, k, v, None, True, 0.0, causal, False, scale=problem.scale
        )
        return out, lse.reshape(q.shape[:3])
    out, lse, *_ = _aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=problem.scale)
    return out, lse.reshape(q.shape[:3])


def choose_backward(q: Tensor, k: Tensor, frame: int) -> BackwardBackend:
    """The fastest backward; under deterministic algorithms the fastest one that repeats its bits."""
    backend = fastest(q, k, frame)
    return "flash" if backend == "cudnn" and torch.are_deterministic_algorithms_enabled() else backend


def fastest(q: Tensor, k: Tensor, frame: int) -> BackwardBackend:
    """The fastest kernels for these tensors: cuDNN on Hopper and newer, else FlashAttention-2, else eager."""
    head_dim = q.shape[-1]
    if not q.is_cuda or q.dtype not in KERNEL_DTYPES or torch.version.hip is not None or head_dim % 8:
        return "eager"
    if frame == 1 and q.shape[2] != k.shape[2]:  # the fused causal masks differ in which corner they start from
        return "eager"
    if torch.cuda.get_device_capability(q.device)[0] >= 9 and head_dim <= 128 and torch.backends.cudnn.enabled:
        return "cudnn"
    return "flash" if head_dim <= 256 else "eager"


def _cudnn(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, causal: bool
) -> Gradients:
    if q.stride() != out.stride():
        q = torch.empty_strided(out.shape, out.stride(), dtype=q.dtype, device=q.device).copy_(q)
    if grad.stride() != out.stride():
        grad = torch.empty_strided(out.shape, out.stride(), dtype=q.dtype, device=q.device).copy_(grad)
    unused = torch.empty(0, device=q.device, dtype=torch.int64)
    gradients: Gradients = _aten._scaled_dot_product_cudnn_attention_backward(
        grad,
        q,
        k,
        v,
        out,
        lse.unsqueeze(-1),
        unused,
        unused,
        None,  # no bias
        None,  # not packed sequences
        None,
        q.shape[2],
        k.shape[2],
        0.0,
        causal,
        scale=scale,
    )
    return gradients


def _flash(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, causal: bool
) -> Gradients:
    seed = torch.zeros(2, device=q.device, dtype=torch.uint64)
    offset = torch.zeros((), device=q.device, dtype=torch.uint64)
    gradients: Gradients = _aten._scaled_dot_product_flash_attention_backward(
        grad,
        q,
        k,
        v,
        out,
        lse,
        None,  # not packed sequences
        None,
        q.shape[2],
        k.shape[2],
        0.0,
        causal,
        seed,
        offset,
        scale=scale,
    )
    return gradients


def _by_frame(
    one: One,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    frame: int,
) -> Gradients:
    """One call a frame: its queries against the keys they see; the gradients of k and v are summed in fp32."""
    grad_q = torch.empty_like(q)
    grad_k = torch.zeros(k.shape, device=k.device, dtype=torch.float32)
    grad_v = torch.zeros(v.shape, device=v.device, dtype=torch.float32)
    for first in range(0, q.shape[2], frame):
        rows = slice(first, min(first + frame, q.shape[2]))
        end = min(first + frame, k.shape[2])
        part_q, part_k, part_v = one(
            grad[:, :, rows],
            q[:, :, rows],
            k[:, :, :end],
            v[:, :, :end],
            out[:, :, rows],
            lse[:, :, rows].contiguous(),
            scale,
            False,
        )
        grad_q[:, :, rows] = part_q
        grad_k[:, :, :end] += part_k
        grad_v[:, :, :end] += part_v
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)
