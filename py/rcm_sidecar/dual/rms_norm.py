"""RMSNorm with a tangent: a small autograd Function that saves the input and one number per row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rcm_sidecar.dual.number import DualOrTensor, join, split, widen


def rms_norm(x: DualOrTensor, weight: Tensor, eps: float = 1e-6) -> DualOrTensor:
    """`w x r`, `r = (mean(x^2) + eps)^-1/2` over the last axis; `dy = w r [dx - xh mean(xh dx)]`, `xh = x r`.

    Computed in at least float32 and rounded once, after the multiplication by the weight.

    Args:
        x: [..., D].
        weight: [D].
        eps: Added to the mean square.

    Returns:
        [..., D] in the dtype of `x`.
    """
    value, tangent = split(x)
    out, rstd = _RmsNorm.apply(value, weight, eps)  # type: ignore[no-untyped-call]
    if tangent is not None:
        with torch.no_grad():
            tangent = project(widen(tangent), widen(value), rstd) * widen(weight)
    return join(out, tangent, x)


def project(a: Tensor, x: Tensor, rstd: Tensor) -> Tensor:
    """`r [a - xh mean(xh a)]`: the Jacobian of `x r` times `a`; it is symmetric, so also its transpose times `a`."""
    mean = (x * a).mean(dim=-1, keepdim=True).mul_(rstd * rstd)
    return torch.addcmul(a, x, mean, value=-1).mul_(rstd)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        wide = widen(x)
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        rstd = (norm * norm).div_(x.shape[-1]).add_(eps).rsqrt_()
        out = (wide * rstd) * widen(weight)
        ctx.save_for_backward(x, weight, rstd)
        ctx.mark_non_differentiable(rstd)
        ctx.set_materialize_grads(False)
        return out.to(x.dtype), rstd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        if grad is None:
            return None, None, None
        x, weight, rstd = ctx.saved_tensors
        wide, grad = widen(x), widen(grad)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = project(grad * widen(weight), wide, rstd).to(x.dtype)
        if ctx.needs_input_grad[1]:
            axes = list(range(x.dim() - 1))
            grad_weight = (grad * wide * rstd).sum(dim=axes).to(weight.dtype)
        return grad_x, grad_weight, None
