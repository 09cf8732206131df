"""RMS norm and rotary positions in one pass, with a tangent; and the backward of the primal.

    y = w x rstd,  dy = w rstd (dx - xh mean(xh dx)),  xh = x rstd     over a whole row or over each head of it
    (a, b) -> (a cos - b sin, b cos + a sin)                           pairs (2j, 2j+1) or (j, j + d/2) of each head

A row [heads, d] is held as two tiles, the first and the second elements of its pairs, so that the rotation exchanges
nothing between threads. Arithmetic in float32, one rounding at the end. Bytes moved per element in half precision: 2
for each of x and dx read, y and dy written; weight and table come from L1 and L2 (a row has d/2 angles for all heads).
The backward reads dL/dy and x and writes dL/dx; the weight's sums are taken per program and added in a fixed order.
"""

# mypy: ignore-errors
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcm_kernels.row_plan import backward_plan, forward_plan, programs_and_chunk, row_stride

UNSPECIALIZED = ["L", "chunk"]


@triton.jit
def _load(pointer, at, head, H: tl.constexpr, SPAN: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr):
    """Both elements of the pairs of `head` [N, 1], as two [N, HALF] tiles in float32; outside 0."""
    inside = head < H
    if PAIRS:
        column = tl.arange(0, 2 * HALF)[None, :]
        both = tl.load(pointer + at + head * SPAN + column, mask=inside & (column < SPAN), other=0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(both, [head.shape[0], HALF, 2]))
    else:
        column = tl.arange(0, HALF)[None, :]
        mask = inside & (column < SPAN // 2)
        first = tl.load(pointer + at + head * SPAN + column, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(pointer + at + head * SPAN + SPAN // 2 + column, mask=mask, other=0.0).to(tl.float32)
    return first, second


@triton.jit
def _store(pointer, at, head, first, second, H: tl.constexpr, SPAN: tl.constexpr, HALF: tl.constexpr,
           PAIRS: tl.constexpr):  # fmt: skip
    inside = head < H
    element = pointer.dtype.element_ty
    if PAIRS:
        column = tl.arange(0, 2 * HALF)[None, :]
        both = tl.reshape(tl.join(first, second), [head.shape[0], 2 * HALF])
        tl.store(pointer + at + head * SPAN + column, both.to(element), mask=inside & (column < SPAN))
    else:
        column = tl.arange(0, HALF)[None, :]
        mask = inside & (column < SPAN // 2)
        tl.store(pointer + at + head * SPAN + column, first.to(element), mask=mask)
        tl.store(pointer + at + head * SPAN + SPAN // 2 + column, second.to(element), mask=mask)


@triton.jit
def _weight(W, head, H: tl.constexpr, SPAN: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr,
            FULL: tl.constexpr):  # fmt: skip
    """The weight of a row, or of the one head that all share."""
    if FULL:
        first, second = _load(W, 0, head, H, SPAN, HALF, PAIRS)
    else:
        first, second = _load(W, 0, tl.zeros([1, 1], tl.int32), H, SPAN, HALF, PAIRS)
    return first, second


@triton.jit
def _angles(TABLE, position, SPAN: tl.constexpr, HALF: tl.constexpr):
    """Cos and sin [1, HALF] of a position; the table has them side by side."""
    zero = tl.zeros([1, 1], tl.int32)
    return _load(TABLE, position * SPAN, zero, 1, SPAN, HALF, True)


@triton.jit
def _total(a, FULL: tl.constexpr):
    """Sum of [N, HALF] over the row or over each head, [1, 1] or [N, 1]."""
    heads = tl.sum(a, 1, keep_dims=True)
    return tl.sum(heads, 0, keep_dims=True) if FULL else heads


@triton.jit(do_not_specialize=UNSPECIALIZED)
def rms_norm_jvp_kernel(
    X, TX, W, TABLE, Y, TY, RSTD, L, x_row, tx_row, eps,
    H: tl.constexpr, SPAN: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr,
    FULL: tl.constexpr,
):  # fmt: skip
    """One row of H heads of SPAN elements; a pointer that is None is a part that is not there."""
    line = tl.program_id(0)
    row = (tl.program_id(1) * L + line).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    count: tl.constexpr = SPAN * H if FULL else SPAN
    a, b = _load(X, row * x_row, head, H, SPAN, HALF, PAIRS)
    rstd = tl.rsqrt(_total(a * a + b * b, FULL) / count + eps)
    wa, wb = _weight(W, head, H, SPAN, HALF, PAIRS, FULL)
    ya = a * rstd * wa
    yb = b * rstd * wb
    if TABLE is not None:
        cos, sin = _angles(TABLE, line, SPAN, HALF)
        _store(Y, row * (H * SPAN), head, ya * cos - yb * sin, yb * cos + ya * sin, H, SPAN, HALF, PAIRS)
    else:
        _store(Y, row * (H * SPAN), head, ya, yb, H, SPAN, HALF, PAIRS)
    if TY is not None:
        ta, tb = _load(TX, row * tx_row, head, H, SPAN, HALF, PAIRS)
        along = _total(a * ta + b * tb, FULL) / count * rstd * rstd
        ta = rstd * (ta - a * along) * wa
        tb = rstd * (tb - b * along) * wb
        if TABLE is not None:
            _store(TY, row * (H * SPAN), head, ta * cos - tb * sin, tb * cos + ta * sin, H, SPAN, HALF, PAIRS)
        else:
            _store(TY, row * (H * SPAN), head, ta, tb, H, SPAN, HALF, PAIRS)
    if RSTD is not None:
        if FULL:
            tl.store(RSTD + row + tl.zeros([1, 1], tl.int32), rstd)
        else:
            tl.store(RSTD + row * H + head, rstd, mask=head < H)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def rms_norm_backward_kernel(
    GY, X, RSTD, W, TABLE, DX, SUM_W, L, chunk, g_row, x_row,
    H: tl.constexpr, SPAN: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr,
    FULL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """`chunk` rows of one batch item: gradient of x, and this program's part of the weight's sum."""
    batch = tl.program_id(1)
    program = (batch * tl.num_programs(0) + tl.program_id(0)).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    count: tl.constexpr = SPAN * H if FULL else SPAN
    wa, wb = _weight(W, head, H, SPAN, HALF, PAIRS, FULL)
    sum_a = tl.zeros([HEADS, HALF], tl.float32)
    sum_b = tl.zeros([HEADS, HALF], tl.float32)
    first = tl.program_id(0) * chunk
    for line in tl.range(first, tl.minimum(first + chunk, L), num_stages=STAGES):
        row = (batch * L + line).to(tl.int64)
        a, b = _load(X, row * x_row, head, H, SPAN, HALF, PAIRS)
        ga, gb = _load(GY, row * g_row, head, H, SPAN, HALF, PAIRS)
        if TABLE is not None:
            cos, sin = _angles(TABLE, line, SPAN, HALF)
            turned = ga * cos + gb * sin
            gb = gb * cos - ga * sin
            ga = turned
        if FULL:
            rstd = tl.load(RSTD + row + tl.zeros([1, 1], tl.int32))
        else:
            rstd = tl.load(RSTD + row * H + head, mask=head < H, other=0.0)
        if SUM_W is not None:
            sum_a += ga * (a * rstd)
            sum_b += gb * (b * rstd)
        if DX is not None:
            ga *= wa
            gb *= wb
            along = _total(a * ga + b * gb, FULL) / count * rstd * rstd
            _store(DX, row * (H * SPAN), head, rstd * (ga - a * along), rstd * (gb - b * along), H, SPAN, HALF, PAIRS)
    if SUM_W is not None:
        if FULL:
            _store(SUM_W, program * (H * SPAN), head, sum_a, sum_b, H, SPAN, HALF, PAIRS)
        else:
            sum_a = tl.sum(sum_a, 0, keep_dims=True)
            sum_b = tl.sum(sum_b, 0, keep_dims=True)
            _store(SUM_W, program * SPAN, tl.zeros([1, 1], tl.int32), sum_a, sum_b, 1, SPAN, HALF, PAIRS)


def launch(
    x: Tensor,
    tx: Tensor | None,
    weight: Tensor,
    table: Tensor | None,
    outputs: tuple[Tensor, Tensor | None, Tensor | None],
    interleaved: bool,
    eps: float,
) -> None:
    """Run the forward kernel.

    Args:
        x: [B, L, H, d], heads and elements contiguous, rows evenly spaced over the whole batch; likewise tx.
        tx: Tangent of x, or None.
        weight: [H d], the norm spans the row; or [d], it spans a head.
        table: (cos, sin) [L, d/2, 2] float32 contiguous, or None for no rotation.
        outputs: y and dy, contiguous like x, and rstd [B, L] or [B, L, H] float32; None is not computed.
        interleaved: Which elements are a pair; any without a table.
        eps: Added to the mean square.
    """
    options = _options(x, weight, interleaved and table is not None)
    plan = forward_plan("rms", x.shape[2] * x.shape[3])
    rms_norm_jvp_kernel[(x.shape[1], x.shape[0])](
        *(x, tx, weight, table, *outputs, x.shape[1], row_stride(x), row_stride(tx), eps),
        **options,
        num_warps=plan.warps,
    )


def launch_backward(
    grad: Tensor,
    x: Tensor,
    rstd: Tensor,
    weight: Tensor,
    table: Tensor | None,
    grad_x: Tensor | None,
    sums: bool,
    interleaved: bool,
) -> Tensor | None:
    """Run the backward kernel.

    Args:
        grad: Gradient of y, like x.
        x: As given to the forward.
        rstd: Of the forward.
        weight: As given to the forward.
        table: As given to the forward.
        grad_x: Written, contiguous; None is not computed.
        sums: Whether the weight's gradient is needed.
        interleaved: As given to the forward.

    Returns:
        The weight's sums [P, len(weight)] float32, still to be added over P, or None.
    """
    batch, length = x.shape[:2]
    plan = backward_plan("rms", x.shape[2] * x.shape[3])
    programs, chunk = programs_and_chunk(plan, batch, length, sums)
    partial = x.new_empty(batch * programs, weight.shape[0], dtype=torch.float32) if sums else None
    options = _options(x, weight, interleaved and table is not None)
    rms_norm_backward_kernel[(programs, batch)](
        *(grad, x, rstd, weight, table, grad_x, partial, length, chunk, row_stride(grad), row_stride(x)),
        **options,
        STAGES=plan.stages,
        num_warps=plan.warps,
    )
    return partial


def _options(x: Tensor, weight: Tensor, pairs: bool) -> dict[str, object]:
    heads, span = x.shape[2:]
    padded, half = 1 << (heads - 1).bit_length(), max(8, 1 << (span // 2 - 1).bit_length())
    return {
        "H": heads,
        "SPAN": span,
        "HEADS": padded,
        "HALF": half,
        "PAIRS": pairs,
        "FULL": weight.shape[0] == heads * span,
        "enable_fp_fusion": False,
    }
