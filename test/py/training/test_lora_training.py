"""Distillation with `student.lora`: one frozen base for all roles, adapters in everything that trains and is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training.tiny_run import run, start, tiny_config

from rcm_sidecar.checkpoints import load_network
from rcm_sidecar.checkpoints.training_state import load_checkpoint
from rcm_sidecar.diffusion.samplers import sample_student, sample_teacher, student_times
from rcm_sidecar.errors import CheckpointError, ConfigError, WeightsError
from rcm_sidecar.evaluation.sampling import noise_sets
from rcm_sidecar.link import RecordingLink
from rcm_sidecar.networks import build
from rcm_sidecar.networks.lora import is_adapter
from rcm_sidecar.protocol import PlanRow, PretrainStart, SampleStart
from rcm_sidecar.sample_job import run_sample
from rcm_sidecar.training.setup import Trained, set_up_distillation
from rcm_sidecar.training.shown import average_in_place

LORA = {"student.lora": {"rank": 3, "alpha": 6.0, "targets": ["attention", "ffn"]}}
COSMOS = {
    "model.name": "cosmos-predict2-tiny",
    "model.overrides": {"dim": 16, "numHeads": 2, "numLayers": 1, "textDim": 16, "inDim": 1, "outDim": 1},
}
# The full digits network of the default config.
DIGITS = {
    "dim": 64, "numHeads": 2, "numLayers": 3, "ffnDim": 192, "textDim": 64, "freqDim": 64, "inDim": 1, "outDim": 1,
}  # fmt: skip


@pytest.fixture(scope="session")
def cosmos_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cosmos")
    run(start(folder, {**COSMOS, "pretrain.steps": 30}, job=PretrainStart))
    return folder / "export" / "official"


@pytest.fixture(params=["wan", "cosmos"])
def changes(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Of the tiny config: LoRA on a teacher of each family."""
    if request.param == "wan":
        return {"teacher.weights": str(request.getfixturevalue("tiny_teacher")), **LORA}
    return {"teacher.weights": str(request.getfixturevalue("cosmos_teacher")), **COSMOS, **LORA}


