"""Sharded tensors: a process's own part, and the whole."""

from __future__ import annotations

from collections.abc import Callable

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


def fill(tensor: Tensor, value: Tensor) -> None:
    """Copy into `tensor` what this process holds of it, from a `value` of the whole shape and any dtype.

    Of a value in a mapped file nothing else is read.
    """
    with torch.no_grad():
        local(tensor).copy_(value[own_slices(tensor)])


def fill_drawn(tensor: Tensor, draw: Callable[[Tensor], object], generator: torch.Generator | None) -> None:
    """Let `draw` fill a whole tensor with numbers of `generator`, where that lives, and keep this process's part.

    So the numbers depend neither on the processes nor on the device.
    """
    device = tensor.device if generator is None else generator.device
    if local(tensor) is tensor and tensor.device == device:
        draw(tensor.detach())
        return
    value = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    draw(value)
    fill(tensor, value)


def own_slices(tensor: Tensor) -> tuple[slice, ...]:
    """Where in the whole tensor this process's part lies; the part of some processes may be empty."""
    mesh = getattr(tensor, "device_mesh", None)
    if mesh is None:
        return (slice(None),) * tensor.dim()
    # The only one who knows how torch cuts what does not divide; its own checkpoints ask it, too.
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    placements = tensor.placements  # type: ignore[attr-defined]
    shape, offsets = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    return tuple(slice(offset, offset + size) for offset, size in zip(offsets, shape, strict=True))
