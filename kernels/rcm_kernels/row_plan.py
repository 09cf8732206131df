"""How the rows of a norm are dealt out: a small static table by row length, nothing tuned at run time.

Measured by `bench/elementwise.py --tune` on an H200, at 31,200 rows of 1536 and 5120 and at 4,080 rows of 2048.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

Kind = Literal["norm", "rms"]

LONGEST_ROW = 8192
"""A row is held in registers; a longer one runs eager."""

ELEMENTS_PER_PROGRAM = 512
"""Rows of a layer norm shorter than this share a program."""

FORWARD_WARPS: dict[tuple[Kind, int], int] = {
    ("norm", 1536): 2,
    ("norm", 2048): 4,
    ("norm", 5120): 8,
    ("rms", 1536): 2,
    ("rms", 2048): 4,
    ("rms", 5120): 4,
}

BACKWARD: dict[tuple[Kind, int], tuple[int, int]] = {
    ("norm", 1536): (4, 1056),
    ("norm", 2048): (4, 264),
    ("norm", 5120): (8, 264),
    ("rms", 1536): (4, 528),
    ("rms", 2048): (8, 264),
    ("rms", 5120): (4, 264),
}
"""(warps, programs at most where sums over rows are taken)."""

OTHER_PROGRAMS = 528
"""Of row lengths that are not in the table. Fixed numbers, not multiples of this GPU's processors: the order of the
sums, and with it every bit of a gradient, does not depend on the GPU."""

LEAST_ROWS = 15
"""Rows of a program that takes sums, where there are as many: fewer write more partial sums than they read rows."""

STAGES = 1
"""Rows that a backward has under way at a time."""


class RowPlan(NamedTuple):
    """Block: columns of a program, a power of two. Rows: held at a time. Programs: at most, of all batch items."""

    block: int
    rows: int
    warps: int
    programs: int = 0
    stages: int = 1


def forward_plan(kind: Kind, dim: int) -> RowPlan:
    """Of rows of `dim` elements: 32 elements a thread, where nothing was measured."""
    block, rows = _tile(kind, dim)
    return RowPlan(block, rows, FORWARD_WARPS.get((kind, dim), min(8, max(1, block * rows // 1024))))


def backward_plan(kind: Kind, dim: int) -> RowPlan:
    """Of rows of `dim` elements: 16 elements a thread, where nothing was measured."""
    block, rows = _tile(kind, dim)
    other = (min(16, max(1, block * rows // 512)), OTHER_PROGRAMS)
    warps, programs = BACKWARD.get((kind, dim), other)
    return RowPlan(block, rows, warps, programs, STAGES)


def programs_and_chunk(plan: RowPlan, batch: int, length: int, sums: bool) -> tuple[int, int]:
    """(programs of a batch item, rows each works on): few where sums over rows are kept, else many."""
    tiles = -(-length // plan.rows)
    least = -(-LEAST_ROWS // plan.rows)
    programs = min(-(-tiles // least), max(1, plan.programs // batch)) if sums else tiles
    chunk = -(-tiles // programs) * plan.rows
    return -(-length // chunk), chunk


def _tile(kind: Kind, dim: int) -> tuple[int, int]:
    block = max(16, 1 << (dim - 1).bit_length())
    return block, max(1, ELEMENTS_PER_PROGRAM // block) if kind == "norm" else 1


def row_stride(x: Tensor | None) -> int:
    """Elements between the rows of [B, L, ...], the same distance over the whole batch; 0 for None."""
    if x is None:
        return 0
    return x.stride(1) if x.shape[1] > 1 else x.stride(0)  # the stride of an axis of one is anything


def has_even_rows(x: Tensor) -> bool:
    """Whether the rows of [B, L, ...] are the same distance apart over the whole batch."""
    return 1 in x.shape[:2] or x.stride(0) == x.shape[1] * x.stride(1)


def even_rows(x: Tensor) -> Tensor:
    """`x` [B, L, D] with contiguous rows a fixed distance apart over the whole batch; copied where they are not."""
    return x if has_even_rows(x) and x.stride(2) == 1 else x.contiguous()


def even_heads(x: Tensor) -> Tensor:
    """Likewise `x` [B, L, H, d], the heads of a row one after the other."""
    inner = x.stride(3) == 1 and (x.shape[2] == 1 or x.stride(2) == x.shape[3])
    return x if inner and has_even_rows(x) else x.contiguous()