def velocities(trained: Trained) -> dict[str, torch.Tensor]:
    """Of the teacher and of the student at fixed inputs."""
    latents = torch.randn(4, 1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    time = torch.full((4,), 0.4) * trained.learner.network.spec.time_scale
    assert trained.teacher is not None
    with torch.no_grad():
        text = trained.condition(torch.arange(4))
        return {
            "teacher": trained.teacher(latents, time, text),
            "student": trained.learner.velocity(latents, time, text),
        }


def base_of(trained: Trained) -> dict[str, torch.Tensor]:
    named = trained.learner.network.named_parameters()
    return {name: p.detach().clone() for name, p in named if not is_adapter(name)}


@pytest.mark.parametrize("method", ["rcm", "scm", "dcm", "dmd"])
def test_only_adapters_train_and_the_teacher_never_changes_by_a_bit(method: str, changes: dict[str, Any]) -> None:
    trained = set_up_distillation(tiny_config({**changes, "method": method}), check=True)
    trainer, base, before = trained.trainer, base_of(trained), velocities(trained)
    called = trainer._plan.networks
    assert called.teacher is trained.teacher is trained.learner.network, "one network for all roles"
    assert all(velocity.func is trained.teacher for velocity in (called.student, called.critic) if velocity is not None)
    assert torch.equal(before["teacher"], before["student"])
    starts = {name: {n: p.detach().clone() for n, p in role.parameters.items()} for name, role in trainer.roles.items()}
    assert set(starts) == ({"student", "critic"} if method in ("rcm", "dmd") else {"student"})
    for _ in range(8):
        assert trainer.run_step().non_finite is None
    after = velocities(trained)
    assert torch.equal(after["teacher"], before["teacher"])
    assert not torch.equal(after["student"], before["student"])
    for name, value in base.items():
        parameter = trained.learner.network.get_parameter(name)
        assert torch.equal(parameter, value) and not parameter.requires_grad, name
    for name, role in trainer.roles.items():
        assert all(f".lora.{name}." in key for key in role.parameters)
        assert {parameter.dtype for parameter in role.parameters.values()} == {torch.float32}
        assert role.optimizer.state_dict().keys() == {"updates", *(f"second/{key}" for key in role.parameters)}
        assert all(not torch.equal(value, starts[name][key]) for key, value in role.parameters.items())
    assert [ema.weights.keys() for ema in trained.shown.emas] == [trained.shown.parameters.keys()]


def test_what_is_shown_has_the_average_and_training_finds_everything_as_it_was(changes: dict[str, Any]) -> None:
    trained = set_up_distillation(tiny_config(changes), check=False)
    for _ in range(3):
        trained.trainer.run_step()
    role, average = trained.shown, trained.shown.emas[0].weights
    everything = {"network": dict(trained.learner.network.named_parameters()), "average": average}
    before = {(part, name): v.detach().clone() for part, named in everything.items() for name, v in named.items()}
    with pytest.raises(KeyError), average_in_place(role):
        for name, parameter in trained.learner.network.named_parameters():
            wanted = before["average" if name in average else "network", name]
            assert torch.equal(parameter, wanted), name
        assert not torch.equal(role.parameters[name := next(iter(average))], before["network", name])
        raise KeyError("what happens meanwhile")
    for (part, name), value in before.items():
        assert torch.equal(everything[part][name], value), (part, name)
    assert all(p.requires_grad == is_adapter(name) for name, p in everything["network"].items())


def test_checkpoints_and_exports(changes: dict[str, Any], tmp_path: Path) -> None:
    layouts = ["official", "diffusers", "comfyui"]
    short = {"schedule.steps": 6, "checkpoints.export": layouts, "evaluation.previews.everySteps": 3}
    rows = (
        PlanRow(sampler="teacher", steps=1, guidance=1.5),
        PlanRow(sampler="student", steps=1, guidance=None),
    )
    end, link = run(start(tmp_path, {**changes, **short}, rows=rows, smoke=True))
    assert [item.path for item in end.exports] == [f"export/{name}" for name in (*layouts, "lora")]
    assert [body.step for body in link.of_type("evaluation")] == [6] and len(link.of_type("sample")) == 3
    checkpoint = tmp_path / str(end.checkpoint)
    kept = load_checkpoint(checkpoint)[0].read_whole()
    assert set(kept) == {"student", "critic", "optimizer-student", "optimizer-critic", "ema-0"}
    assert all(is_adapter(key.replace("/", ".")) or key == "updates" for tensors in kept.values() for key in tensors)

    teacher = Path(changes["teacher.weights"])
    files = {name: tmp_path / "export" / "lora" / f"{name}.safetensors" for name in ("official", "comfyui")}
    adapters = load_file(files["official"])
    assert load_file(files["comfyui"]).keys() == {f"diffusion_model.{key}" for key in adapters}
    with safe_open(files["official"], "pt") as file:
        assert file.metadata()["base_hash"] == json.loads((checkpoint / "state.json").read_text())["teacher"]
    for name, average in kept["ema-0"].items():
        layer, _, part = name.partition(".lora.student.")
        assert torch.equal(adapters[f"{layer}.lora_{'A' if part == 'down' else 'B'}.weight"], average), name

    config = tiny_config(changes)
    nets = {name: build(config.model.name, **config.model.overrides.arguments()) for name in ("base", *layouts)}
    for name, net in nets.items():
        load_network(net, teacher if name == "base" else tmp_path / "export" / name)
    for name, merged in nets["official"].named_parameters():
        base, layer = nets["base"].get_parameter(name).double(), name.removesuffix(".weight")
        assert all(torch.equal(nets[layout].get_parameter(name), merged) for layout in layouts)
        if f"{layer}.lora_A.weight" not in adapters:
            assert torch.equal(merged.double(), base), name
            continue
        down, up = (adapters[f"{layer}.lora_{part}.weight"].double() for part in "AB")
        wanted = base + (6.0 / 3) * up @ down
        assert up.norm() > 0 and ((merged.double() - wanted).abs() <= 4 * 2**-24 * (base.abs() + wanted.abs())).all()

    ask = {"steps": 1, "num": 3, "seed": 0, "label": None, "prompt": None, "teacher": False, "threads": None}
    for layout in layouts:
        source = str(tmp_path / "export" / layout)
        assert run_sample(SampleStart(source=source, out_dir=str(tmp_path / layout), **ask), RecordingLink())  # type: ignore[arg-type]
    drawn = [load_file(tmp_path / layout / "samples.safetensors")["latents"] for layout in layouts]
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])


