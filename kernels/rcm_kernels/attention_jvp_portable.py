"""Attention with a tangent as a portable Triton kernel: primal and tangent in one pass over the keys.

Two accumulators, O and T = P tV + (P * tS) V, share the online softmax's single rescaling factor; mu O is taken off at
the end (the spec's section 1.2). Runs on every GPU Triton compiles for and in Triton's interpreter; on Hopper
`attention_jvp_hopper` is faster.

Tensors are [B, H, L, D] with any batch, head and row strides (multiples of 16 bytes). Lengths are run-time values: no
length recompiles anything. Rows outside a tensor are read as zeros and never written.
"""

# mypy: ignore-errors
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from rcm_kernels.problem import Problem
from rcm_kernels.reference import Result

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# Two values in one packed conversion, and the rounded values back in fp32 by shifts. The plain casts to bf16 and back
# compile to one conversion a value on the unit that also computes exp2.
ROUND_BF16 = tl.constexpr("cvt.rn.bf16x2.f32 $0, $4, $3; shl.b32 $1, $0, 16; and.b32 $2, $0, 0xffff0000;")


@triton.jit
def _rounded(h, dtype: tl.constexpr, PTX: tl.constexpr):
    """(h in `dtype`, the same values in fp32)."""
    if PTX and dtype == tl.bfloat16:
        low, wide = tl.inline_asm_elementwise(
            ROUND_BF16, "=r,=f,=f,f,f", [h], dtype=(tl.bfloat16, tl.float32), is_pure=True, pack=2
        )
    else:
        low = h.to(dtype)
        wide = low.to(tl.float32)
    return low, wide


@triton.jit
def _rows(desc, b, h, n, N: tl.constexpr, D: tl.constexpr):
    return desc.load([b, h, n, 0]).reshape(N, D)


