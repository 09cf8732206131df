"""Training on one GPU, a mesh of one process: the steps of the CPU, and what only a GPU has. `make test-gpu`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training.tiny_run import FIXTURE, comparable, run, start

from rcm_sidecar.dual.attention import KERNELS_VARIABLE
from rcm_sidecar.protocol import PlanRow

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

HALF = {name: "fp32" for name in ("time", "master", "reduce", "ema")} | {"compute": "bf16", "residual": "bf16"}
LORA = {"rank": 2, "alpha": 4.0, "targets": ["attention", "ffn"]}
ROWS = (PlanRow(sampler="teacher", steps=1, guidance=1.5), PlanRow(sampler="student", steps=1, guidance=None))


def changes(teacher: Path, device: str, **others: Any) -> dict[str, Any]:
    return {
        "teacher.weights": str(teacher),
        "compute.device": device,
        "compute.attention": "eager",
        "schedule.steps": 5,
        "losses.scm.tangentWarmupUpdates": 1,
        "evaluation.previews.everySteps": 3,
        **others,
    }


@pytest.mark.parametrize("method", ["rcm", "scm", "dmd", "dcm"])
@pytest.mark.parametrize("lora", [None, LORA])
def test_the_gpu_takes_the_steps_of_the_cpu(method: str, lora: Any, tiny_teacher: Path, tmp_path: Path) -> None:
    """Random numbers are drawn on the CPU, so float32 steps agree but for rounding."""
    runs = {}
    for device in ("cpu", "cuda"):
        settings = changes(tiny_teacher, device, method=method, **{"student.lora": lora})
        end, link = run(start(tmp_path / device, settings, rows=ROWS))
        assert end.state == "succeeded" and link.of_type("alarm") == []
        assert len(link.of_type("evaluation")[0].rows) == len(ROWS)
        runs[device] = comparable(link)
    for (step, phase, values), (other_step, other_phase, others) in zip(runs["cuda"], runs["cpu"], strict=True):
        assert (step, phase, values.keys()) == (other_step, other_phase, others.keys())
        for name, value in others.items():
            assert values[name] == pytest.approx(value, rel=1e-2, abs=1e-3), (step, name)


@pytest.mark.parametrize("checkpointing", ["none", "selective", "block", "asymmetric"])
@pytest.mark.parametrize("lora", [None, LORA])
def test_half_precision_trains_resumes_and_repeats(
    checkpointing: str, lora: Any, tiny_teacher: Path, tmp_path: Path
) -> None:
    settings = changes(
        tiny_teacher,
        "cuda",
        **{
            "compute.precision": HALF,
            "compute.activationCheckpointing": checkpointing,
            "teacher.branches": "batched",
            "student.lora": lora,
            "checkpoints.everySteps": 3,
        },
    )
    ends = {}
    for name in ("first", "second"):
        end, link = run(start(tmp_path / name, settings))
        assert end.state == "succeeded" and link.of_type("alarm") == []
        ends[name] = comparable(link)
    assert ends["first"] == ends["second"], "deterministic runs differ"
    folder = tmp_path / "first" / "checkpoints" / "step-00000003"
    end, link = run(start(tmp_path / "first", settings, resume_from=folder))
    assert end.state == "succeeded"
    assert comparable(link) == [record for record in ends["first"] if record[0] > 3]


@pytest.mark.parametrize("lora", [None, LORA])
def test_offloaded_state_gives_the_same_run_and_resumes(lora: Any, tiny_teacher: Path, tmp_path: Path) -> None:
    """Moments and averages in main memory, sharded over a mesh of one: the same bits, also from each other's files."""
    ends = {}
    for offload in ("none", "optimizer"):
        settings = changes(
            tiny_teacher,
            "cuda",
            **{"compute.precision": HALF, "compute.offload": offload},
            **{"student.lora": lora, "checkpoints.everySteps": 3},
        )
        end, link = run(start(tmp_path / offload, settings))
        assert end.state == "succeeded" and link.of_type("alarm") == []
        ends[offload] = comparable(link)
    assert ends["none"] == ends["optimizer"]
    folder = tmp_path / "none" / "checkpoints" / "step-00000003"
    end, link = run(start(tmp_path / "optimizer", settings, resume_from=folder))
    assert end.state == "succeeded"
    assert comparable(link) == [record for record in ends["none"] if record[0] > 3]


def test_the_kernels_that_auto_picks_agree_with_eager_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the shipped teacher: its heads have 32 elements, which the kernels take; the tiny network's have 8."""
    runs = {}
    digits = json.loads(FIXTURE.read_text())["model"]["overrides"]
    for attention in ("eager", "auto"):
        monkeypatch.delenv(KERNELS_VARIABLE, raising=False)
        chosen = {"compute.attention": attention, "compute.precision": HALF, "model.overrides": digits}
        settings = changes(Path("builtin:digits-teacher"), "cuda", **chosen)
        end, link = run(start(tmp_path / attention, settings))
        assert end.state == "succeeded" and link.of_type("alarm") == []
        runs[attention] = comparable(link)
    for (_, _, values), (_, _, others) in zip(runs["auto"], runs["eager"], strict=True):
        for name in values.keys() & others.keys():
            if name.endswith("/loss"):
                assert values[name] == pytest.approx(others[name], rel=0.05), name
