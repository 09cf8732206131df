"""Writing .pt and .pth files as Cosmos-Predict2 and rCM release them: a flat dict, prefix `net.`.

torch writes such a file in one go and wants all tensors. They are first streamed into a file beside it, whose mapped
pages torch then reads: twice the disk, no more memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from rcm_sidecar.checkpoints.reading import open_weights
from rcm_sidecar.safetensors_file import LazyTensor, write_safetensors

_PREFIX = "net."
_PATCH_EMBEDDING = "patch_embedding.weight"


def write_pickled(file: Path, tensors: Mapping[str, LazyTensor], written: Callable[[int], None]) -> None:
    """Write `file`; Wan's patch embedding becomes a matrix [dim, 64], as rCM has it (wan2.1.md section 4.2).

    Args:
        file: Not atomic and not synced.
        tensors: By official name.
        written: Called with its size after each tensor has been read.
    """
    spooled = file.with_name(f"{file.name}.safetensors")
    try:
        write_safetensors(spooled, tensors, {}, written)
        stored = {name: tensor.load() for name, tensor in open_weights(spooled).items()}
        if _PATCH_EMBEDDING in stored:
            stored[_PATCH_EMBEDDING] = stored[_PATCH_EMBEDDING].flatten(1)
        torch.save({_PREFIX + name: stored[name] for name in tensors}, file)
    finally:
        spooled.unlink(missing_ok=True)