@triton.jit
def _step(q, tq, dk, dv, dtk, dtv, b, h, n, row0, Lq, Lk, frame, exp_scale, scale, c, m, l, mu, o, t,
          BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, EDGE: tl.constexpr, MASKED: tl.constexpr,
          HAS_TQ: tl.constexpr, HAS_TK: tl.constexpr, HAS_TV: tl.constexpr, PRECISION: tl.constexpr,
          PTX: tl.constexpr):  # fmt: skip
    k = _rows(dk, b, h, n, BN, D)
    s = tl.dot(q, k.T, input_precision=PRECISION)
    if HAS_TQ:
        ts = tl.dot(tq, k.T, input_precision=PRECISION)
    if HAS_TK:
        tk = _rows(dtk, b, h, n, BN, D)
        if HAS_TQ:  # one accumulator: [tQ | Q] [K | tK]^T
            ts = tl.dot(q, tk.T, ts, input_precision=PRECISION)
        else:
            ts = tl.dot(q, tk.T, input_precision=PRECISION)
    if EDGE:  # some key of this step is hidden from some row
        column = n + tl.arange(0, BN)
        if MASKED:
            rows = tl.minimum(row0 + tl.arange(0, BM), Lq - 1)
            limit = tl.minimum((rows // frame + 1) * frame, Lk)
            s = tl.where(column[None, :] < limit[:, None], s, -float("inf"))
        else:
            s = tl.where((column < Lk)[None, :], s, -float("inf"))
    top = tl.maximum(m, tl.max(s, 1) * exp_scale)
    p = tl.math.exp2(s * exp_scale - top[:, None])
    a = tl.math.exp2(m - top)
    l = l * a + tl.sum(p, 1)
    o = o * a[:, None]
    v = _rows(dv, b, h, n, BN, D)
    low_p = p.to(v.dtype)
    o = tl.dot(low_p, v, o, input_precision=PRECISION)
    if HAS_TQ or HAS_TK or HAS_TV:
        t = t * a[:, None]
    if HAS_TV:
        tv = _rows(dtv, b, h, n, BN, D)
        t = tl.dot(low_p, tv, t, input_precision=PRECISION)
    if HAS_TQ or HAS_TK:
        # Masked keys have p = 0. Any row constant c may be taken off tS: it cancels in T - mu O.
        low_h, wide_h = _rounded(p * (ts * scale - c[:, None]), v.dtype, PTX)
        mu = mu * a + tl.sum(wide_h, 1)  # of the rounded H that the products see: errors cancel
        t = tl.dot(low_h, v, t, input_precision=PRECISION)
    return top, l, mu, o, t


@triton.jit
def _centre(q, tq, dk, dtk, b, h, Lk, BN: tl.constexpr, D: tl.constexpr, HAS_TQ: tl.constexpr, HAS_TK: tl.constexpr):
    """Mean of tS / scale over the first BN keys, for each row."""
    c = tl.sum(q.to(tl.float32), 1) * 0
    share = 1.0 / tl.minimum(Lk, BN).to(tl.float32)  # rows past the end are read as zeros
    if HAS_TQ:
        mean_k = tl.sum(_rows(dk, b, h, 0, BN, D).to(tl.float32), 0) * share
        c += tl.sum(tq.to(tl.float32) * mean_k[None, :], 1)
    if HAS_TK:
        mean_tk = tl.sum(_rows(dtk, b, h, 0, BN, D).to(tl.float32), 0) * share
        c += tl.sum(q.to(tl.float32) * mean_tk[None, :], 1)
    return c


@triton.jit(do_not_specialize=["H", "Lq", "Lk", "tiles_per_head", "frame"])
def attention_jvp_kernel(dq, dk, dv, dtq, dtk, dtv, d_out, d_tangent, LSE, MU, scale, H, Lq, Lk, tiles_per_head, frame,
                         D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, HAS_TQ: tl.constexpr,
                         HAS_TK: tl.constexpr, HAS_TV: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
                         PTX: tl.constexpr):  # fmt: skip
    """One program per BM query rows of one head. `frame` counts only with MASKED."""
    HAS_TS: tl.constexpr = HAS_TQ or HAS_TK
    index = tl.program_id(0)
    bh = index // tiles_per_head
    tile = index % tiles_per_head
    if MASKED:  # rows with the most keys first
        tile = tiles_per_head - 1 - tile
    b = bh // H
    h = bh % H
    row0 = tile * BM
    q = _rows(dq, b, h, row0, BM, D)
    tq = q
    if HAS_TQ:
        tq = _rows(dtq, b, h, row0, BM, D)
    m = tl.full([BM], -float("inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    mu = tl.zeros([BM], tl.float32)
    c = tl.zeros([BM], tl.float32)
    o = tl.zeros([BM, D], tl.float32)
    t = tl.zeros([BM, D], tl.float32)
    if HAS_TS:
        c = _centre(q, tq, dk, dtk, b, h, Lk, BN, D, HAS_TQ, HAS_TK) * scale
    end = Lk
    free = Lk  # keys below this one are seen by all rows
    if MASKED:
        end = tl.minimum((tl.minimum(row0 + BM, Lq) - 1) // frame * frame + frame, Lk)
        free = tl.minimum(row0 // frame * frame + frame, Lk)
    exp_scale = scale * LOG2E
    whole = free // BN * BN
    for n in tl.range(0, whole, BN):
        m, l, mu, o, t = _step(q, tq, dk, dv, dtk, dtv, b, h, n, row0, Lq, Lk, frame, exp_scale, scale, c,
                               m, l, mu, o, t, BM, BN, D, False, MASKED, HAS_TQ, HAS_TK, HAS_TV,
                               PRECISION, PTX)  # fmt: skip
    for n in tl.range(whole, end, BN, num_stages=1):
        m, l, mu, o, t = _step(q, tq, dk, dv, dtk, dtv, b, h, n, row0, Lq, Lk, frame, exp_scale, scale, c,
                               m, l, mu, o, t, BM, BN, D, True, MASKED, HAS_TQ, HAS_TK, HAS_TV,
                               PRECISION, PTX)  # fmt: skip
    inverse = 1.0 / l
    mu = mu * inverse
    o = o * inverse[:, None]
    d_out.store([b, h, row0, 0], o.to(q.dtype).reshape(1, 1, BM, D))
    rows = row0 + tl.arange(0, BM)
    at = bh.to(tl.int64) * Lq + rows
    tl.store(LSE + at, (m + tl.math.log2(l)) * LN2, mask=rows < Lq)
    if HAS_TS or HAS_TV:
        t = t * inverse[:, None]
        if HAS_TS:
            t = t - mu[:, None] * o
        d_tangent.store([b, h, row0, 0], t.to(q.dtype).reshape(1, 1, BM, D))
        tl.store(MU + at, mu + c, mask=rows < Lq)


def describe(x: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """How tiles of [rows, columns] are read from and written to a [B, H, L, D] tensor."""
    return TensorDescriptor(x, list(x.shape), row_strides(x), [1, 1, rows, columns])


def row_strides(x: Tensor) -> list[int]:
    """Strides of `x` in elements; those of dimensions of size 1, which mean nothing, replaced by a valid one."""
    return [16 if size == 1 else stride for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True)] + [1]


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    problem: Problem,
    *,
    block_rows: int,
    block_keys: int,
    stages: int,
    warps: int,
) -> Result:
    """Run the kernel on checked arguments (`problem.check`, `problem.check_for_kernels`)."""
    out, lse = torch.empty_like(q), torch.empty(q.shape[:3], device=q.device, dtype=torch.float32)
    with_tangent = not (tq is None and tk is None and tv is None)
    tangent = torch.empty_like(q) if with_tangent else out
    mu = torch.empty_like(lse) if with_tangent else lse
    columns = triton.next_power_of_2(problem.head_dim)
    tiles_per_head = triton.cdiv(problem.queries, block_rows)
    dq, dk, dv = (describe(x, n, columns) for x, n in ((q, block_rows), (k, block_keys), (v, block_keys)))
    grid = (tiles_per_head * problem.batch * problem.heads,)
    attention_jvp_kernel[grid](
        dq,
        dk,
        dv,
        dq if tq is None else describe(tq, block_rows, columns),
        dk if tk is None else describe(tk, block_keys, columns),
        dv if tv is None else describe(tv, block_keys, columns),
        describe(out, block_rows, columns),
        describe(tangent, block_rows, columns),
        lse,
        mu,
        problem.scale,
        problem.heads,
        problem.queries,
        problem.keys,
        tiles_per_head,
        max(problem.frame, 1),
        D=columns,
        BM=block_rows,
        BN=block_keys,
        HAS_TQ=tq is not None,
        HAS_TK=tk is not None,
        HAS_TV=tv is not None,
        MASKED=problem.frame > 0,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        PTX=q.is_cuda and torch.version.hip is None,
        num_stages=stages,
        num_warps=warps,
    )
    return Result(out, tangent, lse, mu) if with_tangent else Result(out, None, lse, None)
