"""Primitives that push a tangent: Tensor in, the plain op; Dual in, a Dual.

Tangent rules: wan2.1.md section 15.6. Tangents are computed under no_grad, so they never enter a graph; the primal
keeps its own. Precision (design.md section 2): norms, modulation, gates and residual adds compute in at least float32
(float64 stays float64) and return the dtype of their first argument; `linear` casts its input to the weight's dtype and
nothing else casts.

Several Jacobians are symmetric (layer norm without affine, softmax, everything elementwise). There the tangent is the
op's own backward kernel applied to the input's tangent: one fused pass instead of a handful.

On a GPU the norms, gates, residual adds, rotations and activations run as fused kernels (`fused.py` decides); the code
here is the reference, and what runs on a CPU and in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rcm_sidecar.dual import fused
from rcm_sidecar.dual.attention import attention
from rcm_sidecar.dual.float32 import weights_in_use
from rcm_sidecar.dual.kept import KeptResults, kept_results
from rcm_sidecar.dual.number import Dual, DualOrTensor, join, primal_of, split, wide_dtype, widen
from rcm_sidecar.dual.product import tied_product
from rcm_sidecar.dual.rms_norm import rms_norm as _eager_rms_norm

__all__ = [
    "add",
    "attention",
    "gate",
    "gelu",
    "layer_norm",
    "linear",
    "linear_map",
    "modulate",
    "norm_modulate",
    "primal_of",
    "residual_norm",
    "rms_norm",
    "rms_norm_rope",
    "rope",
    "silu",
    "sinusoid",
    "unbind",
]

_aten = torch.ops.aten


def linear_map(fn: Callable[[Tensor], Tensor], x: DualOrTensor) -> DualOrTensor:
    """Apply a linear function of one tensor (reshape, permutation, cast, scaling) to the value and to the tangent.

    `fn` must be linear without a constant term: `fn(a + b) = fn(a) + fn(b)`.
    """
    if not isinstance(x, Dual):
        return fn(x)
    if x.tangent is None:
        return Dual(fn(x.primal), None)
    with torch.no_grad():
        tangent = fn(x.tangent)
    return Dual(fn(x.primal), tangent)


def unbind(x: DualOrTensor, dim: int) -> tuple[DualOrTensor, ...]:
    """`torch.unbind` along `dim`: a tuple of Tensors or of Duals."""
    if not isinstance(x, Dual):
        return x.unbind(dim)
    values = x.primal.unbind(dim)
    tangents = (None,) * len(values) if x.tangent is None else x.tangent.unbind(dim)
    return tuple(Dual(value, tangent) for value, tangent in zip(values, tangents, strict=True))


def linear(x: DualOrTensor, weight: Tensor, bias: Tensor | None = None, *, worth_keeping: bool = True) -> DualOrTensor:
    """`x W^T + b` over the last axis; `dy = W dx`.

    Args:
        x: [..., in]; cast to the weight's dtype, the only cast of a GEMM input anywhere.
        weight: [out, in].
        bias: [out] or None.
        worth_keeping: Whether a checkpointed block that keeps products keeps this one.

    Returns:
        [..., out] in the weight's dtype.
    """
    weight, bias = weights_in_use(weight, bias)
    value, tangent = split(x)
    value = _as(value, weight.dtype)
    kept = kept_results("product") if worth_keeping else None
    if tangent is None:
        return join(_product(value, weight, bias, kept), None, x)
    tangent = _as(tangent, weight.dtype)
    graph = torch.is_grad_enabled() and (value.requires_grad or weight.requires_grad)
    if bias is None and kept is None and not graph:
        both = fused.adjacent_halves(value, tangent)
        if both is not None:  # one product of twice the rows; with a bias, two with its addition inside are no slower
            return Dual(*F.linear(both, weight).unbind())
    out = _product(value, weight, bias, kept)
    with torch.no_grad():
        return join(out, F.linear(tangent, weight), x)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, kept: KeptResults | None) -> Tensor:
    """`F.linear`, its result kept for the recomputation of a block, or in that recomputation taken."""
    if kept is None:
        return F.linear(x, weight, bias)
    result = kept.replay("product")
    if result is None:
        with torch.no_grad():
            out = F.linear(x, weight, bias)
        kept.record("product", out)
    else:
        (out,) = result
    return tied_product(x, weight, bias, out)


def add(x: DualOrTensor, y: DualOrTensor) -> DualOrTensor:
    """`x + y` with broadcasting, in at least float32, returned in the dtype of `x` (the residual)."""
    if fused.takes_rows(x, y):
        return fused.layer_norm(x, y, norm=False)[0]
    (a, ta), (b, tb) = split(x), split(y)
    out = _as(widen(a) + widen(b), a.dtype)
    if ta is None or tb is None:
        return join(out, tb if ta is None else ta, x, y)
    with torch.no_grad():
        return join(out, widen(ta) + widen(tb), x, y)


def layer_norm(
    x: DualOrTensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-6
) -> DualOrTensor:
    """LayerNorm over the last axis; `dy = w r [dx - mean(dx) - xh mean(xh dx)]`, `xh = (x - mean) r`.

    Args:
        x: [..., D].
        weight: [D] or None for no affine part.
        bias: [D] or None.
        eps: Added to the variance.

    Returns:
        [..., D] in the dtype of `x`.
    """
    if fused.takes_rows(x, None, weight, bias):
        return fused.layer_norm(x, factor=weight, shift=bias, eps=eps)[1]
    value, tangent = split(x)
    wide, shape = widen(value), value.shape[-1:]
    affine = None if weight is None else _as(weight, wide.dtype)
    shift = None if bias is None else _as(bias, wide.dtype)
    out, mean, rstd = torch.native_layer_norm(wide, shape, affine, shift, eps)
    if tangent is not None:
        with torch.no_grad():
            # The Jacobian without affine is symmetric, so its product with dx is the backward kernel's result.
            tangent = _aten.native_layer_norm_backward(
                widen(tangent), wide, list(shape), mean, rstd, None, None, [True, False, False]
            )[0]
            if affine is not None:
                tangent = tangent * affine
    return join(_as(out, value.dtype), tangent, x)


def modulate(x: DualOrTensor, shift: DualOrTensor, scale: DualOrTensor) -> DualOrTensor:
    """`x (1 + scale) + shift`; `dz = dx (1 + c) + x dc + ds`.

    Args:
        x: [B, L, D].
        shift: Broadcasts against `x`, for example [B, 1, D].
        scale: As `shift`.

    Returns:
        [B, L, D] in the dtype of `x`.
    """
    (value, dx), (s, ds), (c, dc) = split(x), split(shift), split(scale)
    wide, factor = widen(value), 1 + widen(c)
    out = torch.addcmul(widen(s), wide, factor)
    tangent = None
    if isinstance(x, Dual) or isinstance(shift, Dual) or isinstance(scale, Dual):
        with torch.no_grad():
            tangent = _plus_product(_plus_product(ds, wide, dc), dx, factor)
    return join(_as(out, value.dtype), tangent, x, shift, scale)


def gate(x: DualOrTensor, y: DualOrTensor, g: DualOrTensor) -> DualOrTensor:
    """Gated residual `x + y g`; `dx' = dx + dy g + y dg`.

    Args:
        x: Residual [B, L, D].
        y: Branch [B, L, D].
        g: Gate, broadcasts against `y`, for example [B, 1, D].

    Returns:
        [B, L, D] in the dtype of `x`.
    """
    if fused.takes_rows(x, y, g):
        return fused.layer_norm(x, y, g, norm=False)[0]
    (value, dx), (branch, dy), (factor, dg) = split(x), split(y), split(g)
    branch, factor = widen(branch), widen(factor)
    out = torch.addcmul(widen(value), branch, factor)
    tangent = None
    if isinstance(x, Dual) or isinstance(y, Dual) or isinstance(g, Dual):
        with torch.no_grad():
            tangent = _plus_product(_plus_product(dx, dy, factor), branch, dg)
    return join(_as(out, value.dtype), tangent, x, y, g)


def norm_modulate(x: DualOrTensor, shift: DualOrTensor, scale: DualOrTensor, eps: float = 1e-6) -> DualOrTensor:
    """`modulate(layer_norm(x), shift, scale)`, one pass where it is fused (and one rounding).

    Args:
        x: [B, L, D].
        shift: Broadcasts against `x`, for example [B, 1, D].
        scale: As `shift`.
        eps: Added to the variance.

    Returns:
        [B, L, D] in the dtype of `x`.
    """
    if fused.takes_rows(x, None, shift, scale):
        return fused.layer_norm(x, factor=scale, shift=shift, one=True, eps=eps)[1]
    return modulate(layer_norm(x, eps=eps), shift, scale)


def residual_norm(
    x: DualOrTensor,
    y: DualOrTensor,
    g: DualOrTensor | None = None,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    modulation: tuple[DualOrTensor, DualOrTensor] | None = None,
    eps: float = 1e-6,
) -> tuple[DualOrTensor, DualOrTensor]:
    """A branch's end and the next one's beginning: `x' = gate(x, y, g)` (`add` without g), and x' after a norm.

    Args:
        x: Residual [B, L, D].
        y: Branch [B, L, D].
        g: Gate [B, 1, D], or None.
        weight: Of the layer norm [D], or None; not together with `modulation`.
        bias: Of the layer norm [D], or None.
        modulation: (shift, scale), each [B, 1, D], or None.
        eps: Added to the variance.

    Returns:
        (x', its norm), both [B, L, D] in the dtype of `x`.
    """
    shift, scale = (bias, weight) if modulation is None else modulation
    if fused.takes_rows(x, y, g, shift, scale):
        return fused.layer_norm(x, y, g, scale, shift, one=modulation is not None, eps=eps)
    x = add(x, y) if g is None else gate(x, y, g)
    normed = layer_norm(x, weight, bias, eps)
    return x, normed if modulation is None else modulate(normed, *modulation)


def rms_norm(x: DualOrTensor, weight: Tensor, eps: float = 1e-6) -> DualOrTensor:
    """`w x r`, `r = (mean(x^2) + eps)^-1/2` over the last axis; `dy = w r [dx - xh mean(xh dx)]`, `xh = x r`.

    Args:
        x: [..., D].
        weight: [D].
        eps: Added to the mean square.

    Returns:
        [..., D] in the dtype of `x`.
    """
    if not fused.takes_heads(x):
        return _eager_rms_norm(x, weight, eps)
    if primal_of(x).dim() == 4:
        return fused.rms_norm(x, weight, eps)
    return linear_map(lambda a: a.squeeze(2), fused.rms_norm(linear_map(lambda a: a.unsqueeze(2), x), weight, eps))


def rms_norm_rope(
    x: DualOrTensor, weight: Tensor, table: Tensor, *, interleaved: bool = True, eps: float = 1e-6
) -> DualOrTensor:
    """`rope(rms_norm(x))`, one pass where it is fused.

    Args:
        x: [B, L, H d].
        weight: [H d]: the norm spans the row, before the heads are split. [d]: it spans each head.
        table: As in `rope`; its width gives d.
        interleaved: As in `rope`.
        eps: Added to the mean square.

    Returns:
        [B, L, H, d] in the dtype of `x`.
    """
    dim = 2 * table.shape[-2]

    def heads(a: DualOrTensor) -> DualOrTensor:
        return linear_map(lambda b: b.unflatten(-1, (-1, dim)), a)

    if fused.takes_heads(x):
        return fused.rms_norm(heads(x), weight, eps, table, interleaved)
    normed = heads(rms_norm(x, weight, eps)) if weight.shape[0] != dim else rms_norm(heads(x), weight, eps)
    return rope(normed, table, interleaved=interleaved)


def gelu(x: DualOrTensor, approximate: Literal["none", "tanh"] = "tanh") -> DualOrTensor:
    """GELU, tanh form (Wan) or exact erf form (`approximate="none"`, Cosmos); `dy = gelu'(x) dx`."""
    value, tangent = split(x)
    if fused.runs_fused(value):
        return fused.activation(x, "gelu_erf" if approximate == "none" else "gelu_tanh")
    if tangent is not None:
        with torch.no_grad():
            tangent = _aten.gelu_backward(tangent, value, approximate=approximate)
    return join(F.gelu(value, approximate=approximate), tangent, x)


def silu(x: DualOrTensor) -> DualOrTensor:
    """`x sigmoid(x)`; `dy = dx sig(x) (1 + x (1 - sig(x)))`."""
    value, tangent = split(x)
    if fused.runs_fused(value):
        return fused.activation(x, "silu")
    if tangent is not None:
        with torch.no_grad():
            tangent = _aten.silu_backward(tangent, value)
    return join(F.silu(value), tangent, x)


def rope(x: DualOrTensor, table: Tensor, *, interleaved: bool = True) -> DualOrTensor:
    """Rotary position embedding, linear in `x`: the tangent is rotated as the value is.

    Args:
        x: [B, L, H, d], d even. Half precision is rotated in float32.
        table: [L, d/2, 2], (cos, sin) per position and pair, real float32 or float64.
        interleaved: True (Wan): elements 2j, 2j+1 are a pair. False (Cosmos): elements j, j + d/2.

    Returns:
        [B, L, H, d] in the dtype of `x`.
    """
    angles = torch.view_as_complex(table).unsqueeze(1)

    def rotate(a: Tensor) -> Tensor:
        wide = widen(a)
        if interleaved:
            pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
            return _as(torch.view_as_real(pairs * angles).flatten(-2), a.dtype)
        first, second = wide.chunk(2, dim=-1)
        cos, sin = angles.real, angles.imag
        return _as(torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1), a.dtype)

    return linear_map(rotate, x)


def sinusoid(t: DualOrTensor, dim: int, theta: float = 10000.0) -> DualOrTensor:
    """Time features `[cos(t w), sin(t w)]`, `w_i = theta^(-i / (dim/2))`; `d cos = -w sin dt`, `d sin = w cos dt`.

    Angles, cos and sin are computed in float64 and rounded once: in float32 the golden Jv is off by 1.7e-5.

    Args:
        t: [B] in the network's own units, float32 or float64.
        dim: Width of the result, even.
        theta: Base of the frequencies.

    Returns:
        [B, dim] in the dtype of `t`, at least float32.
    """
    value, tangent = split(t)
    half = dim // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float64, device=value.device) / half)
    angles = value.double()[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    if tangent is not None:
        with torch.no_grad():
            rates = tangent.double()[:, None] * frequencies
            tangent = torch.cat([-sin * rates, cos * rates], dim=-1)
    return join(torch.cat([cos, sin], dim=-1).to(wide_dtype(value.dtype)), tangent, t)


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)


def _plus_product(total: Tensor | None, a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """`total + a b` in at least float32, where None is zero."""
    total = None if total is None else widen(total)
    if a is None or b is None:
        return total
    a, b = widen(a), widen(b)
    return a * b if total is None else torch.addcmul(total, a, b)
