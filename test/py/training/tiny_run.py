"""A distillation small enough for tests: the real network class at width 16 on the real digits, a few steps a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rcm_sidecar.config import RunConfig, parse_config
from rcm_sidecar.jobs import run_job
from rcm_sidecar.link import RecordingLink
from rcm_sidecar.protocol import DistillStart, EndBody, EvaluationPlan, PlanRow, PretrainStart

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "digits-rcm.json"
NETWORK = {
    "dim": 16,
    "numHeads": 2,
    "numLayers": 1,
    "ffnDim": 24,
    "textDim": 16,
    "freqDim": 16,
    "inDim": 1,
    "outDim": 1,
}


COSMOS = {
    "model.name": "cosmos-predict2-tiny",
    "model.overrides": {"dim": 16, "numHeads": 2, "numLayers": 1, "textDim": 16, "inDim": 1, "outDim": 1},
}
"""Changes of `document`: the other family, as small."""


def document(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The default config cut down; `changes` maps dotted keys to values."""
    config: dict[str, Any] = json.loads(FIXTURE.read_text())
    small = {
        "model.overrides": dict(NETWORK),
        "schedule.steps": 12,
        "schedule.batchSize": 8,
        "pretrain.steps": 6,
        "pretrain.batchSize": 8,
        "losses.scm.tangentWarmupUpdates": 2,
        "compute.threads": 1,
        "checkpoints.everySteps": None,
        "evaluation.previews.everySteps": None,
        "logging.everySteps": 1,
        "student.optimizer.warmupUpdates": 2,
        "critic.optimizer.warmupUpdates": 2,
        "pretrain.optimizer.warmupUpdates": 2,
    }
    for key, value in {**small, **(changes or {})}.items():
        block = config
        *parents, last = key.split(".")
        for parent in parents:
            block = block[parent]
        assert last in block, key
        block[last] = value
    return config


def tiny_config(changes: Mapping[str, Any] | None = None) -> RunConfig:
    """`document` as structs."""
    return parse_config(document(changes))


def plan(rows: tuple[PlanRow, ...] = ()) -> EvaluationPlan:
    """A plan of 12 samples without features."""
    return EvaluationPlan(
        rows=rows,
        samples=12,
        seed=1000,
        network="ema",
        features=None,
        metrics=(),
        neighbours=5,
        bootstrap_resamples=0,
        preview_steps=(1,),
    )


def start(
    run_dir: Path,
    changes: Mapping[str, Any] | None = None,
    *,
    job: type[DistillStart] | type[PretrainStart] = DistillStart,
    resume_from: Path | None = None,
    rows: tuple[PlanRow, ...] = (),
    **others: Any,
) -> DistillStart | PretrainStart:
    """The start message of a tiny run."""
    fields: dict[str, Any] = {
        "config": document(changes),
        "run_id": "tiny",
        "run_dir": str(run_dir),
        "attempt": 1,
        "resume_from": None if resume_from is None else str(resume_from),
        "allow_drift": False,
        "cache_dir": str(run_dir / "cache"),
        "plan": plan(rows),
        "smoke": False,
        **others,
    }
    return job(**fields)


def run(begin: DistillStart | PretrainStart, link: RecordingLink | None = None) -> tuple[EndBody, RecordingLink]:
    """Run a job; returns its end and the link with all records."""
    link = link or RecordingLink()
    return run_job(begin, link), link


def comparable(link: RecordingLink) -> list[tuple[int, str, dict[str, float]]]:
    """Metrics without timings."""
    return [(step, phase, without_times(values)) for step, phase, values in link.metric_values()]


def without_times(values: Mapping[str, float]) -> dict[str, float]:
    """Metrics that are equal in equal steps."""
    return {name: value for name, value in values.items() if not name.startswith("time/")}


def make_teacher(folder: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """A tiny teacher and its label table, made by the pretrain job itself; returns its export folder."""
    settings = {"pretrain.steps": 30, "pretrain.batchSize": 32, **(changes or {})}
    end, _ = run(start(folder, settings, job=PretrainStart))
    assert end.state == "succeeded"
    return folder / "export" / "official"
