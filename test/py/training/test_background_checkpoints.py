"""Checkpoints written while training goes on: who waits for what, and where an error comes out."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from training.tiny_run import run, start

from rcm_sidecar.checkpoints import background
from rcm_sidecar.checkpoints.background import CheckpointWriter
from rcm_sidecar.checkpoints.training_state import TrainingState, load_checkpoint, write_checkpoint
from rcm_sidecar.config import Checkpoints
from rcm_sidecar.errors import HostError, TrainingError
from rcm_sidecar.link import Cancel, Recorded, RecordingLink, Ticket
from rcm_sidecar.training.determinism import Environment

HERE = Environment(torch="2.11.0", threads=1, cpu_capability="AVX2")


class SlowDisk:
    """Stands in for `write_checkpoint`: each write waits until it is let go, or for its time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float | None = None) -> None:
        self.begun = threading.Semaphore(0)
        self.let_go = threading.Semaphore(0)
        self.seconds = seconds
        self.error: Exception | None = None
        monkeypatch.setattr(background, "write_checkpoint", self._write)

    def _write(self, *arguments: Any) -> Any:
        self.begun.release()
        if self.seconds is None:
            assert self.let_go.acquire(timeout=60)
        else:
            time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return write_checkpoint(*arguments)


def writer_of(root: Path, asynchronous: bool = True) -> CheckpointWriter:
    settings = Checkpoints(
        every_steps=None, keep_last=2, keep_every_steps=None, async_=asynchronous, on_stop=True, export=[]
    )
    return CheckpointWriter(root, settings, HERE, "hash", verify=False)


def state(step: int, weights: torch.Tensor) -> TrainingState:
    return TrainingState(step, {"student": {"w": weights}}, {"updates": {"student": step}})


def test_the_copy_is_of_the_moment_of_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, writer = SlowDisk(monkeypatch), writer_of(tmp_path)
    weights = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    for step in (1, 2):
        writer.write(state(step, weights), lambda _: None)
        wanted = weights.detach().clone()
        with torch.no_grad():
            weights.mul_(-1).sub_(1)
        disk.let_go.release()
        writer.finish()
        stored = load_checkpoint(tmp_path / f"step-{step:08d}")[0].read_whole()
        assert torch.equal(stored["student"]["w"], wanted)


def test_the_second_waits_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, writer = SlowDisk(monkeypatch), writer_of(tmp_path)
    done: list[int] = []
    writer.write(state(1, torch.ones(2)), lambda _: done.append(1))
    assert disk.begun.acquire(timeout=10) and done == []
    writer.raise_if_failed()  # does not wait
    threading.Timer(0.1, disk.let_go.release).start()
    writer.write(state(2, torch.ones(2)), lambda _: done.append(2))
    assert done == [1]
    disk.let_go.release()
    writer.finish()
    assert done == [1, 2]


def test_without_async_the_caller_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SlowDisk(monkeypatch, seconds=0.05)
    done: list[int] = []
    before = threading.active_count()  # other tests leave threads of libraries
    writer_of(tmp_path, asynchronous=False).write(state(1, torch.ones(2)), lambda _: done.append(1))
    assert done == [1] and threading.active_count() == before


