"""The one place that writes files: complete and synced under a temporary name, then renamed.

A full disk becomes E_DISK_FULL here and nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rcm_sidecar.errors import HostError
from rcm_sidecar.safetensors_file import in_memory, write_safetensors

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FREE_SOME = "Free some space, or choose another folder."


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all; missing parent folders are made.

    Raises:
        HostError: E_DISK_FULL when there is no space or quota left, E_RUN_DIR for any other refusal of the system.
    """
    write_through(path, lambda temporary: temporary.write_bytes(content))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, indented, keys in the given order; errors as `write_file`."""
    write_file(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file of tensors on any device; errors as `write_file`."""
    lazy = {name: in_memory(tensor) for name, tensor in tensors.items()}
    write_through(path, lambda temporary: write_safetensors(temporary, lazy, {"format": "pt", **(metadata or {})}))


def write_through(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a temporary file, then sync it and give it its name; errors as `write_file`."""
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        # A parent that is a file cannot be cleaned up after.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """The name under which `path` is written; host and process keep apart those who write the same file.

    It ends as `path` does, so that what is complete can be read back by its suffix before it gets its name.
    """
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp{path.suffix}")


def remove_leftovers(path: Path) -> None:
    """Remove what processes of this host that are dead left of writing `path`."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.{re.escape(socket.gethostname())}\.(\d+)\.tmp.*")
    with contextlib.suppress(OSError):
        for other in path.parent.iterdir():
            match = pattern.fullmatch(other.name)
            if match is None or _lives(int(match[1])):
                continue
            if other.is_dir():
                shutil.rmtree(other, ignore_errors=True)
            else:
                other.unlink(missing_ok=True)


def require_space(path: Path, need: int) -> None:
    """Refuse to begin what the file system of `path` cannot hold.

    Args:
        path: What will be written; parents may be missing.
        need: Bytes.

    Raises:
        HostError: E_DISK_FULL.
    """
    free = free_bytes(path)
    if free is not None and free < need:
        message = f"Writing {path} takes {need / 1e9:.3g} GB; {free / 1e9:.3g} GB are free there."
        raise HostError("E_DISK_FULL", message, _FREE_SOME)


def free_bytes(path: Path) -> int | None:
    """What is free for a file at `path`; None on network file systems that report no sizes at all."""
    folder = next((parent for parent in (path, *path.parents) if parent.is_dir()), Path("/"))
    place = os.statvfs(folder)
    return place.f_bavail * place.f_frsize if place.f_blocks else None


def sync(path: Path) -> None:
    """Make a file's content, or the renames inside a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_error(path: Path, error: OSError) -> HostError:
    """The typed error of a failed write."""
    if error.errno in _FULL:
        return HostError("E_DISK_FULL", f"No space left to write {path}.", _FREE_SOME)
    return HostError("E_RUN_DIR", f"Cannot write {path}: {error.strerror or error}.")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # of another user
    return True
