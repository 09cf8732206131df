"""Sharded tensors: a process's own part, the whole, and copies from a whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this process holds, the same memory; a plain tensor is its own part."""
    part = getattr(tensor, "to_local", None)
    if part is None:
        return tensor
    with torch.no_grad():
        own: Tensor = part()
    return own


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, on every process: a collective. A plain tensor is returned as it is."""
    gather = getattr(tensor, "full_tensor", None)
    if gather is None:
        return tensor
    with torch.no_grad():
        everything: Tensor = gather()
    return everything


@torch.no_grad()
def copy_whole(target: Tensor, value: Tensor) -> None:
    """Copy `value`, which every process has whole, into a tensor that may be sharded; nothing is sent."""
    sharded: Any = target
    if not hasattr(target, "to_local"):
        target.copy_(value)
        return
    part = value
    for axis, placement in enumerate(sharded.placements):
        if placement.is_shard():
            pieces = part.chunk(sharded.device_mesh.size(axis), dim=placement.dim)
            index = sharded.device_mesh.get_local_rank(axis)
            empty = part.narrow(placement.dim, 0, 0)
            part = pieces[index] if index < len(pieces) else empty
    local(target).copy_(part)
