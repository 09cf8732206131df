"""How the Hopper kernel's tiles are dealt out to the multiprocessors, and when the last wave's tiles are split."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from rcm_kernels.problem import Problem

ROWS = 128  # of one tile: two warpgroups of 64

# Rough rates of one H200 multiprocessor, only used to see whether a split pays.
_FLOPS_PER_US = 5.0e6
_MERGE_LAUNCH_US = 6.0
_MERGE_BYTES_PER_US = 3.0e6


@dataclass(frozen=True)
class Plan:
    """A persistent grid of `programs`; tiles of ROWS query rows, a head's tiles side by side.

    The first `whole` tiles are taken one by one. With `slots` > 0 the rest is one line of `units` = rest * `steps`
    steps, cut into stretches of `stretch` steps, one a program; partial results go to `slots` slots.
    """

    programs: int
    tiles_per_head: int
    tiles: int
    whole: int
    steps: int
    units: int
    stretch: int
    slots: int


@cache
def multiprocessors(device: int) -> int:
    """Number of multiprocessors of a CUDA device."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def plan_tiles(
    problem: Problem, processors: int, block_keys: int, columns: int, full: bool, split: bool | None = None
) -> Plan:
    """Deal out the tiles of a problem.

    Args:
        problem: Sizes and mask.
        processors: Programs that run at the same time.
        block_keys: Keys a step.
        columns: Head dim as the kernel holds it.
        full: All tangents are given (6 products a step), else 4.
        split: Whether to split the last wave; None decides by the time it would save. Never under a mask.
    """
    tiles_per_head = -(-problem.queries // ROWS)
    tiles = tiles_per_head * problem.batch * problem.heads
    steps = -(-problem.keys // block_keys)
    if problem.frame > 0:  # tiles of unequal length: one program each, dealt out by the hardware, longest first
        return Plan(tiles, tiles_per_head, tiles, tiles, steps, 0, 1, 0)
    whole = tiles // processors * processors
    units = (tiles - whole) * steps
    stretch = max(-(-units // processors), 1)
    slots = processors + tiles - whole
    unsplit = Plan(min(tiles, processors), tiles_per_head, tiles, tiles, steps, 0, 1, 0)
    if units == 0 or stretch >= steps:
        return unsplit
    if split is None:
        step_us = (12 if full else 8) * ROWS * block_keys * columns / _FLOPS_PER_US
        merge_us = _MERGE_LAUNCH_US + 2 * slots * ROWS * columns * 8 / _MERGE_BYTES_PER_US
        split = (steps - stretch) * step_us > 1.2 * merge_us
    return Plan(processors, tiles_per_head, tiles, whole, steps, units, stretch, slots) if split else unsplit