def test_a_student_starts_from_an_adapter_file(changes: dict[str, Any], tmp_path: Path) -> None:
    run(start(tmp_path, {**changes, "schedule.steps": 4}))
    adapter = tmp_path / "export" / "lora" / "comfyui.safetensors"
    from_file = {"student.init": str(adapter), "critic.init": str(adapter)}
    trained = set_up_distillation(tiny_config({**changes, **from_file}), check=True)
    stored = load_file(adapter)
    for role in trained.trainer.roles.values():
        for name, parameter in role.parameters.items():
            layer, _, part = name.partition(f".lora.{role.name}.")
            key = f"diffusion_model.{layer}.lora_{'A' if part == 'down' else 'B'}.weight"
            assert torch.equal(parameter, stored[key]), name
    now = velocities(trained)
    assert not torch.equal(now["student"], now["teacher"])


def test_what_cannot_be_shared_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    whole = str(Path(changes["teacher.weights"]) / "model.safetensors")
    with pytest.raises(WeightsError, match="no adapters") as caught:
        run(start(tmp_path, {**changes, "student.init": whole}))
    assert "share the teacher's weights" in (caught.value.hint or "")
    with pytest.raises(ConfigError, match="rank 17") as refused:
        run(start(tmp_path, {**changes, "student.lora": {"rank": 17, "alpha": 1.0, "targets": ["ffn"]}}))
    assert "16" in (refused.value.hint or "")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_refused_on_another_base(changes: dict[str, Any], tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(changes["teacher.weights"], teacher)
    changes = {**changes, "teacher.weights": str(teacher), "schedule.steps": 2}
    end, _ = run(start(tmp_path / "run", changes))
    again = start(tmp_path / "run", changes, resume_from=tmp_path / "run" / str(end.checkpoint), attempt=2)
    assert run(again)[0].state == "succeeded"
    weights = load_file(teacher / "model.safetensors")
    next(iter(weights.values())).flatten()[0] += 1e-3
    save_file(weights, teacher / "model.safetensors")
    with pytest.raises(CheckpointError, match="teacher's weights have changed"):
        run(again)


def test_a_few_updates_bring_one_step_samples_nearer_to_the_teachers() -> None:
    """The shipped teacher: distance of one-step samples to where its own 20 steps lead from the same noise."""
    config = tiny_config(
        {
            "method": "scm",
            "model.overrides": DIGITS,
            "student.lora": {"rank": 16, "alpha": 16.0, "targets": ["attention", "ffn"]},
            "student.optimizer.learningRate": 5e-3,
            "schedule.batchSize": 32,
            "losses.scm.tangentWarmupUpdates": 10,
            "schedule.steps": 40,
        }
    )
    trained = set_up_distillation(config, check=True)
    labels, noise = torch.arange(64) % 10, noise_sets(1, 64, (1, 1, 8, 8), 0)[0]
    shared: dict[str, Any] = {"text": trained.condition(labels), "time_scale": 1000.0}
    assert trained.teacher is not None
    with torch.no_grad():
        wanted = sample_teacher(
            trained.teacher, noise, steps=20, shift=1.0, guidance=1.5, negative=trained.condition.empty(64),
            kind="euler", **shared,
        )  # fmt: skip

    def distance() -> float:
        with torch.no_grad():
            out = sample_student(trained.learner.velocity, noise, student_times(1, 80.0, []), None, **shared)
        return float((out - wanted).square().mean())

    before = distance()
    for _ in range(40):
        trained.trainer.run_step()
    assert distance() < 0.85 * before
