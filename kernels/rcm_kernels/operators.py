"""The kernels as PyTorch operators: fake tensors, autograd of the primal, FLOP counts, forward-mode doors.

One operator a pattern of tangents, because an operator's result cannot be optional and its FLOP count must follow
from its arguments: `rcm_kernels::attn_jvp` (tangents of q, k and v), `attn_jvp_q` (of q alone: constant text),
`attn_jvp_some` (any other pattern) and `attn` (none). Selective checkpointing sees them by these names.

Only the output carries a gradient. The tangent, lse and mu do not, and asking for their gradient is an error: without
`set_materialize_grads(False)` and this check a loss on the tangent would silently get none. Under compile the check is
an assertion in the graph of the backward (`refuse_gradient`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.utils.flop_counter import register_flop_formula

from rcm_kernels.dispatch import forward, requested_backend
from rcm_kernels.plain import attention_backward
from rcm_kernels.problem import Problem, visible_pairs
from rcm_kernels.reference import Result

NO_GRADIENT = (
    "rcm_kernels.attention_jvp: the {name} has no gradient; only the output has. Detach it, or use a method that does "
    "not differentiate through a tangent."
)


def _problem(q: Tensor, k: Tensor, scale: float, frame: int) -> Problem:
    batch, heads, queries, head_dim = q.shape
    return Problem(batch, heads, queries, k.shape[2], head_dim, scale, frame)


def _distinct(result: Result, q: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _laid_as(result.out, q), _laid_as(result.tangent, q), result.lse, result.mu  # type: ignore[arg-type, return-value]


@torch.library.custom_op("rcm_kernels::attn_jvp", mutates_args=())
def attn_jvp(
    q: Tensor, k: Tensor, v: Tensor, tq: Tensor, tk: Tensor, tv: Tensor, scale: float, frame: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention and its tangent, all tangents given: (out, tangent, lse, mu)."""
    return _distinct(forward(q, k, v, tq, tk, tv, _problem(q, k, scale, frame)), q)


@torch.library.custom_op("rcm_kernels::attn_jvp_q", mutates_args=())
def attn_jvp_q(
    q: Tensor, k: Tensor, v: Tensor, tq: Tensor, scale: float, frame: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention and its tangent, k and v constant: (out, tangent, lse, mu)."""
    return _distinct(forward(q, k, v, tq, None, None, _problem(q, k, scale, frame)), q)


@torch.library.custom_op("rcm_kernels::attn_jvp_some", mutates_args=())
def attn_jvp_some(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    scale: float,
    frame: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention and its tangent, any non-empty set of tangents: (out, tangent, lse, mu)."""
    return _distinct(forward(q, k, v, tq, tk, tv, _problem(q, k, scale, frame)), q)


@torch.library.custom_op("rcm_kernels::attn", mutates_args=())
def attn(q: Tensor, k: Tensor, v: Tensor, scale: float, frame: int) -> tuple[Tensor, Tensor]:
    """Attention without tangents: (out, lse)."""
    result = forward(q, k, v, None, None, None, _problem(q, k, scale, frame))
    return _laid_as(result.out, q), result.lse


@torch.library.custom_op("rcm_kernels::attn_backward", mutates_args=())
def attn_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, frame: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v. It has no gradient itself: a second derivative raises."""
    backend = "eager" if requested_backend() == "eager" else None
    grad_q, grad_k, grad_v = attention_backward(grad, q, k, v, out, lse, scale=scale, frame=frame, backend=backend)
    grad_q = grad_q.clone() if grad_q is grad else grad_q
    return _laid_as(grad_q, q), _laid_as(grad_k, k), _laid_as(grad_v, v)


def _laid_as(result: Tensor, x: Tensor) -> Tensor:
    """`result` with the strides that the fake form promises, those of `empty_like(x)`; only eager results have others.

    Compiled code takes views by the promised strides.
    """
    if result.stride() == torch.empty_like(x, device="meta").stride():
        return result
    return torch.empty_like(x).copy_(result)


def _fake_jvp(q: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    return torch.empty_like(q), torch.empty_like(q), lse, torch.empty_like(lse)


def _fake_plain(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))


def _fake_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    q, k, v = inputs[:3]
    ctx.scale, ctx.frame = inputs[-2:]
    ctx.count = len(inputs)
    ctx.save_for_backward(q, k, v, output[0], output[-1] if len(output) == 2 else output[2])


def refuse_gradient(gradient: Tensor | None, message: str) -> None:
    """Raise RuntimeError when a result without a gradient is asked for one.

    Compile traces a backward with a gradient for every result and passes zeros for those not asked for. What it traces
    here is an assertion that they are zero; on CUDA that runs on the device, without waiting for it.
    """
    if gradient is None:
        return
    if not (torch.compiler.is_compiling() or is_fake(gradient)):
        raise RuntimeError(message)
    torch.ops.aten._assert_async.msg(gradient.eq(0).all(), message)


def _backward(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    names = ("log-sum-exp",) if len(others) == 1 else ("tangent", "log-sum-exp", "mu")
    for other, name in zip(others, names, strict=True):
        refuse_gradient(other, NO_GRADIENT.format(name=name))
    nothing = (None,) * (ctx.count - 3)
    if grad is None:
        return (None, None, None, *nothing)
    q, k, v, out, lse = ctx.saved_tensors
    return (*attn_backward(grad, q, k, v, out, lse, ctx.scale, ctx.frame), *nothing)


for _op in (attn_jvp, attn_jvp_q, attn_jvp_some):
    _op.register_fake(_fake_jvp)
    _op.register_autograd(_backward, setup_context=_save)
attn.register_fake(_fake_plain)
attn.register_autograd(_backward, setup_context=_save)
attn_backward.register_fake(_fake_backward)


def jvp_flops(q_shape: Any, k_shape: Any, frame: int, products: int) -> int:
    """2 FLOPs for each multiply-add of `products` products over the (query, key) pairs that the mask leaves."""
    batch, heads, queries, head_dim = q_shape
    return int(2 * products * batch * heads * head_dim * visible_pairs(queries, k_shape[2], frame))


@register_flop_formula(torch.ops.rcm_kernels.attn_jvp)
def _flops_jvp(q: Any, k: Any, v: Any, tq: Any, tk: Any, tv: Any, scale: float, frame: int, **_: Any) -> int:
    return jvp_flops(q, k, frame, 6)


@register_flop_formula(torch.ops.rcm_kernels.attn_jvp_q)
def _flops_jvp_q(q: Any, k: Any, v: Any, tq: Any, scale: float, frame: int, **_: Any) -> int:
    return jvp_flops(q, k, frame, 4)


@register_flop_formula(torch.ops.rcm_kernels.attn_jvp_some)
def _flops_jvp_some(q: Any, k: Any, v: Any, tq: Any, tk: Any, tv: Any, scale: float, frame: int, **_: Any) -> int:
    given = [x is not None for x in (tq, tk, tv)]
    return jvp_flops(q, k, frame, 2 + sum(given) + (given[0] or given[1]))


@register_flop_formula(torch.ops.rcm_kernels.attn)
def _flops_plain(q: Any, k: Any, v: Any, scale: float, frame: int, **_: Any) -> int:
    return jvp_flops(q, k, frame, 2)


@register_flop_formula(torch.ops.rcm_kernels.attn_backward)
def _flops_backward(grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, scale: float, frame: int, **_: Any) -> int:
    return jvp_flops(q, k, frame, 5)
