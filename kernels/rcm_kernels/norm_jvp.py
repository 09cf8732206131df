"""Residual, gate, layer norm and modulation in one pass, with a tangent; and the backward of the primal.

For each row of length D, everything but the first line optional (wan2.1.md section 15.6, d = tangent):

    r  = x + y g                      dr  = dx + dy g + y dg
    xh = (r - mean(r)) rstd           dxh = rstd (dr - mean(dr) - xh mean(xh dr))
    z  = xh f + s                     dz  = dxh f + xh df + ds          f is a weight, or 1 + scale

Arithmetic in float32; r is rounded to its dtype before the norm, so that the backward, which reads the rounded r, sees
the same xh. Bytes moved per element in half precision: 2 for each of x, dx, y, dy read and r, dr, z, dz written, and
16 / rows for the vectors g, f, s and their tangents (from L1 and L2). The backward reads dL/dr, dL/dz, r and y (2 each)
and writes dL/dx and dL/dy; the sums over rows that g, f and s need are taken per program and added in a fixed order.

A kernel is compiled for each D. `fp fusion` is off: the primal has the same bits whatever tangents come along.
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
def _pair_sum(a, b, c, d):
    return a + c, b + d


@triton.jit
def _raw(pointer, row, stride, column, mask):
    """[ROWS, BLOCK] elements of rows as they are stored; outside the mask 0."""
    at = row.to(tl.int64) * stride
    return tl.load(pointer + at[:, None] + column[None, :], mask=mask, other=0.0)


@triton.jit
def _tile(pointer, row, stride, column, mask):
    """Likewise in float32."""
    return _raw(pointer, row, stride, column, mask).to(tl.float32)


@triton.jit
def _vector(pointer, at, column, D: tl.constexpr):
    """[1, BLOCK] elements that all rows of a batch item share, in float32."""
    return tl.load(pointer + at + column[None, :], mask=(column < D)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _factor(pointer, at, column, D: tl.constexpr, ONE: tl.constexpr):
    """Likewise of the factor f, or of 1 + f."""
    f = _vector(pointer, at, column, D)
    if ONE:
        f += 1.0
    return f


@triton.jit
def _put(pointer, row, column, value, mask, D: tl.constexpr):
    at = row.to(tl.int64) * D
    tl.store(pointer + at[:, None] + column[None, :], value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def layer_norm_jvp_kernel(
    X, Y, G, F, S, TX, TY, TG, TF, TS, R, Z, TR, TZ, STATS, L,
    x_row, y_row, g_batch, f_batch, s_batch, tx_row, ty_row, tg_batch, tf_batch, ts_batch, eps,
    D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    """ROWS rows of one batch item; a pointer that is None is a part that is not there."""
    batch = tl.program_id(1)
    line = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = batch * L + line
    column = tl.arange(0, BLOCK)
    wide = (column < D)[None, :]
    mask = (line < L)[:, None] & wide
    r = _tile(X, row, x_row, column, mask)
    tr = tl.zeros([ROWS, BLOCK], tl.float32)
    if TX is not None:
        tr = _tile(TX, row, tx_row, column, mask)
    if Y is not None:
        y = _tile(Y, row, y_row, column, mask)
        if G is not None:
            g = _vector(G, batch * g_batch, column, D)
            r += y * g
            if TY is not None:
                tr += _tile(TY, row, ty_row, column, mask) * g
            if TG is not None:
                tr += y * _vector(TG, batch * tg_batch, column, D)
        else:
            r += y
            if TY is not None:
                tr += _tile(TY, row, ty_row, column, mask)
        r = r.to(R.dtype.element_ty).to(tl.float32)
        _put(R, row, column, r, mask, D)
        if TR is not None:
            _put(TR, row, column, tr, mask, D)
    if Z is not None:
        total, slope = tl.reduce((r, tr), 1, _pair_sum)
        mean = total / D
        centred = tl.where(wide, r - mean[:, None], 0.0)
        square, product = tl.reduce((centred * centred, centred * tr), 1, _pair_sum)
        rstd = tl.rsqrt(square / D + eps)
        xh = centred * rstd[:, None]
        z = xh
        if F is not None:
            f = _factor(F, batch * f_batch, column, D, ONE)
            z = xh * f
        if S is not None:
            z += _vector(S, batch * s_batch, column, D)
        _put(Z, row, column, z, mask, D)
        if TZ is not None:
            along = product * rstd / D
            tz = rstd[:, None] * (tr - (slope / D)[:, None] - xh * along[:, None])
            if F is not None:
                tz *= f
            if TF is not None:
                tz += xh * _vector(TF, batch * tf_batch, column, D)
            if TS is not None:
                tz += _vector(TS, batch * ts_batch, column, D)
            _put(TZ, row, column, tz, mask, D)
        if STATS is not None:
            tl.store(STATS + row.to(tl.int64) * 2, mean, mask=line < L)
            tl.store(STATS + row.to(tl.int64) * 2 + 1, rstd, mask=line < L)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def layer_norm_backward_kernel(
    GR, GZ, R, STATS, Y, G, F, DX, DY, SUM_G, SUM_F, SUM_S, L, chunk,
    gr_row, gz_row, r_row, y_row, g_batch, f_batch,
    D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, ONE: tl.constexpr, INPUTS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """`chunk` rows of one batch item: gradients of x and y, and this program's part of the sums for g, f and s."""
    batch = tl.program_id(1)
    program = batch * tl.num_programs(0) + tl.program_id(0)
    column = tl.arange(0, BLOCK)
    wide = (column < D)[None, :]
    first = tl.program_id(0) * chunk
    last = tl.minimum(first + chunk, L)
    sum_g = tl.zeros([ROWS, BLOCK], tl.float32)
    sum_f = tl.zeros([ROWS, BLOCK], tl.float32)
    sum_s = tl.zeros([ROWS, BLOCK], tl.float32)
    # A load inside a loop with stages is copied through shared memory anew for each row, vectors too: keep them.
    KEPT: tl.constexpr = STAGES > 1 and BLOCK <= 4096
    if KEPT:
        if F is not None:
            f = _factor(F, batch * f_batch, column, D, ONE)
        if DY is not None:
            g = _vector(G, batch * g_batch, column, D)
    for start in tl.range(first, last, ROWS, num_stages=STAGES):
        line = start + tl.arange(0, ROWS)
        row = batch * L + line
        mask = (line < last)[:, None] & wide
        # All rows are asked for before the first sum, whose barrier no load is moved across.
        if GZ is not None:
            r = _raw(R, row, r_row, column, mask)
            gz = _raw(GZ, row, gz_row, column, mask)
            at = row.to(tl.int64) * 2
            mean = tl.load(STATS + at, mask=line < last, other=0.0)
            rstd = tl.load(STATS + at + 1, mask=line < last, other=0.0)
        if GR is not None:
            gr = _raw(GR, row, gr_row, column, mask)
        if SUM_G is not None:
            y = _raw(Y, row, y_row, column, mask)
        total = tl.zeros([ROWS, BLOCK], tl.float32)
        if GZ is not None:
            # Outside the mask gz is 0, and xh meets nothing else.
            xh = (r.to(tl.float32) - mean[:, None]) * rstd[:, None]
            gz = gz.to(tl.float32)
            if SUM_S is not None:
                sum_s += gz
            if SUM_F is not None:
                sum_f += gz * xh
            if INPUTS:
                if F is not None:
                    if not KEPT:
                        f = _factor(F, batch * f_batch, column, D, ONE)
                    gz *= f
                slope, along = tl.reduce((gz, gz * xh), 1, _pair_sum)
                total = rstd[:, None] * (gz - (slope / D)[:, None] - xh * (along / D)[:, None])
        if GR is not None:
            total += gr.to(tl.float32)
        if DX is not None:
            _put(DX, row, column, total, mask, D)
        if DY is not None:
            if not KEPT:
                g = _vector(G, batch * g_batch, column, D)
            _put(DY, row, column, total * g, mask, D)
        if SUM_G is not None:
            sum_g += total * y.to(tl.float32)
    at = program.to(tl.int64) * D + column
    if SUM_G is not None:
        tl.store(SUM_G + at, tl.sum(sum_g, 0), mask=column < D)
    if SUM_F is not None:
        tl.store(SUM_F + at, tl.sum(sum_f, 0), mask=column < D)
    if SUM_S is not None:
        tl.store(SUM_S + at, tl.sum(sum_s, 0), mask=column < D)


