"""Merging the partial results of tiles that were split over their keys (jvp-kernels.md section 1.3)."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from rcm_kernels.plan import ROWS, Plan
from rcm_kernels.reference import Result

MERGE_ROWS = 8  # of one program
UNROLLED_PARTS = 8


@triton.jit
def _add(part_o, part_t, part_lse, part_mu, program, rest, local, there, m, total, mu, o, t,
         D: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """One more part: online sums relative to the largest lse so far."""
    line = (program + rest) * ROWS + local
    lse = tl.load(part_lse + line, mask=there & (line >= 0), other=-float("inf"))
    part = tl.load(part_mu + line, mask=there & (line >= 0), other=0.0)
    at = line[:, None] * D + tl.arange(0, D)[None, :]
    po = tl.load(part_o + at, mask=there & (at >= 0), other=0.0)
    pt = tl.load(part_t + at, mask=there & (at >= 0), other=0.0)
    top = tl.maximum(m, lse)
    a = tl.exp(m - top)
    w = tl.exp(lse - top)
    total = total * a + w
    mu = mu * a + w * part
    o = o * a[:, None] + w[:, None] * po
    t = t * a[:, None] + w[:, None] * (pt + part[:, None] * po)
    return top, total, mu, o, t


@triton.jit(do_not_specialize=["H", "Lq", "tiles_per_head", "whole", "units", "stretch", "steps"])
def merge_kernel(part_o, part_t, part_lse, part_mu, out, tangent, LSE, MU, stride_b, stride_h, stride_l, tangent_b,
                 tangent_h, tangent_l, H, Lq, tiles_per_head, whole, units, stretch, steps, head_dim,
                 D: tl.constexpr, ROWS: tl.constexpr, R: tl.constexpr, PARTS: tl.constexpr):  # fmt: skip
    """R rows of one split tile: sum of its parts, each weighted by exp(its lse - the whole lse)."""
    rest = tl.program_id(0)
    begin = rest * steps // stretch  # first and last program that worked on this tile
    last = (rest * steps + steps - 1) // stretch
    if last > begin:
        index = whole + rest
        bh = index // tiles_per_head
        local = tl.program_id(1) * R + tl.arange(0, R)
        row = index % tiles_per_head * ROWS + local
        column = tl.arange(0, D)
        m = tl.full([R], -float("inf"), tl.float32)
        total = tl.zeros([R], tl.float32)
        mu = tl.zeros([R], tl.float32)
        o = tl.zeros([R, D], tl.float32)
        t = tl.zeros([R, D], tl.float32)
        if PARTS > 0:  # unrolled: the loads of all parts are in flight together
            for i in tl.static_range(PARTS):
                m, total, mu, o, t = _add(part_o, part_t, part_lse, part_mu, begin + i, rest, local, begin + i <= last,
                                          m, total, mu, o, t, D, ROWS)  # fmt: skip
        else:
            for program in range(begin, last + 1):
                m, total, mu, o, t = _add(part_o, part_t, part_lse, part_mu, program, rest, local, True,
                                          m, total, mu, o, t, D, ROWS)  # fmt: skip
        mu = mu / total
        o = o / total[:, None]
        t = t / total[:, None] - mu[:, None] * o
        b = (bh // H).to(tl.int64)
        h = (bh % H).to(tl.int64)
        inside = row < Lq
        store = inside[:, None] & (column < head_dim)[None, :]
        wide = row.to(tl.int64)
        at = b * stride_b + h * stride_h + wide * stride_l
        tl.store(out + at[:, None] + column[None, :], o.to(out.dtype.element_ty), mask=store)
        at = b * tangent_b + h * tangent_h + wide * tangent_l
        tl.store(tangent + at[:, None] + column[None, :], t.to(tangent.dtype.element_ty), mask=store)
        at = bh.to(tl.int64) * Lq + row
        tl.store(LSE + at, m + tl.log(total), mask=inside)
        tl.store(MU + at, mu, mask=inside)


def merge_split_tiles(parts: tuple[Tensor, ...], result: Result, plan: Plan, columns: int) -> None:
    """Write the merged rows of all split tiles into `result`.

    Args:
        parts: out and tangent [slots, ROWS, columns], lse and mu [slots, ROWS], fp32.
        result: What the kernel filled but for the split tiles.
        plan: How the tiles were dealt out.
        columns: Head dim as the kernel holds it.
    """
    out, tangent = result.out, result.tangent
    most = -(-plan.steps // plan.stretch) + 1  # parts of one tile
    merge_kernel[(plan.tiles - plan.whole, ROWS // MERGE_ROWS)](
        *parts,
        out,
        tangent,
        result.lse,
        result.mu,
        *out.stride()[:3],
        *tangent.stride()[:3],
        out.shape[1],
        out.shape[2],
        plan.tiles_per_head,
        plan.whole,
        plan.units,
        plan.stretch,
        plan.steps,
        out.shape[3],
        D=columns,
        ROWS=ROWS,
        R=MERGE_ROWS,
        PARTS=most if most <= UNROLLED_PARTS else 0,
        num_warps=4,
    )
