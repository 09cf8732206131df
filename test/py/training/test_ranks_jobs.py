"""A whole job on two processes, as the sidecar runs it: requests, products, checkpoints, the end."""

from __future__ import annotations

import errno
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training.tiny_run import comparable, run, start

from rcm_sidecar.checkpoints import training_state
from rcm_sidecar.checkpoints.training_state import load_checkpoint
from rcm_sidecar.distributed import launch
from rcm_sidecar.error_report import error_body
from rcm_sidecar.errors import SidecarError
from rcm_sidecar.link import Cancel, JobCancelled, Recorded, RecordingLink, SampleTicket, Ticket
from rcm_sidecar.protocol import PlanRow, RunSample

ROWS = (
    PlanRow(sampler="teacher", steps=1, guidance=1.5),
    PlanRow(sampler="student", steps=1, guidance=None),
)


def changes(teacher: Path, processes: int) -> dict[str, Any]:
    return {
        "teacher.weights": str(teacher),
        "compute.gpusPerNode": processes,
        "compute.parallel.shard": processes,
        "schedule.steps": 5,
        "checkpoints.everySteps": 2,
        "evaluation.previews.everySteps": 3,
        "losses.scm.tangentWarmupUpdates": 1,
    }


class Asking(RecordingLink):
    """Asks for a checkpoint, a sample and a pause at step 1, and goes on when it stands still."""

    def __init__(self) -> None:
        super().__init__(self._act)
        self.answers: list[Any] = []

    def _act(self, record: Recorded) -> None:
        if record.type == "progress" and record.body.step == 1:
            # The request is there before the next step begins, so all processes stop after that one.
            self.requests.pause(True)
        if record.type == "paused":
            self.requests.add_checkpoint(Ticket(self.answers.append, "asked"))
            self.requests.add_sample(SampleTicket(self.answers.append, RunSample(steps=2, num=3, seed=1, label=None)))
        if record.type == "sample" and record.body.kind == "request":
            self.requests.pause(False)


def test_two_processes_serve_requests_and_make_what_one_makes(tiny_teacher: Path, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    _, one = run(start(alone, changes(tiny_teacher, 1), rows=ROWS))
    link = Asking()
    end, _ = run(start(together, changes(tiny_teacher, 2), rows=ROWS), link)

    assert (end.state, end.step, end.checkpoint) == ("succeeded", 5, "checkpoints/step-00000005")
    assert link.of_type("paused") == [2] and link.of_type("continued") == [2]
    assert link.answers[0]["path"] == "checkpoints/step-00000002" and link.answers[1] == {"step": 2, "num": 3}
    assert [body.step for body in link.of_type("checkpoint")] == [2, 4, 5]
    assert [grid.kind for grid in link.of_type("sample")] == ["request", "preview", "evaluation"]
    assert len(link.of_type("evaluation")[0].rows) == len(ROWS)
    for (step, phase, values), (other_step, other_phase, others) in zip(comparable(link), comparable(one), strict=True):
        assert (step, phase, values.keys()) == (other_step, other_phase, others.keys())
        for name, value in others.items():
            assert abs(values[name] - value) <= 1e-4 * max(1.0, abs(value)), (step, name)
    weights, others = (load_file(folder / "export" / "official" / "model.safetensors") for folder in (together, alone))
    for name, value in others.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)
    manifest = load_checkpoint(together / "checkpoints" / "step-00000004")[1]
    assert (manifest.environment.world.shard, manifest.environment.threads) == (2, 1)


def test_a_cancel_during_an_evaluation_stops_all_with_a_checkpoint(tiny_teacher: Path, tmp_path: Path) -> None:
    def cancel(record: Recorded) -> None:
        if record.type == "activity" and record.body[0] == "evaluating":
            link.requests.cancel(Cancel(checkpoint=True))

    link = RecordingLink(cancel)
    settings = {**changes(tiny_teacher, 2), "evaluation.everySteps": 3, "checkpoints.everySteps": None}
    end, _ = run(start(tmp_path, settings, rows=ROWS), link)
    assert (end.state, end.step, end.checkpoint) == ("stopped", 3, "checkpoints/step-00000003")
    assert [body.reason for body in link.of_type("checkpoint")] == ["stop"]
    assert not (tmp_path / "export").exists()


def test_a_cancel_without_a_checkpoint_leaves_no_process(tiny_teacher: Path, tmp_path: Path) -> None:
    def cancel(record: Recorded) -> None:
        if record.type == "progress" and record.body.step == 2:
            link.requests.cancel(Cancel(checkpoint=False))

    link = RecordingLink(cancel)
    begun = time.monotonic()
    with pytest.raises(JobCancelled):
        run(start(tmp_path, {**changes(tiny_teacher, 2), "checkpoints.everySteps": None}), link)
    assert not (tmp_path / "checkpoints").exists()
    assert not torch.distributed.is_initialized() and time.monotonic() - begun < 60


RANK = """
import sys
sys.path[:0] = {paths!r}
from rcm_sidecar import guard
line = guard.begin()
from rcm_sidecar import rank_process
from rcm_sidecar.checkpoints import training_state
def fail(*arguments):
    raise {error}
training_state._measure_own = fail
sys.exit(rank_process.main(line))
"""


@pytest.mark.long
@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize(
    ("error", "code", "message"),
    [("OSError(28, 'full')", "E_DISK_FULL", "No space left"), ("MemoryError()", "E_TRAINING", "MemoryError")],
)
def test_a_rank_that_cannot_write_its_part_of_a_checkpoint_is_named(
    error: str,
    code: str,
    message: str,
    asynchronous: bool,
    tiny_teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever process asks first what became of the checkpoint, with the frames of the writer's thread."""
    script = tmp_path / "rank.py"
    script.write_text(RANK.format(paths=[str(Path(launch.__file__).parents[2]), *sys.path], error=error))
    monkeypatch.setattr(launch, "_LAUNCH", script)
    settings = {"schedule.steps": 500, "checkpoints.everySteps": 3, "checkpoints.async": asynchronous}
    with pytest.raises(SidecarError, match=rf"Rank 1 on {socket.gethostname()}: .*{message}") as caught:
        run(start(tmp_path, {**changes(tiny_teacher, 2), **settings}))
    body = error_body(caught.value)
    assert body.code == code and body.details["rank"] == 1
    assert "fail" in [frame.function for link in body.chain for frame in link.frames]
    assert list((tmp_path / "checkpoints").iterdir()) == [] and not torch.distributed.is_initialized()


@pytest.mark.long
def test_a_checkpoint_that_the_leading_process_cannot_write_is_its_own_error(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(training_state, "_move_into_place", full)
    settings = {"schedule.steps": 500, "checkpoints.everySteps": 3}
    with pytest.raises(SidecarError, match="^No space left to write") as caught:
        run(start(tmp_path, {**changes(tiny_teacher, 2), **settings}))
    assert caught.value.code == "E_DISK_FULL"
