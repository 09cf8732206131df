"""Distillation from shards of latents and text embeddings: exact resume, any number of processes, bad samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from data.shards import saved, text_of, write_shard
from training.shard_run import LATENT, make_data, make_model, shard_changes
from training.tiny_run import comparable, run, start

from rcm_sidecar.checkpoints import load_network
from rcm_sidecar.checkpoints.training_state import load_checkpoint
from rcm_sidecar.config import parse_config
from rcm_sidecar.data.stored_text import stored_text
from rcm_sidecar.errors import DataError, SidecarError
from rcm_sidecar.link import RecordingLink, SampleTicket
from rcm_sidecar.networks import build
from rcm_sidecar.protocol import PlanRow, PretrainStart, RunSample

ROWS = (
    PlanRow(sampler="teacher", steps=2, guidance=5.0),
    PlanRow(sampler="student", steps=1, guidance=None),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("weights") / "Wan-Tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("shards"))


def tensors_of(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return load_checkpoint(folder)[0].read_whole()


def test_a_run_from_shards_and_its_resume(model: Path, data: Path, tmp_path: Path) -> None:
    """Every product is made or left out with a word; what a killed run left goes on bit for bit."""
    changes = shard_changes(model, data, **{"checkpoints.everySteps": 2, "evaluation.previews.everySteps": 2})
    end, link = run(start(tmp_path / "whole", changes, rows=ROWS))
    assert (end.state, end.step, end.student_updates, end.critic_updates) == ("succeeded", 4, 3, 1)
    metrics = link.metric_values()
    assert [values["data/epoch"] for _, _, values in metrics] == [0, 0, 0, 1]
    assert all(values["data/bad_samples"] == 0 and "time/data_wait_ms" in values for _, _, values in metrics)
    assert {"scm/loss", "dmd/loss", "critic/loss"} <= {name for _, _, values in metrics for name in values}
    assert len([record for record in link.of_type("log") if record["message"].startswith("No previews")]) == 1
    rows = link.of_type("evaluation")[0].rows
    assert [(row.sampler, row.calls, row.n) for row in rows] == [("teacher", 4, 1), ("student", 1, 1)]
    assert all(row.seconds is not None and row.seconds > 0 for row in rows)

    exported = tmp_path / "whole" / "export" / "official"
    document = json.loads((exported / "sampler.json").read_text())
    assert document["conditioner"] is None and document["latent"]["shape"] == list(LATENT)
    config = parse_config(start(tmp_path, changes).config)
    load_network(build("wan2.1-tiny", device="meta", **config.model.overrides.arguments()), exported)

    _, again = run(start(tmp_path / "again", changes, resume_from=tmp_path / "whole/checkpoints/step-00000002"))
    assert comparable(again) == comparable(link)[2:]
    final = [tensors_of(tmp_path / name / "checkpoints" / "step-00000004") for name in ("whole", "again")]
    for name, straight in final[0].items():
        assert all(torch.equal(straight[key], final[1][name][key]) for key in straight), name


def test_two_processes_take_the_steps_of_one(model: Path, data: Path, tmp_path: Path) -> None:
    changes = shard_changes(model, data, **{"checkpoints.export": [], "student.optimizer.epsilon": 1e-3})
    _, one = run(start(tmp_path / "one", changes))
    two_processes = {**changes, "compute.gpusPerNode": 2, "compute.parallel.shard": 2}
    _, two = run(start(tmp_path / "two", two_processes))
    for (step, phase, values), (_, other_phase, others) in zip(comparable(two), comparable(one), strict=True):
        assert phase == other_phase and values.keys() == others.keys()
        for name, value in others.items():
            assert abs(values[name] - value) <= 1e-4 * max(1.0, abs(value)), (step, name, values[name], value)


def test_bad_samples_are_named_counted_and_limited(model: Path, tmp_path: Path) -> None:
    changed = {3: {"latent.pt": b"no tensor"}, 6: {"embed.pt": saved(text_of(0)[:, :4])}, 9: {"embed.pt": None}}
    folder = make_data(tmp_path / "data", changes=changed)
    changes = shard_changes(model, folder, **{"checkpoints.everySteps": 2, "checkpoints.export": []})
    _, link = run(start(tmp_path / "run", changes))
    said = [record["message"] for record in link.of_type("log") if "is skipped" in record["message"]]
    assert len(said) == 3 and said[0].startswith("Sample shard_000002.tar/000000009 is skipped: it has no embed.pt")
    assert link.metric_values()[-1][2]["data/bad_samples"] == 3
    _, again = run(start(tmp_path / "run", changes, resume_from=tmp_path / "run/checkpoints/step-00000002"))
    assert comparable(again) == comparable(link)[2:]
    with pytest.raises(DataError) as caught:
        run(start(tmp_path / "strict", {**changes, "data.maxBadSamples": 2}))
    assert caught.value.code == "E_DATA_BAD_SAMPLES"


def test_other_data_are_no_data_to_resume_with(model: Path, tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data")
    changes = shard_changes(model, folder, **{"checkpoints.everySteps": 2, "checkpoints.export": []})
    run(start(tmp_path / "run", changes))
    resume = {"resume_from": tmp_path / "run/checkpoints/step-00000002"}
    write_shard(folder / "shard_000000.tar", [])
    with pytest.raises(DataError) as caught:
        run(start(tmp_path / "run", changes, **resume))
    assert caught.value.code == "E_DATA_CHANGED" and "--allow-drift" in str(caught.value.hint)
    end, link = run(start(tmp_path / "run", changes, **resume, allow_drift=True))
    assert end.state == "succeeded"
    assert any("have changed" in record["message"] for record in link.of_type("log"))


def test_a_request_for_samples_says_what_is_missing(model: Path, data: Path, tmp_path: Path) -> None:
    answers: list[Any] = []
    link = RecordingLink()
    link.requests.add_sample(SampleTicket(answers.append, RunSample(steps=1, num=1, seed=0, label=None)))
    run(start(tmp_path, shard_changes(model, data, **{"schedule.steps": 1, "checkpoints.export": []})), link)
    assert isinstance(answers[0], SidecarError) and answers[0].code == "E_CONFIG_NOT_YET"


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"model.width": 64}, "E_DATA_SHAPE", "model.frames"),
        ({"teacher.negative": "/nowhere/negative.pt"}, "E_DATA_NEGATIVE", "negative"),
        ({"teacher.negative": "empty"}, "E_CONFIG_VALUE", "teacher.negative"),
        ({"data.path": "/nowhere"}, "E_DATA_NOT_FOUND", "*.tar"),
        ({"data.path": None}, "E_CONFIG_VALUE", "data.path"),
    ],
)
def test_what_does_not_fit_is_refused_before_weights_are_loaded(
    changes: dict[str, Any], code: str, words: str, model: Path, data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("rcm_sidecar.training.setup.start_networks", None)
    with pytest.raises(SidecarError) as caught:
        run(start(tmp_path, shard_changes(model, data, **changes)))
    assert caught.value.code == code and words in f"{caught.value.message} {caught.value.hint}"


def test_pretraining_has_no_labels_there(model: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(SidecarError) as caught:
        run(start(tmp_path, shard_changes(model, data), job=PretrainStart))
    assert caught.value.code == "E_CONFIG_NOT_YET"


def test_the_negative_is_the_one_that_is_named(model: Path, data: Path, tmp_path: Path) -> None:
    def negative(**more: Any) -> torch.Tensor:
        config = parse_config(start(tmp_path, shard_changes(model, data, **more)).config)
        empty = stored_text(config).empty(3)
        assert empty.shape == (3, 8, 16)
        return empty[1]

    assert torch.equal(negative(), text_of(999).float())
    assert not negative(**{"teacher.negative": "zeros"}).any()
    (tmp_path / "other.pt").write_bytes(saved(text_of(5)[:6]))
    assert torch.equal(negative(**{"teacher.negative": str(tmp_path / "other.pt")}), text_of(5).float())
    cosmos = {"model.name": "cosmos-predict2-tiny", "model.overrides": {"textDim": 16, "textLen": 8}}
    assert not negative(**cosmos).any()


def test_a_value_that_is_not_finite_names_its_sample(model: Path, tmp_path: Path) -> None:
    """A latent of huge numbers is no bad sample by itself: what it does to the losses is reported with its name."""
    huge = saved(torch.full((16, 3, 4, 6), 3e38))
    folder = make_data(tmp_path / "data", changes={number: {"latent.pt": huge} for number in range(10)})
    settings = {"checkpoints.export": [], "health.nonFinite": {"policy": "fail", "maxShare": 0.0, "windowSteps": 1}}
    with pytest.raises(SidecarError) as caught:
        run(start(tmp_path / "run", shard_changes(model, folder, **settings, **{"health.teacherCheck": False})))
    assert caught.value.code == "E_NON_FINITE" and "(shard_00000" in caught.value.message, caught.value.message
