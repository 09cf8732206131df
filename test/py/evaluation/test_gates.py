"""Three students that must not pass: copies of the training images, class means, the teacher without guidance.

The files are made by scripts/make-gate-fixtures.py; test/unit/evaluation applies the TypeScript gates to them.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import msgspec
import pytest
import torch
from evaluation.plans import CONFIG, plan_of, row
from safetensors import safe_open

from rcm_sidecar.data.digits import ASSETS, load_digits_data
from rcm_sidecar.evaluation import teacher_key
from rcm_sidecar.evaluation.features import feature_function
from rcm_sidecar.evaluation.frechet import Moments
from rcm_sidecar.evaluation.metrics import ImageSet
from rcm_sidecar.evaluation.run import make_references, measure_images
from rcm_sidecar.protocol import EvaluationBody

FOLDER = Path(__file__).parents[3] / "test" / "fixtures" / "gates"
DATA = load_digits_data()


def read(name: str) -> EvaluationBody:
    document = json.loads((FOLDER / f"{name}.json").read_text())
    assert document.pop("schema") == 1
    return msgspec.convert(document, EvaluationBody)


def value(body: EvaluationBody, sampler: str, steps: int | None, metric: str) -> float:
    return next(r.metrics[metric].value for r in body.rows if r.sampler == sampler and r.steps == steps)


def missed(body: EvaluationBody) -> list[str]:
    names = []
    for gate in CONFIG.evaluation.gates:
        scale = 1.0
        if gate.relative_to is not None:
            steps = gate.steps if gate.relative_to == "teacher" else None
            scale = value(body, gate.relative_to, steps, gate.metric)
        measured = value(body, "student", gate.steps, gate.metric)
        too_much = gate.at_most is not None and measured > gate.at_most * scale
        too_little = gate.at_least is not None and measured < gate.at_least * scale
        if too_much or too_little:
            names.append(f"{gate.metric}@{gate.steps}")
    return names


@pytest.mark.parametrize("name", ["copies", "means", "guidance1"])
def test_bad_students_miss_a_gate(name):
    assert missed(read(name))


def test_the_fixtures_belong_to_the_shipped_teacher_and_classifier():
    with safe_open(str(FOLDER / "teacher-moments.safetensors"), framework="pt") as file:
        made_with = file.metadata()
    names = ("model.safetensors", "conditioner.safetensors")
    assert made_with["teacher"] == teacher_key({n: ASSETS / "teacher" / n for n in names})
    assert made_with["classifier"] == hashlib.sha256((ASSETS / "classifier.safetensors").read_bytes()).hexdigest()


def test_the_row_of_the_class_means_can_be_measured_again():
    with safe_open(str(FOLDER / "teacher-moments.safetensors"), framework="pt") as file:
        teacher = Moments(file.get_tensor("mean"), file.get_tensor("covariance"), int(file.metadata()["count"]))
    table = torch.stack([DATA.train_images[DATA.train_labels == digit].mean(0) for digit in range(10)])
    plan = plan_of(resamples=0)
    references = make_references(plan, DATA, feature_function("builtin:digits-classifier"), None)
    references = dataclasses.replace(references, teacher=teacher)
    images = ImageSet(table[DATA.all_labels], DATA.all_labels)
    measured = measure_images(plan, row("student", 1), images, 0.0, references).metrics
    stored = next(r.metrics for r in read("means").rows if r.sampler == "student" and r.steps == 1)
    assert set(stored) == set(measured)
    for name, metric in stored.items():
        assert measured[name].value == pytest.approx(metric.value, rel=1e-3), name
