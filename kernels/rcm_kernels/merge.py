"""Merging the partial results of tiles that were split over their keys (jvp-kernels.md section 1.3)."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from rcm_kernels.plan import ROWS, Plan
from rcm_kernels.reference import Result

MERGE_ROWS = 16  # of one program


@triton.jit(do_not_specialize=["H", "Lq", "tiles_per_head", "whole", "units", "stretch", "steps"])
def merge_kernel(part_o, part_t, part_lse, part_mu, out, tangent, LSE, MU, stride_b, stride_h, stride_l, tangent_b,
                 tangent_h, tangent_l, H, Lq, tiles_per_head, whole, units, stretch, steps, head_dim,
                 D: tl.constexpr, ROWS: tl.constexpr, R: tl.constexpr):  # fmt: skip
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
        for program in range(begin, last + 1):
            line = (program + rest).to(tl.int64) * ROWS + local
            lse = tl.load(part_lse + line)
            part = tl.load(part_mu + line)
            at = line[:, None] * D + column[None, :]
            po = tl.load(part_o + at)
            pt = tl.load(part_t + at)
            top = tl.maximum(m, lse)
            a = tl.exp(m - top)
            w = tl.exp(lse - top)
            m = top
            total = total * a + w
            mu = mu * a + w * part
            o = o * a[:, None] + w[:, None] * po
            t = t * a[:, None] + w[:, None] * (pt + part[:, None] * po)
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
        num_warps=4,
    )
