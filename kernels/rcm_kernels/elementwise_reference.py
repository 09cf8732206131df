"""The elementwise kernels in plain torch, in at least float32: on the CPU, for float64, and what tests compare with.

Same arguments and results as the kernels' `launch`, but for the results being returned.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Optional = Tensor | None


def layer_norm(
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
) -> tuple[Optional, Optional, Optional, Optional, Optional]:
    """(r, z, dr, dz, statistics) of `norm_jvp`; r and dr are None without y, dr and dz without their tangents."""
    r, tr, dtype = widen(x), _wide_or_none(tx), x.dtype
    if y is not None:
        gate = 1 if g is None else widen(g)
        r = (r + widen(y) * gate).to(dtype)
        tr = _plus(_plus(tr, ty, gate), y, tg)
    if not norm:
        return r, None, _narrow(tr, dtype), None, None
    wide = widen(r)
    mean = wide.mean(-1, keepdim=True)
    centred = wide - mean
    rstd = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    xh = centred * rstd
    factor = None if f is None else widen(f) + 1 if one else widen(f)
    z = xh if factor is None else xh * factor
    z = z if s is None else z + widen(s)
    tz = None if tr is None else rstd * (tr - tr.mean(-1, keepdim=True) - xh * (xh * tr).mean(-1, keepdim=True))
    tz = tz if tz is None or factor is None else tz * factor
    tz = _plus(_plus(tz, tf, xh), ts, 1)
    stats = torch.cat([mean, rstd], -1)
    given = None if y is None else r
    return given, z.to(dtype), None if y is None else _narrow(tr, dtype), _spread(tz, x), stats


def layer_norm_backward(
    grad_r: Optional,
    grad_z: Optional,
    r: Tensor,
    stats: Optional,
    y: Optional,
    g: Optional,
    f: Optional,
    one: bool,
) -> tuple[Tensor, Optional, Optional, Optional, Optional]:
    """(gradient of x, of y with a gate, sums over rows for gate, factor and shift), wide; None where not defined."""
    total = torch.zeros_like(widen(r)) if grad_r is None else widen(grad_r)
    sum_f = sum_s = None
    if grad_z is not None:
        assert stats is not None
        mean, rstd = stats[..., :1], stats[..., 1:]
        xh, gz = (widen(r) - mean) * rstd, widen(grad_z)
        sum_s, sum_f = gz.sum(1, keepdim=True), (gz * xh).sum(1, keepdim=True)
        if f is not None:
            gz = gz * (widen(f) + 1 if one else widen(f))
        total = total + rstd * (gz - gz.mean(-1, keepdim=True) - xh * (xh * gz).mean(-1, keepdim=True))
    grad_y = None if g is None else total * widen(g)
    sum_g = None if y is None or g is None else (total * widen(y)).sum(1, keepdim=True)
    return total, grad_y, sum_g, sum_f, sum_s


def rms_norm(
    x: Tensor, tx: Optional, weight: Tensor, table: Optional, interleaved: bool, eps: float
) -> tuple[Tensor, Optional, Tensor]:
    """(y, dy, rstd) of `rope_jvp`; x [B, L, H, d]."""
    axes, shape, wide = _span(x, weight), _weight_shape(x, weight), widen(x)
    rstd = (wide.square().mean(axes, keepdim=True) + eps).rsqrt()
    scale = widen(weight).view(shape)
    y = rotate(wide * rstd * scale, table, interleaved).to(x.dtype)
    if tx is None:
        return y, None, rstd.flatten(2).squeeze(-1)
    ty = rotate(_project(widen(tx), wide, rstd, axes) * scale, table, interleaved)
    return y, ty.to(x.dtype), rstd.flatten(2).squeeze(-1)


def rms_norm_backward(
    grad: Tensor, x: Tensor, rstd: Tensor, weight: Tensor, table: Optional, interleaved: bool
) -> tuple[Tensor, Tensor]:
    """(gradient of x, gradient of the weight), wide."""
    axes, shape, wide = _span(x, weight), _weight_shape(x, weight), widen(x)
    r = rstd.view(*x.shape[:2], -1, 1)
    g = rotate(widen(grad), table, interleaved, back=True)
    sums = (g * wide * r).flatten(0, 1)
    sums = sums.sum(0) if weight.numel() == sums[0].numel() else sums.sum((0, 1))
    return _project(g * widen(weight).view(shape), wide, r, axes), sums.reshape(weight.shape)


def rotate(x: Tensor, table: Optional, interleaved: bool, back: bool = False) -> Tensor:
    """Rotary positions on [B, L, H, d] by the table (cos, sin) [L, d/2, 2]; `back` turns the other way."""
    if table is None:
        return x
    cos, sin = (part.unsqueeze(1) for part in table.to(x.dtype).unbind(-1))
    sin = -sin if back else sin
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    first, second = a * cos - b * sin, b * cos + a * sin
    return torch.stack([first, second], -1).flatten(-2) if interleaved else torch.cat([first, second], -1)


def activation(x: Tensor, tx: Optional, kind: str) -> tuple[Tensor, Optional]:
    """(activation(x), activation'(x) tx) of `gelu_jvp`."""
    wide = widen(x)
    if kind == "gelu_erf":
        p = 0.5 * torch.erfc(wide * -math.sqrt(0.5))
        slope = torch.exp(-0.5 * wide.square()) / math.sqrt(2 * math.pi)
    else:
        k = 2 * math.sqrt(2 / math.pi) if kind == "gelu_tanh" else 1.0
        c = 0.044715 if kind == "gelu_tanh" else 0.0
        p = torch.sigmoid(k * wide * (1 + c * wide.square()))
        slope = p * (1 - p) * k * (1 + 3 * c * wide.square())
    return (wide * p).to(x.dtype), None if tx is None else (widen(tx) * (p + wide * slope)).to(x.dtype)


def widen(x: Tensor) -> Tensor:
    """`x` in at least float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _wide_or_none(x: Optional) -> Optional:
    return None if x is None else widen(x)


def _narrow(x: Optional, dtype: torch.dtype) -> Optional:
    return None if x is None else x.to(dtype)


def _spread(x: Optional, like: Tensor) -> Optional:
    """A tangent that comes from a broadcast vector alone still has a row for each row."""
    return None if x is None else x.expand(like.shape).to(like.dtype).contiguous()


def _plus(total: Optional, a: Optional, b: Tensor | int | None) -> Optional:
    """`total + a b`, where None is zero."""
    if a is None or b is None:
        return total
    product = widen(a) * (widen(b) if isinstance(b, Tensor) else b)
    return product if total is None else total + product


def _span(x: Tensor, weight: Tensor) -> tuple[int, ...]:
    return (-2, -1) if weight.shape[0] == x.shape[2] * x.shape[3] else (-1,)


def _weight_shape(x: Tensor, weight: Tensor) -> tuple[int, int]:
    return (x.shape[2], x.shape[3]) if weight.shape[0] == x.shape[2] * x.shape[3] else (1, x.shape[3])


def _project(a: Tensor, x: Tensor, rstd: Tensor, axes: tuple[int, ...]) -> Tensor:
    return rstd * (a - x * ((x * a).mean(axes, keepdim=True) * rstd.square()))
