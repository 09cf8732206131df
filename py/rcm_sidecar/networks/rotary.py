"""Angles of the three-axis rotary position embedding."""

from __future__ import annotations

import torch
from torch import Tensor


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """How the head's elements are shared by (frames, rows, columns): 44, 42, 42 of 128 (wan2.1.md section 2.3)."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def rotary_table(
    grid: tuple[int, int, int], head_dim: int, thetas: tuple[float, float, float] = (10000.0, 10000.0, 10000.0)
) -> Tensor:
    """(cos, sin) of every token and pair, pairs in the order frames, rows, columns.

    Args:
        grid: Tokens along (frames, rows, columns); positions count from 0.
        head_dim: Elements of a head, even.
        thetas: Base of the frequencies per axis; pair j of an axis of width m turns by theta^(-2j/m) a position.

    Returns:
        [L, head_dim / 2, 2] float64 on the CPU, L row-major over the grid.
    """
    angles = []
    for axis, (width, theta) in enumerate(zip(axis_widths(head_dim), thetas, strict=True)):
        frequencies = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / max(width, 1))
        shape = [1, 1, 1]
        shape[axis] = grid[axis]
        positions = torch.arange(grid[axis], dtype=torch.float64).reshape(shape).expand(grid)
        angles.append(positions.reshape(-1, 1) * frequencies)
    turns = torch.cat(angles, dim=1)
    return torch.stack([turns.cos(), turns.sin()], dim=-1)


class RotaryTables:
    """Tables by grid, dtype and device, built in float64 and rounded once.

    Held as a plain attribute, never as a buffer: `module.to(bfloat16)` would round a buffer.

    Args:
        head_dim: Elements of a head.
        thetas: As in `rotary_table`.
        limit: How many tables are kept.
    """

    def __init__(
        self, head_dim: int, thetas: tuple[float, float, float] = (10000.0, 10000.0, 10000.0), limit: int = 8
    ) -> None:
        self.head_dim = head_dim
        self.thetas = thetas
        self._limit = limit
        self._tables: dict[tuple[tuple[int, int, int], torch.dtype, torch.device], Tensor] = {}

    def get(self, grid: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The table of `grid` as float64 for float64 activations, else as float32."""
        wide = torch.promote_types(dtype, torch.float32)
        key = (grid, wide, device)
        if key not in self._tables:
            while len(self._tables) >= self._limit:
                del self._tables[next(iter(self._tables))]
            self._tables[key] = rotary_table(grid, self.head_dim, self.thetas).to(device=device, dtype=wide)
        return self._tables[key]
