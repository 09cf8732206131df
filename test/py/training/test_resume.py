"""A resumed run equals an uninterrupted one bit for bit, through all phases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training.tiny_run import COSMOS, comparable, run, start

from rcm_sidecar.checkpoints.training_state import load_checkpoint
from rcm_sidecar.errors import CheckpointError
from rcm_sidecar.link import Cancel, Recorded, RecordingLink
from rcm_sidecar.protocol import DistillStart, PretrainStart

STEPS, STOP = 12, 5
LORA = {"student.lora": {"rank": 3, "alpha": 6.0, "targets": ["attention", "ffn"]}}
CASES = [
    pytest.param(DistillStart, {"method": "rcm"}, id="rcm"),
    pytest.param(DistillStart, {"method": "dmd"}, id="dmd"),
    pytest.param(DistillStart, {"method": "rcm", "student.optimizer.betas": [0.9, 0.99]}, id="rcm-momentum"),
    pytest.param(DistillStart, {"method": "dcm", "schedule.microBatchSize": 4}, id="dcm-micro-batches"),
    pytest.param(DistillStart, {"method": "rcm", **LORA}, id="rcm-lora"),
    pytest.param(DistillStart, {"method": "dcm", **LORA, "schedule.microBatchSize": 4}, id="dcm-lora-micro-batches"),
    pytest.param(PretrainStart, {"pretrain.steps": STEPS}, id="pretrain"),
]


def stop_at(step: int, checkpoint: bool) -> RecordingLink:
    """A link that cancels after a step."""

    def on_record(record: Recorded) -> None:
        if record.type == "progress" and record.body.step == step:
            link.requests.cancel(Cancel(checkpoint))

    link = RecordingLink(on_record)
    return link


@pytest.mark.parametrize(("job", "changes"), CASES)
def test_a_resumed_run_is_bit_identical(job: Any, changes: dict[str, Any], tiny_teacher: Path, tmp_path: Path) -> None:
    changes = {"teacher.weights": str(tiny_teacher), "logging.everySteps": 2, "schedule.steps": STEPS, **changes}
    whole_end, whole = run(start(tmp_path / "whole", changes, job=job))
    first_end, first = run(start(tmp_path / "parts", changes, job=job), stop_at(STOP, checkpoint=True))
    assert (first_end.state, first_end.step) == ("stopped", STOP)
    folder = tmp_path / "parts" / str(first_end.checkpoint)
    torch.set_num_threads(2)  # the checkpoint's thread count must win
    second_end, second = run(start(tmp_path / "parts", changes, job=job, resume_from=folder, attempt=2))
    assert torch.get_num_threads() == 1

    assert (second_end.state, second_end.step) == ("succeeded", STEPS)
    assert comparable(first) + comparable(second) == comparable(whole)
    assert len(comparable(second)) > 0
    assert (second_end.student_updates, second_end.critic_updates) == (
        whole_end.student_updates,
        whole_end.critic_updates,
    )
    final = [tmp_path / name / "checkpoints" / f"step-{STEPS:08d}" for name in ("whole", "parts")]
    folders = [load_checkpoint(folder)[0].read_whole() for folder in final]
    assert folders[0].keys() == folders[1].keys()
    for name, straight in folders[0].items():
        resumed = folders[1][name]
        assert straight.keys() == resumed.keys()
        for key in straight:
            assert torch.equal(straight[key], resumed[key]), (name, key)
    states = [json.loads((folder / "state.json").read_text()) for folder in final]
    assert states[0] == states[1]


def test_all_phases_take_part_in_the_comparison(tiny_teacher: Path, tmp_path: Path) -> None:
    _, link = run(start(tmp_path, {"teacher.weights": str(tiny_teacher)}))
    names = {name for _, _, values in comparable(link) for name in values}
    assert {"scm/loss", "dmd/loss", "critic/loss", "grad_norm/student", "grad_norm/critic", "lr/critic"} <= names
    warmup = [values for step, phase, values in comparable(link) if step <= 2]
    assert all("dmd/loss" not in values for values in warmup)


def test_a_resume_from_an_earlier_step_keeps_its_own_checkpoints(tiny_teacher: Path, tmp_path: Path) -> None:
    changes = {"teacher.weights": str(tiny_teacher), "checkpoints.everySteps": 1, "checkpoints.keepLast": 3}
    run(start(tmp_path, {**changes, "schedule.steps": 5}))
    root = tmp_path / "checkpoints"
    assert sorted(path.name for path in root.iterdir()) == [f"step-{step:08d}" for step in (3, 4, 5)]
    link = stop_at(4, checkpoint=False)
    end, _ = run(start(tmp_path, changes, resume_from=root / "step-00000003", attempt=2), link)
    assert end.state == "stopped" and end.checkpoint is not None and (tmp_path / end.checkpoint).is_dir()
    assert sorted(path.name for path in root.iterdir()) == [f"step-{step:08d}" for step in (3, 4)]


def test_resume_at_the_total_only_exports(tiny_teacher: Path, tmp_path: Path) -> None:
    changes = {"teacher.weights": str(tiny_teacher), "schedule.steps": 2, "checkpoints.export": ["official"]}
    end, _ = run(start(tmp_path, changes))
    folder = tmp_path / str(end.checkpoint)
    weights = tmp_path / "export" / "official" / "model.safetensors"
    before = load_file(weights)
    weights.unlink()
    again, link = run(start(tmp_path, changes, resume_from=folder, attempt=2))
    assert again.state == "succeeded" and again.step == 2 and again.checkpoint == end.checkpoint
    after = load_file(weights)
    assert before.keys() == after.keys() and all(torch.equal(after[name], value) for name, value in before.items())
    assert link.of_type("metric") == [] and link.of_type("checkpoint") == []


def test_another_torch_is_refused_unless_allowed(tiny_teacher: Path, tmp_path: Path) -> None:
    changes = {"teacher.weights": str(tiny_teacher), "schedule.steps": 3}
    end, _ = run(start(tmp_path, changes), stop_at(1, checkpoint=True))
    folder = tmp_path / str(end.checkpoint)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "torch": "2.0.0"}))
    with pytest.raises(CheckpointError) as caught:
        run(start(tmp_path, changes, resume_from=folder))
    assert caught.value.code == "E_TORCH_DRIFT"
    assert "2.0.0" in caught.value.message and torch.__version__ in caught.value.message
    drifted, link = run(start(tmp_path, changes, resume_from=folder, allow_drift=True))
    assert drifted.state == "succeeded"
    assert any("2.0.0" in record["message"] for record in link.of_type("log"))


def test_a_checkpoint_of_another_run_is_refused(tiny_teacher: Path, cosmos_teacher: Path, tmp_path: Path) -> None:
    """Of another method, of adapters, of another teacher or network: before a step, and nothing is left."""
    changes = {"teacher.weights": str(tiny_teacher), "schedule.steps": 2}
    end, _ = run(start(tmp_path / "one", {**changes, "method": "scm"}))
    others: tuple[tuple[dict[str, Any], str], ...] = (
        ({"method": "rcm"}, "critic"),
        ({"method": "scm", **LORA}, "student does not fit"),
        ({"method": "scm", "teacher.weights": str(cosmos_teacher), **COSMOS}, "teacher's weights have changed"),
    )
    for other, message in others:
        link = RecordingLink()
        with pytest.raises(CheckpointError, match=message) as caught:
            checkpoint = tmp_path / "one" / str(end.checkpoint)
            run(start(tmp_path / "other", {**changes, **other}, resume_from=checkpoint), link)
        assert caught.value.code == "E_CHECKPOINT_CORRUPT" and caught.value.hint
        assert link.of_type("progress") == [] and not (tmp_path / "other").exists()
