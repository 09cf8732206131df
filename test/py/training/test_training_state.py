"""Checkpoints on disk: whole or not there, checked before use, pruned."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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

WEIGHTS = "student/shard-00001-model-00001-of-00001.safetensors"
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
    assert torch.equal(read.read_whole()["student"]["w"], torch.full((3, 2), 7.0))
    assert read.values["updates"] == {"student": 7}
    assert manifest.environment == HERE and manifest.config_hash == "hash"
    document = json.loads((folder / "manifest.json").read_text())
    assert document["schema"] == 1 and document["step"] == 7
    assert {name: file["size"] for name, file in document["files"].items()} == {
        name: (folder / name).stat().st_size for name in (WEIGHTS, "state.json")
    }


def test_the_same_step_again_replaces_the_old_folder(tmp_path: Path) -> None:
    (folder,) = write(tmp_path, 7)
    (folder / WEIGHTS).write_bytes(b"damaged")
    write(tmp_path, 7)
    assert is_whole(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007"]


def test_a_damaged_file_is_named_with_the_previous_good_checkpoint(tmp_path: Path) -> None:
    good, bad, worse = write(tmp_path, 1, 2, 3)
    weights = bad / WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (worse / "state.json").unlink()
    for folder, file in ((bad, WEIGHTS), (worse, "state.json")):
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
    """Whatever is the last thing done before the process dies, the folder has no valid manifest or is whole."""
    real: Any = {name: getattr(os, name) for name in ("replace", "fsync", "rename")}
    outcomes = []
    for allowed in itertools.count():
        root = tmp_path / str(allowed)
        left = [allowed]

        def dying(name: str, left: list[int] = left) -> Any:
            def call(*arguments: Any) -> None:
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
                real[name](*arguments)

            return call

        for name in real:
            monkeypatch.setattr(os, name, dying(name))
        try:
            write(root, 5)
        except KeyboardInterrupt:
            outcomes.append(is_whole(root / "step-00000005"))
            continue
        finally:
            monkeypatch.undo()
        break
    # Only the folder's own name may still be on its way to the disk when it is there.
    assert len(outcomes) > 8 and outcomes == [False] * (len(outcomes) - 1) + [True]


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    (folder,) = write(tmp_path, 1)
    document = json.loads((folder / "manifest.json").read_text())
    for name in ("../secret", "student/../../secret", "/secret", "a/b/secret"):
        files = {**document["files"], name: {"size": 0, "sha256": ""}}
        (folder / "manifest.json").write_text(json.dumps({**document, "files": files}))
        with pytest.raises(CheckpointError, match="the manifest names"):
            load_checkpoint(folder)


def test_what_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    (folder,) = write(tmp_path, 1)
    stored, _ = load_checkpoint(folder)
    number = torch.tensor(0)
    for tensor in (torch.zeros(3, 1), torch.zeros(3, 2, dtype=torch.float64), torch.zeros(2, 3)):
        with pytest.raises(CheckpointError, match="student does not fit: w"):
            stored.read({"student": {"w": tensor, "s": number}})
    with pytest.raises(CheckpointError, match="student does not fit: other"):
        stored.read({"student": {"w": torch.zeros(3, 2), "s": number, "other": number}})
    assert number == 0


def test_the_first_format_is_refused_with_a_way_on(tmp_path: Path) -> None:
    (folder,) = write(tmp_path, 1)
    document = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**document, "format": None, "world": 1}))
    assert read_manifest(folder) is None
    del document["format"]
    (folder / "manifest.json").write_text(json.dumps({**document, "world": 1}))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    assert "earlier version" in caught.value.message and "the version that wrote it" in str(caught.value.hint)


def test_free_space_is_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (older,) = write(tmp_path, 1)
    real = os.statvfs(tmp_path)
    names = [name for name in dir(real) if name.startswith("f_")]
    place = SimpleNamespace(**{name: getattr(real, name) for name in names})
    place.f_bavail, place.f_frsize = 31, 1
    monkeypatch.setattr(os, "statvfs", lambda _path: place)
    with pytest.raises(HostError) as caught:  # 3 x 2 float32 and one int64 are 32 bytes
        write(tmp_path, 2)
    assert caught.value.code == "E_DISK_FULL" and "3.2e-08 GB" in caught.value.message
    assert [path.name for path in tmp_path.iterdir()] == [older.name] and is_whole(older)
    place.f_bavail = 32
    write(tmp_path, 2)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    write(tmp_path, 4)
    for name in ("step-00000003.tmp/student", "step-00000002.old", "step-00000001/student", "notes"):
        (tmp_path / name).mkdir(parents=True)
    write(tmp_path, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "step-00000004", "step-00000005"]


DTYPES = [getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16", "int64", "uint8", "bool")]


@st.composite
def named_tensors(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Tensors of any bits (NaN, denormals), of 0 to 3 dimensions, some of them empty or transposed."""
    tensors = {}
    for name in draw(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=6, unique=True)):
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
        dtype = draw(st.sampled_from(DTYPES))
        source = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
        count = math.prod(shape) * dtype.itemsize
        raw = torch.randint(0, 2 if dtype is torch.bool else 256, (count,), generator=source, dtype=torch.uint8)
        tensor = raw.view(dtype).reshape(shape)
        tensors[name] = tensor.mT if draw(st.booleans()) and tensor.ndim > 1 else tensor
    return tensors


@settings(max_examples=60)
@given(named_tensors())
def test_any_tensors_come_back_bit_for_bit(tensors: dict[str, torch.Tensor]) -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = write_checkpoint(Path(root), TrainingState(3, {"student": tensors}, {}), HERE, "hash").folder
        back = load_checkpoint(folder)[0].read_whole()["student"]
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (back[name].shape, back[name].dtype) == (tensor.shape, tensor.dtype), name
        ours, theirs = (t.contiguous().reshape(-1).view(torch.uint8) for t in (tensor, back[name]))
        assert torch.equal(ours, theirs), name


@pytest.mark.long
def test_kills_at_random_moments_lose_nothing_older(tmp_path: Path) -> None:
    """kill -9 while writing, 60 times: what has a manifest is whole, and the newest one never goes back."""
    command = [sys.executable, "-m", "training.killed_writer", str(tmp_path / "checkpoints"), "60"]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, check=True, timeout=280
    )
    found = json.loads(done.stdout)
    assert found["unfinished"] > 5 and found["step"] > 5, found
