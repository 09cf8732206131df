"""A linear layer's product whose result is there already: what a checkpointed block needs that keeps products."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def tied_product(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """`out`, tied to what it was made of: its gradients are those of `x W^T + b`.

    Forward and recomputation build the same node with it, which saves `x` and `weight` but not `out`.

    Args:
        x: [..., in].
        weight: [out, in] in the dtype of `x`.
        bias: [out] or None.
        out: [..., out], computed without a graph.
    """
    return cast(Tensor, _Product.apply(x, weight, bias, out))  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        grad_x = (rows @ weight).unflatten(0, grad.shape[:-1]) if ctx.needs_input_grad[0] else None
        grad_weight = rows.mT @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        grad_bias = rows.sum(dim=0) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias, None