def launch(
    x: Tensor,
    y: Tensor | None,
    g: Tensor | None,
    f: Tensor | None,
    s: Tensor | None,
    tx: Tensor | None,
    ty: Tensor | None,
    tg: Tensor | None,
    tf: Tensor | None,
    ts: Tensor | None,
    outputs: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    one: bool,
    eps: float,
) -> None:
    """Run the forward kernel.

    Args:
        x: [B, L, D], its rows evenly spaced over the whole batch; likewise y, tx, ty.
        y: Branch, or None.
        g: Gate [B, 1, D] with any batch stride, or None; likewise f, s and the tangents tg, tf, ts.
        f: Factor of the norm.
        s: Shift of the norm.
        tx: Tangents follow, each may be None.
        ty: See `tx`.
        tg: See `tx`.
        tf: See `tx`.
        ts: See `tx`.
        outputs: r, z, dr, dz contiguous [B, L, D] and the statistics [B, L, 2] float32; None is not computed.
        one: Whether the factor is 1 + f.
        eps: Added to the variance.
    """
    batch, length, dim = x.shape
    plan = forward_plan("norm", dim)
    layer_norm_jvp_kernel[(triton.cdiv(length, plan.rows), batch)](
        *(x, y, g, f, s, tx, ty, tg, tf, ts, *outputs, length),
        *(
            row_stride(x),
            row_stride(y),
            _batch(g),
            _batch(f),
            _batch(s),
            row_stride(tx),
            row_stride(ty),
            _batch(tg),
            _batch(tf),
            _batch(ts),
        ),
        eps,
        D=dim,
        BLOCK=plan.block,
        ROWS=plan.rows,
        ONE=one,
        num_warps=plan.warps,
        enable_fp_fusion=False,
    )


