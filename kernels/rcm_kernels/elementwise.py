"""What is between the products of a transformer block, each with a tangent in one pass and a fused backward.

`layer_norm_jvp` (residual, gate, norm, modulation), `rms_norm_jvp` (norm, rotary positions) and `activation_jvp`. Fused
kernels on CUDA for bf16, fp16 and fp32; plain torch for other dtypes and on the CPU. Values carry a gradient, tangents
do not: a backward through one raises. Without gradient, a value and its tangent are the two halves of one tensor.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rcm_kernels import elementwise_operators as operators
from rcm_kernels.operators import refuse_gradient
from rcm_kernels.row_plan import even_heads, even_rows

Optional = Tensor | None
Activation: TypeAlias = Literal["gelu_tanh", "gelu_erf", "silu"]

NO_GRADIENT = (
    "rcm_kernels: the tangent of {name} has no gradient; only the value has. Detach it, or use a method that does not "
    "differentiate through a tangent."
)


class LayerNormTangents(NamedTuple):
    """Tangents of the first five arguments of `layer_norm_jvp`; None is zero and costs nothing."""

    x: Optional = None
    y: Optional = None
    gate: Optional = None
    factor: Optional = None
    shift: Optional = None


class LayerNormJvp(NamedTuple):
    """What `layer_norm_jvp` returns, each [B, L, D] or None: r (with y) and z (with norm), then their tangents."""

    residual: Optional
    out: Optional
    residual_tangent: Optional
    tangent: Optional


def layer_norm_jvp(
    x: Tensor,
    y: Optional = None,
    gate: Optional = None,
    factor: Optional = None,
    shift: Optional = None,
    tangents: LayerNormTangents | None = None,
    *,
    norm: bool = True,
    one: bool = False,
    eps: float = 1e-6,
) -> LayerNormJvp:
    """`r = x + y gate`, `z = layer_norm(r) factor + shift`; formulas of the tangents: `norm_jvp.py`.

    Arithmetic in at least float32, results in the dtype of `x`.

    Args:
        x: [B, L, D], D at most 8192 for the fused kernels.
        y: Branch like `x` in any float dtype, or None: then r is x and is not returned.
        gate: [B or 1, 1, D], or None for `x + y`.
        factor: [B or 1, 1, D] or [D], or None for 1.
        shift: Like `factor`, or None for 0.
        tangents: Of these five; each shaped like what it belongs to.
        norm: Whether z is computed.
        one: The factor is 1 + `factor` (modulation).
        eps: Added to the variance.

    Raises:
        ValueError: Shapes that do not fit; the message names the argument.
    """
    tx, ty, tg, tf, ts = tangents or LayerNormTangents()
    rows = [None if a is None else _rows(a, x, n) for a, n in ((x, "x"), (y, "y"), (tx, "tx"), (ty, "ty"))]
    named = ((gate, "gate"), (factor, "factor"), (shift, "shift"), (tg, "tgate"), (tf, "tfactor"), (ts, "tshift"))
    g, f, s, tg, tf, ts = (None if a is None else _vector(a, x, n) for a, n in named)
    x, y, tx, ty = rows  # type: ignore[assignment]
    if y is None and (g is not None or not norm):
        raise ValueError("y: needed with a gate and without a norm")
    moving = ((tx, ty, tg), (tx, ty, tg, tf, ts))
    has = [any(t is not None for t in some) for some in moving]
    if _needs_graph(x, y, g, f, s):
        r, z, tr, tz = _LayerNorm.apply(x, y, g, f, s, tx, ty, tg, tf, ts, norm, one, eps)  # type: ignore[no-untyped-call]
        return LayerNormJvp(r, z, tr, tz)
    results = iter(operators.layer_norm(x, y, g, f, s, tx, ty, tg, tf, ts, norm, one, eps, False))
    r, tr = (None, None) if y is None else _halves(next(results), has[0])
    z, tz = _halves(next(results), has[1]) if norm else (None, None)
    return LayerNormJvp(r, z, tr, tz)


def rms_norm_jvp(
    x: Tensor,
    weight: Tensor,
    table: Optional = None,
    tangent: Optional = None,
    *,
    interleaved: bool = True,
    eps: float = 1e-6,
) -> tuple[Tensor, Optional]:
    """RMS norm of each row or of each of its heads, then rotary positions; see `rope_jvp.py`.

    Args:
        x: [B, L, H, d], d even, H d at most 8192 for the fused kernels.
        weight: [H d]: the norm spans the row. [d]: it spans a head.
        table: (cos, sin) [L, d/2, 2] in float32 (float64 for float64), or None for no rotation.
        tangent: Of `x`, or None.
        interleaved: Pairs are (2j, 2j + 1), else (j, j + d/2).
        eps: Added to the mean square.

    Returns:
        (y [B, L, H, d] in the dtype of `x`, its tangent or None).

    Raises:
        ValueError: Shapes that do not fit; the message names the argument.
    """
    if x.ndim != 4 or x.shape[3] % 2:
        raise ValueError(f"x: expected [batch, length, heads, even head dim], got {tuple(x.shape)}")
    if weight.shape not in ((x.shape[3],), (x.shape[2] * x.shape[3],)):
        raise ValueError(f"weight: expected one head or one row of x {tuple(x.shape)}, got {tuple(weight.shape)}")
    if table is not None and table.shape != (x.shape[1], x.shape[3] // 2, 2):
        raise ValueError(f"table: expected {(x.shape[1], x.shape[3] // 2, 2)}, got {tuple(table.shape)}")
    if tangent is not None and tangent.shape != x.shape:
        raise ValueError(f"tangent: expected the shape of x {tuple(x.shape)}, got {tuple(tangent.shape)}")
    x, tangent = even_heads(x), None if tangent is None else even_heads(tangent)
    table = None if table is None else table.contiguous()
    if _needs_graph(x, weight):
        y, ty = _RmsNorm.apply(x, tangent, weight.contiguous(), table, interleaved, eps)  # type: ignore[no-untyped-call]
        return y, ty
    pair = operators.rms_norm(x, tangent, weight.contiguous(), table, interleaved, eps, False)[0]
    y, ty = _halves(pair, tangent is not None)
    return y, ty


def activation_jvp(x: Tensor, kind: Activation, tangent: Optional = None) -> tuple[Tensor, Optional]:
    """GELU (tanh or erf form) or SiLU: (value, its tangent or None), elementwise on any shape.

    Raises:
        ValueError: A tangent of another shape.
    """
    if tangent is not None and tangent.shape != x.shape:
        raise ValueError(f"tangent: expected the shape of x {tuple(x.shape)}, got {tuple(tangent.shape)}")
    x, tangent = x.contiguous(), None if tangent is None else tangent.contiguous()
    if _needs_graph(x):
        y, ty = _Activation.apply(x, tangent, kind)  # type: ignore[no-untyped-call]
        return y, ty
    y, ty = _halves(operators.activation(x, tangent, kind, False)[0], tangent is not None)
    return y, ty


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Optional,
        g: Optional,
        f: Optional,
        s: Optional,
        tx: Optional,
        ty: Optional,
        tg: Optional,
        tf: Optional,
        ts: Optional,
        norm: bool,
        one: bool,
        eps: float,
    ) -> tuple[Optional, Optional, Optional, Optional]:
        results = operators.layer_norm(x, y, g, f, s, tx, ty, tg, tf, ts, norm, one, eps, True)
        # Taken by index: compile follows no list that changes here, and would run the rest of the block eager.
        has_r, has_tr = y is not None, y is not None and (tx is not None or ty is not None or tg is not None)
        count = has_r + norm  # values come first, then their tangents, then the statistics
        stats = results[-1] if norm else None
        r = results[0] if has_r else None
        z = results[count - 1] if norm else None
        tr = results[count] if has_tr else None
        tz = results[count + has_tr] if norm and len(results) > count + has_tr + 1 else None
        ctx.set_materialize_grads(False)
        # The same tensors in the same order with and without tangents: a recomputation has none.
        branch = y if g is not None and ctx.needs_input_grad[2] else None
        ctx.save_for_backward((x if r is None else r) if norm or g is not None else None, stats, branch, g, f)
        ctx.one = one
        ctx.dtypes = tuple(None if a is None else a.dtype for a in (y, g, f, s))
        return r, z, tr, tz

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_r: Optional, grad_z: Optional, *others: Optional) -> tuple[Optional, ...]:
        _refuse(others, "the residual", "the norm")
        r, stats, y, g, f = ctx.saved_tensors
        need_x, need_y, need_g, need_f, need_s = ctx.needs_input_grad[:5]
        if grad_r is None and grad_z is None:
            return (None,) * 13
        if grad_z is None and g is None:
            return (grad_r if need_x else None, _as(grad_r, ctx.dtypes[0]) if need_y else None, *(None,) * 11)
        plain_branch = need_y and g is None
        wanted = [
            (need_x or plain_branch) and grad_z is not None,
            need_y and g is not None,
            need_g,
            need_f and grad_z is not None,
            need_s and grad_z is not None,
        ]
        found = iter(
            operators.layer_norm_backward(grad_r, grad_z, r, stats, y, g, f, ctx.one, wanted) if any(wanted) else ()
        )
        grad_x, grad_y, *sums = (next(found) if want else None for want in wanted)
        if grad_z is None:
            grad_x = grad_r
        grad_y = grad_x if plain_branch else grad_y
        rates = (_as(one, dtype) for one, dtype in zip(sums, ctx.dtypes[1:], strict=True))
        return (grad_x if need_x else None, _as(grad_y, ctx.dtypes[0]), *rates, *(None,) * 8)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, tx: Optional, weight: Tensor, table: Optional, interleaved: bool, eps: float
    ) -> tuple[Tensor, Optional]:
        results = operators.rms_norm(x, tx, weight, table, interleaved, eps, True)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, results[-1], weight, table)
        ctx.interleaved = interleaved
        return results[0], None if tx is None else results[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Optional, *others: Optional) -> tuple[Optional, ...]:
        _refuse(others, "the norm")
        x, rstd, weight, table = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[2]]
        if grad is None:
            return (None,) * 6
        found = iter(operators.rms_norm_backward(grad, x, rstd, weight, table, ctx.interleaved, wanted))
        grad_x, grad_weight = (next(found) if want else None for want in wanted)
        return grad_x, None, _as(grad_weight, weight.dtype), None, None, None


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tx: Optional, kind: Activation) -> tuple[Tensor, Optional]:
        results = operators.activation(x, tx, kind, True)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        ctx.kind = kind
        return results[0], None if tx is None else results[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Optional, *others: Optional) -> tuple[Optional, None, None]:
        _refuse(others, "the activation")
        if grad is None:
            return None, None, None
        return operators.activation_backward(grad, ctx.saved_tensors[0], ctx.kind), None, None


def _needs_graph(*tensors: Optional) -> bool:
    return torch.is_grad_enabled() and any(a is not None and a.requires_grad for a in tensors)


def _refuse(gradients: tuple[Optional, ...], *names: str) -> None:
    for gradient, name in zip(gradients, names, strict=True):
        refuse_gradient(gradient, NO_GRADIENT.format(name=name))


def _halves(result: Tensor, dual: bool) -> tuple[Tensor, Optional]:
    return (result[0], result[1]) if dual else (result, None)


def _as(x: Optional, dtype: torch.dtype | None) -> Optional:
    return x if x is None or dtype is None or x.dtype == dtype else x.to(dtype)


def _rows(x: Tensor, like: Tensor, name: str) -> Tensor:
    """`x` [B, L, D] with rows a fixed distance apart over the whole batch; copied where it is not."""
    if x.ndim != 3 or x.shape != like.shape:
        raise ValueError(f"{name}: expected [batch, length, dim] {tuple(like.shape)}, got {tuple(x.shape)}")
    return even_rows(x)


def _vector(x: Tensor, like: Tensor, name: str) -> Tensor:
    """`x` as [B, 1, D] with contiguous rows."""
    batch, _, dim = like.shape
    if (
        x.shape[-1] != dim
        or x.ndim not in (1, 3)
        or (x.ndim == 3 and (x.shape[0] not in (1, batch) or x.shape[1] != 1))
    ):
        raise ValueError(f"{name}: expected [{dim}] or [{batch} or 1, 1, {dim}], got {tuple(x.shape)}")
    wide = x if x.ndim == 3 and x.shape[0] == batch else x.expand(batch, 1, dim)
    return wide if wide.stride(2) == 1 else wide.contiguous()
