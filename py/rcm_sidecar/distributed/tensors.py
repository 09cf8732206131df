"""Sharded tensors: a process's own part, and the whole."""

from __future__ import annotations

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
