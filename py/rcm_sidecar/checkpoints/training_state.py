"""Training checkpoints on disk: written whole, checked before use, pruned.

A folder `step-<8 digits>` counts only when its manifest.json is there and every file has the size and sha256 that the
manifest names. Everything is written to `step-<8 digits>.tmp`, the manifest last, then the folder is renamed. Tensors
lie in one folder a network, average or optimizer, in safetensors files that each process writes for its own shards;
all that is no tensor lies in state.json. Writing, loading and reading are done by all processes together.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import torch
from torch import Tensor

from rcm_sidecar.checkpoints.sharded_tensors import (
    layout_of,
    local_part,
    own_files,
    read_tensors,
    save_tensors,
    stored_layout,
)
from rcm_sidecar.distributed.job_team import ALONE, JobTeam
from rcm_sidecar.distributed.mesh import ParallelSizes
from rcm_sidecar.errors import CheckpointError
from rcm_sidecar.files import require_space, sync, write_error, write_json
from rcm_sidecar.training.determinism import Environment

Result = TypeVar("Result")

SCHEMA = 1
FORMAT = "sharded-safetensors"
_MANIFEST = "manifest.json"
_STATE = "state.json"
_FOLDER = re.compile(r"step-(\d{8,})")
_UNFINISHED = re.compile(r"step-\d{8,}\.(tmp|old)")


@dataclass(frozen=True)
class TrainingState:
    """Everything a run needs to go on as if it had never stopped.

    Attributes:
        step: Steps done.
        tensors: Folder -> name -> tensor, for example "student", "ema-0", "optimizer-student". DTensors where the
            networks are sharded.
        values: Counters and windows, plain JSON, equal on all processes.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    values: Mapping[str, Any]

    @property
    def bytes(self) -> int:
        """Size of all tensors, whole."""
        return sum(t.numel() * t.element_size() for named in self.tensors.values() for t in named.values())


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself; `files` maps a path to (size in bytes, sha256 in hex)."""

    step: int
    files: Mapping[str, tuple[int, str]]
    environment: Environment
    config_hash: str


@dataclass(frozen=True)
class StoredState:
    """A state on disk that has been found whole. Its tensors are read into place, never into memory of their own.

    Attributes:
        folder: Of the checkpoint.
        step: Steps done.
        names: What `TrainingState.tensors` had as keys.
        values: As in `TrainingState`.
    """

    folder: Path
    step: int
    names: frozenset[str]
    values: Mapping[str, Any]

    def read(self, targets: Mapping[str, Mapping[str, Tensor]], team: JobTeam = ALONE) -> None:
        """Fill tensors of any layout in place, bit for bit; `targets` has some or all of `names`.

        Raises:
            CheckpointError: E_CHECKPOINT_CORRUPT, names, shapes or dtypes differ; nothing is changed then.
        """
        for name, tensors in targets.items():
            self._check(name, tensors)
        for name, tensors in targets.items():
            unreadable = partial(_corrupt, self.folder, f"{name} cannot be read")
            read_tensors(self.folder / name, tensors, team, unreadable)

    def read_whole(self) -> dict[str, dict[str, Tensor]]:
        """All tensors, whole, on the CPU: for what is small."""
        layouts = {name: stored_layout(self.folder / name) for name in sorted(self.names)}
        tensors = {
            name: {key: torch.empty(shape, dtype=dtype) for key, (shape, dtype) in layout.items()}
            for name, layout in layouts.items()
        }
        self.read(tensors)
        return tensors

    def _check(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        there, here = stored_layout(self.folder / name), layout_of(tensors)
        wrong = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
        if wrong:
            message = f"The checkpoint's {name} does not fit: {', '.join(wrong[:3])}."
            hint = "Resume with the network, the adapters and the betas the run began with."
            raise CheckpointError("E_CHECKPOINT_CORRUPT", message, hint)


@dataclass(frozen=True)
class WrittenCheckpoint:
    """A complete checkpoint: its folder and its size in bytes."""

    folder: Path
    bytes: int


def step_folder(step: int) -> str:
    """Name of the folder of a step.

    >>> step_folder(350)
    'step-00000350'
    """
    return f"step-{step:08d}"


def write_checkpoint(
    root: Path, state: TrainingState, environment: Environment, config_hash: str, team: JobTeam = ALONE
) -> WrittenCheckpoint:
    """Write `root/step-XXXXXXXX`; an older folder of that name is replaced. All processes of the team call it.

    Raises:
        HostError: E_DISK_FULL; nothing of this checkpoint is left then.
    """
    target = root / step_folder(state.step)
    temporary = target.with_name(target.name + ".tmp")
    values = {"schema": SCHEMA, "step": state.step, **state.values}
    try:
        team.first(lambda: _writing(target, lambda: _make_room(root, target, state.bytes)))
        for name, tensors in state.tensors.items():
            save_tensors(temporary / name, tensors, team)
        parts = team.together(lambda: _writing(target, lambda: _measure_own(temporary, state, team)))
        files = {path: measure for part in parts for path, measure in part.items()}

        def complete() -> int:
            write_json(temporary / _STATE, values)
            files[_STATE] = _measure(temporary / _STATE)
            write_json(temporary / _MANIFEST, _manifest_document(state.step, files, environment, config_hash))
            for folder in (*(temporary / name for name in state.tensors), temporary):
                sync(folder)
            _move_into_place(temporary, target)
            return sum(size for size, _ in files.values())

        return WrittenCheckpoint(target, team.first(lambda: _writing(target, complete)))
    finally:
        if team.leads:
            shutil.rmtree(temporary, ignore_errors=True)


def load_checkpoint(folder: Path, team: JobTeam = ALONE) -> tuple[StoredState, Manifest]:
    """Open a checkpoint; every file's hash is checked before anything is used, each by one process.

    Raises:
        CheckpointError: E_CHECKPOINT_MISSING (no folder or no manifest), E_CHECKPOINT_CORRUPT (a file does not match,
            the hint names the newest older checkpoint that is whole; or the format is an older version's).
    """
    manifest = _manifest_of(team.first(lambda: _usable_document(folder)))
    names = sorted(manifest.files)

    def check_share() -> None:
        for name in names[team.rank :: team.size]:
            _check(folder, name, *manifest.files[name])

    team.together(check_share)
    values = team.first(lambda: _values(folder))
    networks = frozenset(PurePosixPath(name).parts[0] for name in names if name != _STATE)
    return StoredState(folder, manifest.step, networks, values), manifest


def verify_written(folder: Path, state: TrainingState, team: JobTeam = ALONE) -> None:
    """Read a checkpoint back and compare it with what was written, bit by bit.

    Raises:
        CheckpointError: E_CHECKPOINT_CORRUPT.
    """
    stored, _ = load_checkpoint(folder, team)

    def compare(name: str, tensors: Mapping[str, Tensor], back: Mapping[str, Tensor]) -> None:
        for key, tensor in tensors.items():
            ours, theirs = (local_part(t).cpu().contiguous().reshape(-1).view(torch.uint8) for t in (tensor, back[key]))
            if not torch.equal(ours, theirs):
                message = f"{key} in {name} was not read back as it was written."
                raise CheckpointError("E_CHECKPOINT_CORRUPT", message)

    for name, tensors in state.tensors.items():
        back = {key: torch.empty_like(tensor, requires_grad=False) for key, tensor in tensors.items()}
        stored.read({name: back}, team)
        team.together(lambda name=name, tensors=tensors, back=back: compare(name, tensors, back))  # type: ignore[misc]


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a checkpoint folder, or None if there is no readable one."""
    try:
        return _manifest_of(json.loads((folder / _MANIFEST).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def prune(root: Path, newest: int, keep_last: int, keep_every_steps: int | None) -> tuple[Path, ...]:
    """Remove all but the last `keep_last` checkpoints up to step `newest` and those at multiples of `keep_every_steps`.

    Checkpoints after `newest`, the one just written, belong to a path that the run left by resuming from an earlier
    step; they are removed, so that the next resume does not go back to that path.

    Returns:
        The folders removed.
    """
    steps = written_steps(root)
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


def written_steps(root: Path) -> list[int]:
    """Steps of the folders with a manifest, oldest first."""
    if not root.is_dir():
        return []
    found = [match for path in root.iterdir() if (match := _FOLDER.fullmatch(path.name))]
    return sorted(int(match[1]) for match in found if read_manifest(root / match[0]) is not None)


def _manifest_of(document: Any) -> Manifest:
    if document["schema"] != SCHEMA or document["format"] != FORMAT:
        raise ValueError("the manifest is of another version")
    return Manifest(
        step=int(document["step"]),
        files={name: (int(file["size"]), str(file["sha256"])) for name, file in document["files"].items()},
        environment=Environment(
            torch=document["torch"],
            threads=document["threads"],
            cpu_capability=document["cpuCapability"],
            world=ParallelSizes(**document["world"]),
            device=document.get("device", ""),
        ),
        config_hash=document["configHash"],
    )


def _writing(target: Path, work: Callable[[], Result]) -> Result:
    """The work, with the typed error of what the system refuses."""
    try:
        return work()
    except OSError as error:
        raise write_error(target, error) from error


def _manifest_document(
    step: int, files: Mapping[str, tuple[int, str]], environment: Environment, config_hash: str
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "format": FORMAT,
        "step": step,
        "files": {name: {"size": size, "sha256": digest} for name, (size, digest) in files.items()},
        "world": asdict(environment.world),
        "torch": environment.torch,
        "threads": environment.threads,
        "cpuCapability": environment.cpu_capability,
        "device": environment.device,
        "configHash": config_hash,
    }


def _make_room(root: Path, target: Path, need: int) -> None:
    """Remove what a killed process left of writing and pruning here; refuse what the disk cannot hold."""
    if root.is_dir():
        for path in root.iterdir():
            is_pruned = _FOLDER.fullmatch(path.name) and not (path / _MANIFEST).exists()
            if is_pruned or _UNFINISHED.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)
    require_space(target, need)


def _move_into_place(temporary: Path, target: Path) -> None:
    stale = target.with_name(target.name + ".old")
    shutil.rmtree(stale, ignore_errors=True)
    if target.exists():
        os.rename(target, stale)
    os.rename(temporary, target)
    sync(target.parent)
    shutil.rmtree(stale, ignore_errors=True)


def _measure_own(folder: Path, state: TrainingState, team: JobTeam) -> dict[str, tuple[int, str]]:
    return {f"{name}/{path.name}": _measure(path) for name in state.tensors for path in own_files(folder / name, team)}


def _measure(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _check(folder: Path, name: str, size: int, digest: str) -> None:
    parts = PurePosixPath(name).parts
    if len(parts) > 2 or str(PurePosixPath(*parts)) != name or {"/", ".."} & set(parts):
        raise _corrupt(folder, f"the manifest names {name!r}")
    try:
        found = _measure(folder / name)
    except OSError as error:
        raise _corrupt(folder, f"{name} cannot be read") from error
    if found[0] != size:
        raise _corrupt(folder, f"{name} has {found[0]} bytes instead of {size}")
    if found[1] != digest:
        raise _corrupt(folder, f"{name} does not match its sha256")


def _usable_document(folder: Path) -> Any:
    if read_manifest(folder) is None:
        raise _unreadable(folder)
    return json.loads((folder / _MANIFEST).read_bytes())


def _values(folder: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads((folder / _STATE).read_bytes())
    except (OSError, ValueError) as error:
        raise _corrupt(folder, f"{_STATE} cannot be read") from error
    return values


def _unreadable(folder: Path) -> CheckpointError:
    """There is no manifest that this version reads: none at all, or one of the first format, a file a network."""
    try:
        is_older = "format" not in json.loads((folder / _MANIFEST).read_bytes())
    except (OSError, ValueError, TypeError):
        is_older = False
    if is_older:
        message = f"Checkpoint {folder} is in the format of an earlier version of rcm-bridge."
        hint = "Resume it with the version that wrote it, or start a new run."
        return CheckpointError("E_CHECKPOINT_CORRUPT", message, hint)
    message = f"{folder} is no checkpoint: it has no manifest."
    return CheckpointError("E_CHECKPOINT_MISSING", message, _other_hint(folder))


def _corrupt(folder: Path, what: str) -> CheckpointError:
    return CheckpointError("E_CHECKPOINT_CORRUPT", f"Checkpoint {folder} is damaged: {what}.", _other_hint(folder))


def _other_hint(folder: Path) -> str:
    match = _FOLDER.fullmatch(folder.name)
    older = [step for step in written_steps(folder.parent) if match is None or step < int(match[1])]
    for step in reversed(older):
        if _is_whole(folder.parent / step_folder(step)):
            return f"The newest older checkpoint is {folder.parent / step_folder(step)}; resume from step {step}."
    return "There is no older checkpoint: start the run again."


def _is_whole(folder: Path) -> bool:
    manifest = read_manifest(folder)
    if manifest is None:
        return False
    files = ((folder / name, *expected) for name, expected in manifest.files.items())
    return all(path.is_file() and _measure(path) == (size, digest) for path, size, digest in files)
