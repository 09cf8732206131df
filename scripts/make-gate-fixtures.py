"""Make test/fixtures/gates/*.json: evaluations of three students that must fail the shipped gates.

    PYTHONPATH=py:kernels python scripts/make-gate-fixtures.py [--cache FOLDER]

`copies` returns training images, `means` the mean training image of each class, `guidance1` samples the teacher without
guidance. Everything else in the files is measured as in a run: image rows, teacher rows, floors. Run it again whenever
teacher or classifier change; a test compares their hashes. About 2 minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor

from rcm_sidecar.checkpoints import load_network
from rcm_sidecar.config import RunConfig, load_config
from rcm_sidecar.data import LabelConditioner
from rcm_sidecar.data.digits import ASSETS, DigitsData, load_digits_data
from rcm_sidecar.evaluation import SampleSource
from rcm_sidecar.evaluation.cache import teacher_key
from rcm_sidecar.evaluation.features import feature_function
from rcm_sidecar.evaluation.metrics import ImageSet
from rcm_sidecar.evaluation.run import Evaluator, floors_of, make_references, measure_images, time_scale_of
from rcm_sidecar.networks import build
from rcm_sidecar.protocol import EvaluationBody, EvaluationPlan, PlanRow

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "test/py/fixtures/digits-rcm.json"
TARGET = ROOT / "test/fixtures/gates"


def plan_of(config: RunConfig) -> EvaluationPlan:
    """The plan of a distillation with the shipped settings."""
    settings = config.evaluation
    images = [PlanRow(sampler=name, steps=None, guidance=None) for name in ("train", "heldOut")]
    guidance = config.teacher.guidance
    teacher = [PlanRow(sampler="teacher", steps=steps, guidance=guidance) for steps in settings.teacher_steps]
    student = [PlanRow(sampler="student", steps=steps, guidance=None) for steps in settings.steps]
    return EvaluationPlan(
        rows=(*images, *teacher, *student),
        samples=settings.samples,
        seed=settings.seed,
        network="ema",
        features=settings.features,
        metrics=tuple(settings.metrics),
        neighbours=5,
        bootstrap_resamples=200,
        preview_steps=(1,),
    )


def copies(data: DigitsData) -> Tensor:
    """A training image of each asked label, all of a class in turn."""
    images = {digit: data.train_images[data.train_labels == digit] for digit in range(10)}
    counts = dict.fromkeys(images, 0)
    chosen = []
    for label in data.all_labels.tolist():
        chosen.append(images[label][counts[label] % len(images[label])])
        counts[label] += 1
    return torch.stack(chosen)


def means(data: DigitsData) -> Tensor:
    """The mean training image of each asked label."""
    table = torch.stack([data.train_images[data.train_labels == digit].mean(0) for digit in range(10)])
    return table[data.all_labels]


def evaluator_of(config: RunConfig, plan: EvaluationPlan, cache: Path | None) -> Evaluator:
    """The shipped teacher, ready to be sampled."""
    folder, data = ASSETS / "teacher", load_digits_data()
    network = build(config.model.name, **config.model.overrides.arguments())
    load_network(network, folder / "model.safetensors")
    network.requires_grad_(False)
    source = SampleSource(config, LabelConditioner.load(folder), (1, 1, 8, 8), time_scale_of(config), lambda: None)
    return Evaluator(plan, source, data, None, network, shipped_key(), cache)


def shipped_key() -> str:
    """Content hash of the shipped teacher and its label table."""
    return teacher_key({name: ASSETS / "teacher" / name for name in ("model.safetensors", "conditioner.safetensors")})


def main() -> None:
    """Sample, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=None, help="keep teacher samples here")
    torch.set_num_threads(1)
    config, data = load_config(CONFIG), load_digits_data()
    plan = plan_of(config)
    evaluator = evaluator_of(config, plan, parser.parse_args().cache)
    features = feature_function(plan.features or "")
    references = make_references(plan, data, features, evaluator.reference())
    fixed = [
        measure_images(plan, row, *evaluator.draw(row), references) for row in plan.rows if row.sampler != "student"
    ]
    students = {
        "copies": copies(data),
        "means": means(data),
        "guidance1": evaluator.draw_teacher(config.teacher.sampler.steps, 1.0, plan.seed).latents,
    }
    TARGET.mkdir(parents=True, exist_ok=True)
    for name, latents in students.items():
        images = ImageSet(latents, data.all_labels)
        drawn = [measure_images(plan, row, images, 0.0, references) for row in plan.rows if row.sampler == "student"]
        body = EvaluationBody(
            step=config.schedule.steps,
            network="ema",
            features=plan.features,
            feature_dimension=references.held_out.mean.shape[0],
            floors=floors_of(evaluator, references),
            rows=tuple(fixed + drawn),
            seconds=0.0,
        )
        document = {"schema": 1, **msgspec.to_builtins(body)}
        (TARGET / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
        print(name, {key: metric.value for key, metric in drawn[0].metrics.items()})
    assert references.teacher is not None
    moments = {"mean": references.teacher.mean, "covariance": references.teacher.covariance}
    classifier = hashlib.sha256((ASSETS / "classifier.safetensors").read_bytes()).hexdigest()
    made_with = {"teacher": shipped_key(), "classifier": classifier, "count": str(references.teacher.count)}
    save_file(moments, TARGET / "teacher-moments.safetensors", metadata=made_with)


if __name__ == "__main__":
    main()
