"""Sharded tensors: a process's own part, and the whole."""

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
    if not hasattr(tensor, "full_tensor"):
        return tensor
    with torch.no_grad():
        everything: Tensor = _on_its_mesh(tensor).full_tensor()
    return everything


def _on_its_mesh(tensor: Any) -> Any:
    """A DTensor whose part rests in main memory, with that part where the processes can exchange it."""
    mesh = tensor.device_mesh
    if tensor.device.type == mesh.device_type:
        return tensor
    part = tensor.to_local().to(mesh.device_type)
    return type(tensor).from_local(
        part, mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )
