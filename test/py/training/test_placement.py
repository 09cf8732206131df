"""How networks are stored and computed with, from the config (design.md section 2, precision)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training.tiny_run import run, start, tiny_config

from rcm_sidecar.distributed.launch import leading
from rcm_sidecar.distributed.tensors import local
from rcm_sidecar.link import RecordingLink
from rcm_sidecar.networks.lora import is_adapter
from rcm_sidecar.training.branches import auto_branches, tokens_of_a_pass
from rcm_sidecar.training.setup import Trained, set_up_distillation

HALF = {name: "fp32" for name in ("time", "master", "reduce", "ema")} | {"compute": "bf16", "residual": "bf16"}
FULL = dict.fromkeys(HALF, "fp32")
LORA = {"rank": 2, "alpha": 4.0, "targets": ["attention"]}


def scm_of(teacher: Path) -> dict[str, Any]:
    """Without warm-up, so that the tangent counts from the first step."""
    return {"teacher.weights": str(teacher), "method": "scm", "losses.scm.tangentWarmupUpdates": 0}


def losses(trained: Trained, steps: int) -> list[float]:
    return [trained.trainer.run_step().values["scm/loss"] for _ in range(steps)]


@pytest.mark.parametrize("mode", ["selective", "block", "asymmetric"])
def test_what_is_computed_again_gives_the_same_steps(mode: str, tiny_teacher: Path) -> None:
    changes = scm_of(tiny_teacher)
    trained = set_up_distillation(tiny_config({**changes, "compute.activationCheckpointing": mode}), check=True)
    assert trained.learner.network.activation_checkpointing == mode
    plain = set_up_distillation(tiny_config(changes), check=True)
    assert losses(trained, 3) == pytest.approx(losses(plain, 3), rel=1e-6)


def test_batched_branches_give_the_same_steps(tiny_teacher: Path) -> None:
    changes = scm_of(tiny_teacher)
    batched = set_up_distillation(tiny_config({**changes, "teacher.branches": "batched"}), check=True)
    plain = set_up_distillation(tiny_config(changes), check=True)
    assert losses(batched, 3) == pytest.approx(losses(plain, 3), rel=1e-5)


def test_what_auto_makes_of_the_branches(tiny_teacher: Path) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert tokens_of_a_pass((16, 1, 96, 170), (1, 2, 2), 1, 1) == 4080  # Cosmos-Predict2, 1360x768
    assert tokens_of_a_pass((16, 20, 60, 104), (1, 2, 2), 1, 1) == 31200  # Wan2.1, 832x480
    assert tokens_of_a_pass((16, 1, 96, 170), (1, 2, 2), 3, 8) == 3 * 510
    assert [auto_branches(gpu, tokens) for tokens in (4080, 8192, 8193, 31200)] == ["batched"] * 2 + ["sequential"] * 2
    assert auto_branches(cpu, 16) == "sequential"
    assert set_up_distillation(tiny_config(scm_of(tiny_teacher)), check=False).branches == "sequential"


@pytest.mark.parametrize("lora", [None, LORA])
def test_half_precision_stores_what_trains_and_the_time_path_in_float32(
    lora: dict[str, Any] | None, tiny_teacher: Path, tmp_path: Path
) -> None:
    changes = {**scm_of(tiny_teacher), "compute.precision": HALF, "student.lora": lora}
    config = tiny_config(changes)
    with leading(start(tmp_path, changes), config.compute, RecordingLink()) as team:
        assert team.mesh is not None and team.single
        trained = set_up_distillation(config, True, team)
        assert trained.teacher is not None
        for name, parameter in trained.teacher.named_parameters():
            wide = is_adapter(name) or name.startswith(trained.teacher.wide_parts)
            assert parameter.dtype == (torch.float32 if wide else torch.bfloat16), name
        exact = losses(set_up_distillation(tiny_config({**changes, "compute.precision": FULL}), True), 3)
        rounded = losses(trained, 3)
        assert rounded == pytest.approx(exact, rel=0.05) and rounded != pytest.approx(exact, rel=1e-5)
        role = trained.shown
        assert {value.dtype for value in role.parameters.values()} == {torch.float32}
        assert {value.dtype for value in role.emas[0].weights.values()} == {torch.float32}
        moments = [value for name, value in role.optimizer.state_dict().items() if name != "updates"]
        assert {local(value).dtype for value in moments} == {torch.float32}
        assert len(moments) == len(role.parameters)  # betas[0] is 0: no first moment


def test_a_whole_run_in_half_precision(tiny_teacher: Path, tmp_path: Path) -> None:
    changes = {"teacher.weights": str(tiny_teacher), "compute.precision": HALF, "schedule.steps": 3}
    end, link = run(start(tmp_path, changes))
    assert end.state == "succeeded" and [item.layout for item in end.exports] == ["official", "diffusers"]
    again, _ = run(start(tmp_path, changes, resume_from=tmp_path / str(end.checkpoint)))
    assert again.state == "succeeded" and link.of_type("alarm") == []