def test_an_error_is_raised_once_where_training_next_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, writer = SlowDisk(monkeypatch, seconds=0), writer_of(tmp_path)
    disk.error = HostError("E_DISK_FULL", "No space.")
    writer.write(state(1, torch.ones(2)), lambda _: None)
    with pytest.raises(HostError):
        writer.finish()
    writer.finish()
    disk.error = None
    writer.write(state(2, torch.ones(2)), lambda _: None)
    writer.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_training_goes_on_while_the_disk_is_slow(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps go on during a write of seconds, and a step waits for less than 2 % of what it would wait without async."""
    seconds = 1.5
    SlowDisk(monkeypatch, seconds)
    waits, real = [], CheckpointWriter.write

    def timed(self: CheckpointWriter, *arguments: Any) -> None:
        self.finish()  # the wait for the one before is not the wait of a step at a sensible interval
        began = time.perf_counter()
        real(self, *arguments)
        waits.append(time.perf_counter() - began)

    monkeypatch.setattr(CheckpointWriter, "write", timed)
    changes = {"teacher.weights": str(tiny_teacher), "schedule.steps": 12, "checkpoints.everySteps": 4}
    end, link = run(start(tmp_path, changes))
    assert end.checkpoint == "checkpoints/step-00000012"
    order = [(r.type, r.body.step) for r in link.records if r.type in ("progress", "checkpoint")]
    first = order.index(("checkpoint", 4))
    assert ("progress", 5) in order[:first]
    bodies = link.of_type("checkpoint")
    assert [body.step for body in bodies] == [4, 8, 12]
    assert all(body.seconds > seconds and body.bytes > 10_000 for body in bodies)
    print("waits in ms:", [round(1000 * wait, 2) for wait in waits])
    assert min(waits) < 0.02 * seconds


@pytest.mark.parametrize(("checkpoint", "last"), [(False, 2), (True, 3)])
def test_a_cancel_waits_for_the_checkpoint(
    checkpoint: bool, last: int, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a cancel that asks for none: what has been begun is finished, and the end names it."""
    SlowDisk(monkeypatch, 0.5)

    def on_record(record: Recorded) -> None:
        if record.type == "progress" and record.body.step == 3:
            link.requests.cancel(Cancel(checkpoint))

    link = RecordingLink(on_record)
    end, _ = run(start(tmp_path, {"teacher.weights": str(tiny_teacher), "checkpoints.everySteps": 2}), link)
    assert (end.state, end.step, end.checkpoint) == ("stopped", 3, f"checkpoints/step-{last:08d}")
    load_checkpoint(tmp_path / str(end.checkpoint))
    assert link.of_type("checkpoint")[-1].step == last


def test_a_request_is_answered_when_it_is_on_disk(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SlowDisk(monkeypatch, 0.2)
    answers: list[Any] = []

    def answer(value: Any) -> None:
        answers.append((value, (tmp_path / value["path"] / "manifest.json").is_file()))

    def on_record(record: Recorded) -> None:
        if record.type == "progress" and record.body.step == 2:
            link.requests.add_checkpoint(Ticket(answer, "asked"))

    link = RecordingLink(on_record)
    changes = {"teacher.weights": str(tiny_teacher), "schedule.steps": 3, "checkpoints.everySteps": 2}
    run(start(tmp_path, changes), link)
    assert answers == [({"step": 2, "path": "checkpoints/step-00000002"}, True)]


def test_a_full_disk_ends_the_run(tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of the thread reaches the run, with the older checkpoint left whole and nothing of the new one."""
    real, full = os.fsync, threading.Event()

    def fsync(descriptor: int) -> None:
        if full.is_set() and threading.current_thread().name == "checkpoint":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)

    def on_record(record: Recorded) -> None:
        if record.type == "checkpoint":
            full.set()

    changes = {"teacher.weights": str(tiny_teacher), "schedule.steps": 500, "checkpoints.everySteps": 2}
    link = RecordingLink(on_record)
    with pytest.raises(HostError) as caught:
        run(start(tmp_path, changes), link)
    assert caught.value.code == "E_DISK_FULL"
    assert link.of_type("progress")[-1].step < 500
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    load_checkpoint(tmp_path / "checkpoints" / "step-00000002")


def test_a_run_that_fails_finishes_its_checkpoint(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SlowDisk(monkeypatch, 0.5)

    def on_record(record: Recorded) -> None:
        if record.type == "progress" and record.body.step == 3:
            raise TrainingError("E_NON_FINITE", "All is NaN.")

    changes = {"teacher.weights": str(tiny_teacher), "checkpoints.everySteps": 2}
    with pytest.raises(TrainingError):
        run(start(tmp_path, changes), RecordingLink(on_record))
    manifest = json.loads((tmp_path / "checkpoints" / "step-00000002" / "manifest.json").read_text())
    assert manifest["world"] == {"replicate": 1, "shard": 1, "context": 1}