def launch_backward(
    grad_r: Tensor | None,
    grad_z: Tensor | None,
    r: Tensor,
    stats: Tensor | None,
    y: Tensor | None,
    g: Tensor | None,
    f: Tensor | None,
    grad_x: Tensor | None,
    grad_y: Tensor | None,
    wanted: tuple[bool, bool, bool],
    one: bool,
) -> list[Tensor | None]:
    """Run the backward kernel.

    Args:
        grad_r: Gradient of r [B, L, D], or None.
        grad_z: Gradient of z, or None.
        r: What the forward normalised.
        stats: Mean and rstd of its rows [B, L, 2]; needed with grad_z.
        y: Branch; needed for the gate's gradient.
        g: Gate [B, 1, D].
        f: Factor [B, 1, D].
        grad_x: Written, contiguous; None is not computed.
        grad_y: Written, contiguous; None is not computed (without a gate it is grad_x).
        wanted: Whether the sums for gate, factor and shift are needed.
        one: Whether the factor is 1 + f.

    Returns:
        Those sums [B, P, D] float32, still to be added over P, or None.
    """
    batch, length, dim = r.shape
    plan = backward_plan("norm", dim)
    programs, chunk = programs_and_chunk(plan, batch, length, any(wanted))
    sums = [r.new_empty(batch, programs, dim, dtype=torch.float32) if one_wanted else None for one_wanted in wanted]
    layer_norm_backward_kernel[(programs, batch)](
        *(grad_r, grad_z, r, stats, y, g, f, grad_x, grad_y, *sums, length, chunk),
        *(row_stride(grad_r), row_stride(grad_z), row_stride(r), row_stride(y), _batch(g), _batch(f)),
        D=dim,
        BLOCK=plan.block,
        ROWS=plan.rows,
        ONE=one,
        INPUTS=grad_x is not None or grad_y is not None or wanted[0],
        STAGES=plan.stages,
        num_warps=plan.warps,
        enable_fp_fusion=False,
    )
    return sums


def _batch(x: Tensor | None) -> int:
    return 0 if x is None else x.stride(0)
