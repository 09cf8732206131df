"""The one place that writes files: complete and synced under a temporary name, then renamed.

A full disk becomes E_DISK_FULL here and nowhere else (`checkpoints.save` streams large weights itself and reports the
same code).
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from rcm_sidecar.errors import HostError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all; missing parent folders are made.

    Raises:
        HostError: E_DISK_FULL when there is no space or quota left, E_RUN_DIR for any other refusal of the system.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise write_error(path, error) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, indented, keys in the given order."""
    write_file(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file. Tensors may lie on any device and share memory."""
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    write_file(path, save(plain, metadata={"format": "pt", **(metadata or {})}))


def sync_folder(path: Path) -> None:
    """Make renames inside a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_error(path: Path, error: OSError) -> HostError:
    """The typed error of a failed write."""
    if error.errno in _FULL:
        return HostError("E_DISK_FULL", f"No space left to write {path}.", "Free some space, or choose another folder.")
    return HostError("E_RUN_DIR", f"Cannot write {path}: {error.strerror or error}.")
