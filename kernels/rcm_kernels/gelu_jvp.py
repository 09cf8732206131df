"""GELU (tanh and erf form) and SiLU with a tangent, one pass; the backward is the tangent kernel on the gradient.

    SiLU       x p,  p = sigmoid(x)                            derivative  p + x p (1 - p)
    GELU tanh  x p,  p = sigmoid(2 u) = (1 + tanh u) / 2,      derivative  p + x p (1 - p) 2 u'
               u = k (x + c x^3), k = sqrt(2/pi), c = 0.044715
    GELU erf   x p,  p = (1 + erf(x / sqrt 2)) / 2             derivative  p + x exp(-x^2/2) / sqrt(2 pi)

The sigmoid keeps its relative precision in the left tail, where 1 + tanh(u) cancels. Arithmetic in float32. Bytes moved
per element in half precision: 2 for each of x and dx read, y and dy written. x alone is saved for the backward.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

KINDS = ("gelu_tanh", "gelu_erf", "silu")
BLOCK = 2048
WARPS = 4


@triton.jit
def _gate_and_slope(x, KIND: tl.constexpr):
    """(p, dp/dx) with activation(x) = x p."""
    if KIND == "gelu_erf":
        p = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
        slope = 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif KIND == "gelu_tanh":
        square = x * x
        p = tl.sigmoid(x * tl.fma(square, 0.07135481282638142, 1.5957691216057308))
        slope = p * (1.0 - p) * tl.fma(square, 0.21406443847914426, 1.5957691216057308)
    else:
        p = tl.sigmoid(x)
        slope = p * (1.0 - p)
    return p, slope


@triton.jit
def activation_jvp_kernel(X, TX, Y, TY, count, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK elements; a pointer that is None is a part that is not there."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    x = tl.load(X + at, mask=mask, other=0.0).to(tl.float32)
    p, slope = _gate_and_slope(x, KIND)
    if Y is not None:
        tl.store(Y + at, (x * p).to(Y.dtype.element_ty), mask=mask)
    if TY is not None:
        tx = tl.load(TX + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(TY + at, (tx * tl.fma(x, slope, p)).to(TY.dtype.element_ty), mask=mask)


def launch(x: Tensor, tx: Tensor | None, y: Tensor | None, ty: Tensor | None, kind: str) -> None:
    """Write activation(x) into y and activation'(x) tx into ty, where given.

    Args:
        x: Contiguous.
        tx: Like x, in any half or single precision: a tangent, or the gradient of the output.
        y: Like x, or None.
        ty: Like x, or None.
        kind: One of KINDS.
    """
    count = x.numel()
    activation_jvp_kernel[(triton.cdiv(count, BLOCK),)](
        x, tx, y, ty, count, KIND=kind, BLOCK=BLOCK, num_warps=WARPS, enable_fp_fusion=False
    )
