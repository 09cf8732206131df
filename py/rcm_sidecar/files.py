"""The one place that writes files: complete and synced under a temporary name, then renamed.

A full disk becomes E_DISK_FULL here and nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rcm_sidecar.errors import HostError

_FULL = (errno.ENOSPC, errno.EDQUOT)
# safetensors reports the system's error as its own, with the number in the text.
_NUMBER = re.compile(r"\(os error (\d+)\)")


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all; missing parent folders are made.

    Raises:
        HostError: E_DISK_FULL when there is no space or quota left, E_RUN_DIR for any other refusal of the system.
    """
    _write(path, lambda temporary: temporary.write_bytes(content))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, indented, keys in the given order; errors as `write_file`."""
    write_file(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file of tensors on any device; errors as `write_file`."""
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    facts = {"format": "pt", **(metadata or {})}
    _write(path, lambda temporary: save_file(plain, str(temporary), metadata=facts))


def sync(path: Path) -> None:
    """Make a file's content, or the renames inside a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_error(path: Path, error: OSError | SafetensorError) -> HostError:
    """The typed error of a failed write."""
    match = _NUMBER.search(str(error))
    number = int(match[1]) if match else getattr(error, "errno", None)
    if number in _FULL:
        return HostError("E_DISK_FULL", f"No space left to write {path}.", "Free some space, or choose another folder.")
    return HostError("E_RUN_DIR", f"Cannot write {path}: {getattr(error, 'strerror', None) or error}.")


def _write(path: Path, write: Callable[[Path], object]) -> None:
    # The number keeps two processes apart that write the same file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        # The first error is the one to tell; a parent that is a file cannot be cleaned up after either.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise write_error(path, error) from error
