"""Checkpoints on disk: whole or not there, checked before use, pruned."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from rcm_sidecar import files
from rcm_sidecar.checkpoints.training_state import (
    TrainingState,
    load_checkpoint,
    prune,
    read_manifest,
    write_checkpoint,
)
from rcm_sidecar.errors import CheckpointError, HostError
from rcm_sidecar.training.determinism import Environment

HERE = Environment(torch="2.11.0", threads=2, cpu_capability="AVX2")


def state(step: int) -> TrainingState:
    tensors = {"student": {"w": torch.full((3, 2), float(step)), "s": torch.tensor(step)}}
    return TrainingState(step, tensors, {"updates": {"student": step}})


def write(root: Path, *steps: int) -> list[Path]:
    return [write_checkpoint(root, state(step), HERE, "hash").folder for step in steps]


def is_whole(folder: Path) -> bool:
    try:
        load_checkpoint(folder)
    except CheckpointError:
        return False
    return True


def test_round_trip(tmp_path: Path) -> None:
    (folder,) = write(tmp_path, 7)
    read, manifest = load_checkpoint(folder)
    assert folder.name == "step-00000007" and read.step == 7
    assert torch.equal(read.tensors["student"]["w"], torch.full((3, 2), 7.0))
    assert read.values["updates"] == {"student": 7}
    assert manifest.environment == HERE and manifest.config_hash == "hash"
    document = json.loads((folder / "manifest.json").read_text())
    assert document["schema"] == 1 and document["step"] == 7
    assert {name: file["size"] for name, file in document["files"].items()} == {
        name: (folder / name).stat().st_size for name in ("student.safetensors", "state.json")
    }


def test_the_same_step_again_replaces_the_old_folder(tmp_path: Path) -> None:
    (folder,) = write(tmp_path, 7)
    (folder / "student.safetensors").write_bytes(b"damaged")
    write(tmp_path, 7)
    assert is_whole(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007"]


def test_a_damaged_file_is_named_with_the_previous_good_checkpoint(tmp_path: Path) -> None:
    good, bad, worse = write(tmp_path, 1, 2, 3)
    weights = bad / "student.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (worse / "state.json").unlink()
    for folder, file in ((bad, "student.safetensors"), (worse, "state.json")):
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(folder)
        assert caught.value.code == "E_CHECKPOINT_CORRUPT"
        assert file in caught.value.message
        assert caught.value.hint is not None and good.name in caught.value.hint
    assert [is_whole(folder) for folder in (good, bad, worse)] == [True, False, False]


def test_without_a_manifest_there_is_no_checkpoint(tmp_path: Path) -> None:
    first, second = write(tmp_path, 1, 2)
    (second / "manifest.json").unlink()
    assert read_manifest(second) is None and is_whole(first)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(second)
    assert caught.value.code == "E_CHECKPOINT_MISSING"


def test_pruning_keeps_the_newest_and_the_milestones(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3, 4, 5, 6, 7)
    removed = prune(tmp_path, newest=7, keep_last=2, keep_every_steps=3)
    assert [path.name for path in removed] == [f"step-{step:08d}" for step in (1, 2, 4, 5)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:08d}" for step in (3, 6, 7)]
    assert prune(tmp_path, newest=7, keep_last=2, keep_every_steps=None) == (tmp_path / "step-00000003",)


def test_pruning_forgets_the_path_that_a_resume_from_an_earlier_step_left(tmp_path: Path) -> None:
    write(tmp_path, 2, 4, 5, 6, 7)
    prune(tmp_path, newest=4, keep_last=2, keep_every_steps=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000004"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_older_checkpoint(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (older,) = write(tmp_path, 1)
    calls = {"left": 1}

    def full(descriptor: int) -> None:
        calls["left"] -= 1
        if calls["left"] < 0:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(HostError) as caught:
        write(tmp_path, 2)
    assert caught.value.code == "E_DISK_FULL"
    assert [path.name for path in tmp_path.iterdir()] == [older.name] and is_whole(older)


def test_a_crash_while_writing_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever write is the last one before the process dies, the folder has no valid manifest or is whole."""
    real: Any = os.replace
    for allowed in range(3):
        root = tmp_path / str(allowed)
        done = {"count": 0}

        def replace(source: Any, target: Any, done: dict[str, int] = done, allowed: int = allowed) -> None:
            if done["count"] == allowed:
                raise KeyboardInterrupt
            done["count"] += 1
            real(source, target)

        monkeypatch.setattr(files.os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            write(root, 5)
        assert not is_whole(root / "step-00000005")
        monkeypatch.setattr(files.os, "replace", real)


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    (folder,) = write(tmp_path, 1)
    document = json.loads((folder / "manifest.json").read_text())
    document["files"]["../secret"] = {"size": 0, "sha256": ""}
    (folder / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError):
        load_checkpoint(folder)
