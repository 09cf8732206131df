"""Non-finite values in a whole run: events, the kept batch, the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training.tiny_run import run, start

from rcm_sidecar.errors import SidecarError, TrainingError
from rcm_sidecar.link import RecordingLink
from rcm_sidecar.methods import scm


def test_nan_in_the_loss_ends_the_run_and_keeps_the_last_checkpoint(tiny_teacher: Path, tmp_path: Path) -> None:
    changes = {
        "teacher.weights": str(tiny_teacher),
        "student.optimizer.learningRate": 1e30,
        "checkpoints.everySteps": 1,
        "health.nonFinite.windowSteps": 100,
    }
    link = RecordingLink()
    with pytest.raises(TrainingError) as caught:
        run(start(tmp_path, changes), link)
    assert caught.value.code == "E_NON_FINITE" and caught.value.details["term"] == "scm"
    alarms = link.of_type("alarm")
    assert len(alarms) == 2 and {alarm.code for alarm in alarms} == {"E_NON_FINITE"}
    assert alarms[0].details["block"] != "" and 0 <= alarms[0].details["sample"] < 8
    bad = alarms[0].step
    batch = load_file(tmp_path / "diagnostics" / f"step-{bad:08d}-batch.safetensors")
    assert batch["latents"].shape == (8, 1, 1, 8, 8)
    assert (tmp_path / "checkpoints" / f"step-{bad:08d}" / "manifest.json").is_file()
    assert json.loads((tmp_path / "checkpoints" / f"step-{bad:08d}" / "state.json").read_text())["nonFiniteSteps"] == [
        bad
    ]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda weights: weights["head.head.weight"].fill_(float("nan")), "not finite"),
        (lambda weights: [weights[name].zero_() for name in ("head.head.weight", "head.head.bias")], "zero"),
    ],
)
def test_the_teacher_is_checked(damage: object, message: str, tiny_teacher: Path, tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    folder.mkdir()
    weights = load_file(tiny_teacher / "model.safetensors")
    damage(weights)  # type: ignore[operator]
    save_file(weights, folder / "model.safetensors")
    (folder / "conditioner.safetensors").write_bytes((tiny_teacher / "conditioner.safetensors").read_bytes())
    with pytest.raises(SidecarError) as caught:
        run(start(tmp_path / "run", {"teacher.weights": str(folder)}))
    assert caught.value.code == "E_TEACHER_CHECK" and message in caught.value.message


def test_a_table_that_makes_guidance_a_no_op_is_found(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((tiny_teacher / "model.safetensors").read_bytes())
    table = load_file(tiny_teacher / "conditioner.safetensors")["table"]
    save_file({"table": table[-1:].expand_as(table).contiguous()}, folder / "conditioner.safetensors")
    changes = {"teacher.weights": str(folder), "schedule.steps": 1}
    with pytest.raises(SidecarError) as caught:
        run(start(tmp_path / "run", changes))
    assert caught.value.code == "E_TEACHER_CHECK" and "guidance" in caught.value.message
    unguided = {**changes, "teacher.guidance": 1.0}
    assert run(start(tmp_path / "unguided", unguided))[0].state == "succeeded"
    unchecked = {**changes, "health.teacherCheck": False}
    assert run(start(tmp_path / "unchecked", unchecked))[0].state == "succeeded"
    assert torch.equal(load_file(folder / "conditioner.safetensors")["table"][0], table[-1])


def test_an_overflowing_tangent_is_reported(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = scm.tangent

    def overflow(*arguments: object, **options: object) -> torch.Tensor:
        g = real(*arguments, **options)  # type: ignore[arg-type]
        g[2] = float("inf")
        return g

    monkeypatch.setattr(scm, "tangent", overflow)
    changes = {"teacher.weights": str(tiny_teacher), "schedule.steps": 3, "method": "scm"}
    end, link = run(start(tmp_path, changes))
    assert end.state == "succeeded"
    assert [alarm.details["samples"] for alarm in link.of_type("alarm")] == [1]
    warnings = [record for record in link.of_type("log") if record["level"] == "warn"]
    assert [record["fields"]["step"] for record in warnings] == [1, 2, 3]
