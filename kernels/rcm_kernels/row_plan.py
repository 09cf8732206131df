"""How the rows of a norm are dealt out: a small static table by row length, nothing tuned at run time."""

from __future__ import annotations

from torch import Tensor

LONGEST_ROW = 8192
"""A row is held in registers; a longer one runs eager."""

ELEMENTS_PER_PROGRAM = 512
"""Rows shorter than this share a program."""

BACKWARD_PROGRAMS = 528
"""Programs of a backward that takes sums over rows: four for each multiprocessor of an H100. A fixed number, so that
the order of the sums, and with it every bit of a gradient, does not depend on the GPU."""


def rows_plan(dim: int) -> tuple[int, int, int]:
    """(columns of a program, a power of two; rows of a program; warps) for rows of `dim` elements."""
    block = max(16, 1 << (dim - 1).bit_length())
    rows = max(1, ELEMENTS_PER_PROGRAM // block)
    return block, rows, warps_for(block * rows)


def warps_for(elements: int) -> int:
    """Warps of a program that holds this many elements of each tensor: up to 16 elements a thread."""
    return min(16, max(1, elements // 512))


def backward_programs(batch: int, length: int, rows: int, sums: bool) -> tuple[int, int]:
    """(programs of a batch item, rows each works on): few where sums over rows are kept, else many."""
    tiles = -(-length // rows)
    programs = min(tiles, max(1, BACKWARD_PROGRAMS // batch)) if sums else tiles
    chunk = -(-tiles // programs) * rows
    return -(-length // chunk), chunk


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
