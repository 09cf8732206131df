"""Training checkpoints on disk: written whole, checked before use, pruned.

A folder `step-<8 digits>` counts only when its manifest.json is there and every file has the size and sha256 that the
manifest names. Everything is written to `step-<8 digits>.tmp`, the manifest last, then the folder is renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from rcm_sidecar.errors import CheckpointError
from rcm_sidecar.files import sync, write_error, write_json, write_tensors
from rcm_sidecar.training.determinism import Environment

SCHEMA = 1
_MANIFEST = "manifest.json"
_STATE = "state.json"
_SUFFIX = ".safetensors"
_FOLDER = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class TrainingState:
    """Everything a run needs to go on as if it had never stopped.

    Attributes:
        step: Steps done.
        tensors: File stem -> name -> tensor, for example "student", "ema-0", "optimizer-student".
        values: Counters and windows, plain JSON.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself; `files` maps a name to (size in bytes, sha256 in hex)."""

    step: int
    files: Mapping[str, tuple[int, str]]
    environment: Environment
    config_hash: str


@dataclass(frozen=True)
class WrittenCheckpoint:
    """A complete checkpoint: its folder and its size."""

    folder: Path
    bytes: int


def step_folder(step: int) -> str:
    """Name of the folder of a step.

    >>> step_folder(350)
    'step-00000350'
    """
    return f"step-{step:08d}"


def write_checkpoint(root: Path, state: TrainingState, environment: Environment, config_hash: str) -> WrittenCheckpoint:
    """Write `root/step-XXXXXXXX`; an older folder of that name is replaced.

    Raises:
        HostError: E_DISK_FULL; nothing of this checkpoint is left then.
    """
    target = root / step_folder(state.step)
    temporary = target.with_name(target.name + ".tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        for stem, tensors in state.tensors.items():
            write_tensors(temporary / (stem + _SUFFIX), tensors)
        write_json(temporary / _STATE, {"schema": SCHEMA, "step": state.step, **state.values})
        files = {path.name: _measure(path) for path in sorted(temporary.iterdir())}
        write_json(temporary / _MANIFEST, _manifest_document(state.step, files, environment, config_hash))
        sync(temporary)
        _move_into_place(temporary, target)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return WrittenCheckpoint(target, sum(size for size, _ in files.values()))


def load_checkpoint(folder: Path) -> tuple[TrainingState, Manifest]:
    """Read a checkpoint; every file's hash is checked before anything is used.

    Raises:
        CheckpointError: E_CHECKPOINT_MISSING (no folder or no manifest), E_CHECKPOINT_CORRUPT (a file does not match,
            the hint names the newest older checkpoint that is whole).
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise CheckpointError(
            "E_CHECKPOINT_MISSING", f"{folder} is no checkpoint: it has no manifest.", _other_hint(folder)
        )
    content = {name: _checked(folder, name, *expected) for name, expected in manifest.files.items()}
    try:
        values = json.loads(content.pop(_STATE))
        tensors = {name.removesuffix(_SUFFIX): load(data) for name, data in content.items()}
    except (KeyError, ValueError, SafetensorError) as error:
        raise _corrupt(folder, str(error)) from error
    return TrainingState(manifest.step, tensors, values), manifest


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a checkpoint folder, or None if there is no readable one."""
    try:
        document = json.loads((folder / _MANIFEST).read_bytes())
        if document["schema"] != SCHEMA:
            return None
        return Manifest(
            step=int(document["step"]),
            files={name: (int(file["size"]), str(file["sha256"])) for name, file in document["files"].items()},
            environment=Environment(
                torch=document["torch"],
                threads=document["threads"],
                cpu_capability=document["cpuCapability"],
                world=document["world"],
            ),
            config_hash=document["configHash"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def prune(root: Path, newest: int, keep_last: int, keep_every_steps: int | None) -> tuple[Path, ...]:
    """Remove all but the last `keep_last` checkpoints up to step `newest` and those at multiples of `keep_every_steps`.

    Checkpoints after `newest`, the one just written, belong to a path that the run left by resuming from an earlier
    step; they are removed, so that the next resume does not go back to that path.

    Returns:
        The folders removed.
    """
    steps = _steps(root)
    current = [step for step in steps if step <= newest]
    kept = set(current[-keep_last:])
    if keep_every_steps:
        kept |= {step for step in current if step % keep_every_steps == 0}
    removed = []
    for step in steps:
        if step not in kept:
            folder = root / step_folder(step)
            # Without its manifest it is no checkpoint any more, wherever the removal is interrupted.
            (folder / _MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return tuple(removed)


def _steps(root: Path) -> list[int]:
    """Steps of the folders with a manifest, oldest first."""
    if not root.is_dir():
        return []
    found = [match for path in root.iterdir() if (match := _FOLDER.fullmatch(path.name))]
    return sorted(int(match[1]) for match in found if read_manifest(root / match[0]) is not None)


def _manifest_document(
    step: int, files: Mapping[str, tuple[int, str]], environment: Environment, config_hash: str
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "step": step,
        "files": {name: {"size": size, "sha256": digest} for name, (size, digest) in files.items()},
        "world": environment.world,
        "torch": environment.torch,
        "threads": environment.threads,
        "cpuCapability": environment.cpu_capability,
        "configHash": config_hash,
    }


def _move_into_place(temporary: Path, target: Path) -> None:
    stale = target.with_name(target.name + ".old")
    shutil.rmtree(stale, ignore_errors=True)
    if target.exists():
        os.rename(target, stale)
    os.rename(temporary, target)
    sync(target.parent)
    shutil.rmtree(stale, ignore_errors=True)


def _measure(path: Path) -> tuple[int, str]:
    data = path.read_bytes()
    return len(data), hashlib.sha256(data).hexdigest()


def _checked(folder: Path, name: str, size: int, digest: str) -> bytes:
    if Path(name).name != name:
        raise _corrupt(folder, f"the manifest names {name!r}")
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise _corrupt(folder, f"{name} cannot be read") from error
    if len(data) != size:
        raise _corrupt(folder, f"{name} has {len(data)} bytes instead of {size}")
    if hashlib.sha256(data).hexdigest() != digest:
        raise _corrupt(folder, f"{name} does not match its sha256")
    return data


def _corrupt(folder: Path, what: str) -> CheckpointError:
    return CheckpointError("E_CHECKPOINT_CORRUPT", f"Checkpoint {folder} is damaged: {what}.", _other_hint(folder))


def _other_hint(folder: Path) -> str:
    match = _FOLDER.fullmatch(folder.name)
    older = [step for step in _steps(folder.parent) if match is None or step < int(match[1])]
    for step in reversed(older):
        if _sizes_fit(folder.parent / step_folder(step)):
            return f"The newest older checkpoint is {folder.parent / step_folder(step)}; resume from step {step}."
    return "There is no older checkpoint: start the run again."


def _sizes_fit(folder: Path) -> bool:
    manifest = read_manifest(folder)
    if manifest is None:
        return False
    files = ((folder / name, *expected) for name, expected in manifest.files.items())
    return all(path.is_file() and _measure(path) == (size, digest) for path, size, digest in files)
