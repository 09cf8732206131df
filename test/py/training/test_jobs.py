"""Jobs through a recording link: requests, products, ends."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training.tiny_run import NETWORK, run, start, tiny_config

from rcm_sidecar.checkpoints import load_network
from rcm_sidecar.checkpoints.training_state import load_checkpoint
from rcm_sidecar.data import LabelConditioner
from rcm_sidecar.dual import attention
from rcm_sidecar.errors import SidecarError
from rcm_sidecar.jobs import run_job
from rcm_sidecar.link import Cancel, Recorded, RecordingLink, SampleTicket, Ticket
from rcm_sidecar.networks import build
from rcm_sidecar.protocol import DistillStart, PlanRow, PretrainStart, RunSample, SampleStart

ROWS = (
    PlanRow(sampler="train", steps=None, guidance=None),
    PlanRow(sampler="teacher", steps=1, guidance=1.5),
    PlanRow(sampler="student", steps=1, guidance=None),
)


def at_step(step: int, act: Any) -> RecordingLink:
    """A link that acts (with itself as argument) after a step."""

    def on_record(record: Recorded) -> None:
        if record.type == "progress" and record.body.step == step:
            act(link)

    link = RecordingLink(on_record)
    return link


def test_a_whole_run_reports_everything(tiny_teacher: Path, tmp_path: Path) -> None:
    changes = {
        "teacher.weights": str(tiny_teacher),
        "schedule.steps": 6,
        "checkpoints.everySteps": 2,
        "checkpoints.keepLast": 2,
        "evaluation.previews.everySteps": 3,
        "evaluation.everySteps": 4,
    }
    end, link = run(start(tmp_path, changes, rows=ROWS, smoke=True))
    assert end.state == "succeeded"
    assert (end.step, end.student_updates, end.critic_updates) == (6, 4, 2)
    assert [body.step for body in link.of_type("checkpoint")] == [2, 4, 6]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]
    assert [body.step for body in link.of_type("evaluation")] == [4, 6]
    assert [grid.step for grid in link.of_type("sample")] == [3, 4, 6, 6]
    assert [body.step for body in link.of_type("progress")] == [1, 2, 3, 4, 5, 6]
    assert end.checkpoint == "checkpoints/step-00000006"
    assert [item.layout for item in end.exports] == ["official", "diffusers"]
    names = {name for name, _ in link.of_type("activity")}
    assert names == {"loading", "training", "sampling", "checkpointing", "evaluating"}


def test_an_evaluation_that_is_there_is_not_repeated(tiny_teacher: Path, tmp_path: Path) -> None:
    changes = {"teacher.weights": str(tiny_teacher), "schedule.steps": 2}
    end, link = run(start(tmp_path, changes, rows=ROWS))
    assert len(link.of_type("evaluation")) == 1
    folder = tmp_path / str(end.checkpoint)
    _, again = run(start(tmp_path, changes, rows=ROWS, resume_from=folder))
    assert len(again.of_type("evaluation")) == 1  # Node had not written the first one
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "step-00000002-ema.json").write_text("{}")
    _, third = run(start(tmp_path, changes, rows=ROWS, resume_from=folder))
    assert third.of_type("evaluation") == []


@pytest.mark.parametrize("layout", ["official", "diffusers"])
def test_an_export_holds_the_average_and_samples(layout: str, tiny_teacher: Path, tmp_path: Path) -> None:
    end, _ = run(start(tmp_path, {"teacher.weights": str(tiny_teacher), "schedule.steps": 4}))
    folder = tmp_path / "export" / layout
    document = json.loads((folder / "sampler.json").read_text())
    assert (document["kind"], document["step"], document["runId"]) == ("student", 4, "tiny")
    assert document["network"] == {"name": "wan2.1-tiny", "overrides": NETWORK}
    assert (folder / document["weights"]).is_file() and (folder / "config.json").is_file()
    assert "CC BY 4.0" in (folder / "README.md").read_text()
    network = build("wan2.1-tiny", device="meta", **tiny_config().model.overrides.arguments())
    load_network(network, folder)
    average = load_checkpoint(tmp_path / str(end.checkpoint))[0].read_whole()["ema-0"]
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, average[name]), name
    table, original = (LabelConditioner.load(path).table for path in (folder, tiny_teacher))
    assert torch.equal(table, original)

    out = tmp_path / "out"
    ask = SampleStart(
        source=str(folder),
        steps=2,
        num=7,
        seed=3,
        label=4,
        teacher=False,
        out_dir=str(out),
        threads=None,
    )
    link = RecordingLink()
    assert run_job(ask, link).state == "succeeded"
    grid = link.of_type("sample")[0]
    assert grid.pixels.shape == (1, 7, 8, 8, 1) and grid.columns == ("4",) * 7
    drawn = load_file(out / "samples.safetensors")
    assert drawn["latents"].shape == (7, 1, 1, 8, 8) and drawn["labels"].tolist() == [4] * 7
    assert torch.isfinite(drawn["latents"]).all()


def test_the_sample_job_with_a_teacher(tiny_teacher: Path, tmp_path: Path) -> None:
    ask = SampleStart(
        source=str(tiny_teacher / "model.safetensors"),
        steps=3,
        num=20,
        seed=0,
        label=None,
        teacher=True,
        out_dir=str(tmp_path),
        threads=1,
    )
    link = RecordingLink()
    run_job(ask, link)
    grid = link.of_type("sample")[0]
    assert grid.pixels.shape == (2, 10, 8, 8, 1)
    assert grid.columns == tuple(str(label) for label in range(10))


def test_a_teacher_of_zero_negatives_is_sampled_with_them(tmp_path: Path) -> None:
    """The exported negative condition decides the samples; without the key it is the empty one."""
    run(start(tmp_path, {"pretrain.steps": 30, "teacher.negative": "zeros"}, job=PretrainStart))
    folder = tmp_path / "export" / "official"

    def drawn(name: str) -> torch.Tensor:
        out = tmp_path / name
        fields = {"steps": 2, "num": 4, "seed": 0, "label": None, "teacher": True, "threads": None}
        run_job(SampleStart(source=str(folder), out_dir=str(out), **fields), RecordingLink())  # type: ignore[arg-type]
        return load_file(out / "samples.safetensors")["latents"]

    zeros = drawn("zeros")
    document = json.loads((folder / "sampler.json").read_text())
    assert document["sampler"].pop("negative") == "zeros"
    (folder / "sampler.json").write_text(json.dumps(document))
    assert not torch.equal(zeros, drawn("empty"))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"label": -1}, "E_USAGE"),
        ({"label": 10}, "E_USAGE"),
        ({"source": "nowhere"}, "E_WEIGHTS_NOT_FOUND"),
    ],
)
def test_sample_refuses(changes: dict[str, Any], code: str, tiny_teacher: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "source": str(tiny_teacher),
        "steps": 1,
        "num": 1,
        "seed": 0,
        "label": None,
        "teacher": False,
        "out_dir": str(tmp_path / "out"),
        "threads": None,
        **changes,
    }
    with pytest.raises(SidecarError) as caught:
        run_job(SampleStart(**fields), RecordingLink())
    assert caught.value.code == code
    assert not (tmp_path / "out").exists()


def test_cancel_without_checkpoint_ends_inside_a_step(tiny_teacher: Path, tmp_path: Path) -> None:
    moments: dict[str, float] = {}

    def cancel(link: RecordingLink) -> None:
        moments["cancel"] = time.perf_counter()
        link.requests.cancel(Cancel(checkpoint=False))

    end, link = run(start(tmp_path, {"teacher.weights": str(tiny_teacher)}), at_step(4, cancel))
    took = time.perf_counter() - moments["cancel"]
    assert (end.state, end.step, end.checkpoint) == ("stopped", 4, None)
    assert not (tmp_path / "checkpoints").exists() and not (tmp_path / "export").exists()
    assert took < 0.1
    print(f"cancel to end {1000 * took:.1f} ms")


def test_cancel_is_seen_between_micro_batches(tiny_teacher: Path, tmp_path: Path) -> None:
    changes = {"teacher.weights": str(tiny_teacher), "schedule.microBatchSize": 1, "method": "scm"}
    looks = {"number": 0}
    link = RecordingLink()
    original = link.requests.cancelled

    def cancelled() -> Cancel | None:
        looks["number"] += 1
        return Cancel(checkpoint=False) if looks["number"] > 3 else original()

    link.requests.cancelled = cancelled  # type: ignore[method-assign]
    end, _ = run(start(tmp_path, changes), link)
    assert (end.state, end.step) == ("stopped", 0)
    assert link.of_type("progress") == []


def test_checkpoint_and_sample_on_request(tiny_teacher: Path, tmp_path: Path) -> None:
    answers: list[Any] = []

    def ask(link: RecordingLink) -> None:
        link.requests.add_checkpoint(Ticket(answers.append, "asked"))
        link.requests.add_sample(SampleTicket(answers.append, RunSample(steps=2, num=4, seed=1, label=None)))
        link.requests.add_sample(SampleTicket(answers.append, RunSample(steps=9, num=4, seed=1, label=None)))

    changes = {"teacher.weights": str(tiny_teacher), "schedule.steps": 4}
    end, link = run(start(tmp_path, changes), at_step(2, ask))
    assert end.state == "succeeded"
    assert answers[0] == {"step": 2, "path": "checkpoints/step-00000002"}
    assert answers[1] == {"step": 2, "num": 4}
    assert isinstance(answers[2], SidecarError)  # this student has times for 4 steps at most
    assert [(body.step, body.reason) for body in link.of_type("checkpoint")] == [(2, "asked"), (4, "end")]
    assert load_checkpoint(tmp_path / "checkpoints" / "step-00000002")[0].step == 2
    grid = link.of_type("sample")[0]
    assert grid.kind == "request" and grid.step == 2


def test_pause_stands_still_and_serves_requests(tiny_teacher: Path, tmp_path: Path) -> None:
    answers: list[Any] = []

    def on_record(record: Recorded) -> None:
        if record.type == "progress" and record.body.step == 2:
            link.requests.pause(True)
        if record.type == "paused":
            link.requests.add_checkpoint(Ticket(answers.append))
        if record.type == "checkpoint" and record.body.step == 2:
            link.requests.pause(False)

    link = RecordingLink(on_record)
    end, _ = run(start(tmp_path, {"teacher.weights": str(tiny_teacher), "schedule.steps": 3}), link)
    assert end.state == "succeeded"
    assert link.of_type("paused") == [2] and link.of_type("continued") == [2]
    assert answers == [{"step": 2, "path": "checkpoints/step-00000002"}]


def test_no_checkpoint_at_the_end_where_switched_off(tiny_teacher: Path, tmp_path: Path) -> None:
    changes = {"teacher.weights": str(tiny_teacher), "schedule.steps": 2, "checkpoints.onStop": False}
    end, _ = run(start(tmp_path, changes))
    assert end.checkpoint is None and not (tmp_path / "checkpoints").exists()


def test_pretrain_evaluates_its_teacher(tmp_path: Path) -> None:
    rows = (PlanRow(sampler="teacher", steps=2, guidance=1.0),)
    end, link = run(start(tmp_path, {"pretrain.steps": 3, "checkpoints.export": []}, job=PretrainStart, rows=rows))
    assert end.state == "succeeded" and [item.path for item in end.exports] == ["export/official"]
    assert json.loads((tmp_path / "export" / "official" / "sampler.json").read_text())["kind"] == "teacher"
    assert len(link.of_type("evaluation")[0].rows) == 1
    assert {phase for _, phase, _ in link.metric_values()} == {"teacher"}


def test_samples_of_a_teacher_in_training_are_not_taken_for_those_of_a_later_step(tmp_path: Path) -> None:
    """Only those of the exported teacher are kept; an evaluation on the way leaves no export either."""
    rows = (PlanRow(sampler="teacher", steps=1, guidance=1.0),)
    seen = []

    def on_record(record: Recorded) -> None:
        if record.type == "evaluation":
            seen.append((record.body.step, (tmp_path / "export").exists(), (tmp_path / "cache").exists()))

    link = RecordingLink(on_record)
    changes = {"pretrain.steps": 3, "checkpoints.export": [], "evaluation.everySteps": 1}
    run(start(tmp_path, changes, job=PretrainStart, rows=rows), link)
    assert seen == [(1, False, False), (2, False, False), (3, True, True)]


def test_a_teacher_with_wrong_keys_is_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    overrides = {**NETWORK, "numLayers": 2}
    changes = {"teacher.weights": str(tiny_teacher), "model.overrides": overrides}
    with pytest.raises(SidecarError) as caught:
        run(start(tmp_path, changes, job=DistillStart))
    assert caught.value.code == "E_WEIGHTS_MISMATCH"
    assert list(tmp_path.iterdir()) == []


def test_attention_runs_on_the_kernels_of_the_config(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(attention.KERNELS_VARIABLE, "auto")
    monkeypatch.setattr(attention, "runs_fused", lambda _: True)
    changes = {"teacher.weights": str(tiny_teacher), "schedule.steps": 1, "compute.attention": "triton"}
    with pytest.raises(ValueError, match="attention backend triton: device cpu"):
        run(start(tmp_path, changes))
