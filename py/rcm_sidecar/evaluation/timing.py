"""Evaluation without features: how many network calls a sample takes, and how long."""

from __future__ import annotations

import time
from collections.abc import Mapping

from torch import Tensor

from rcm_sidecar.diffusion.guidance import Network
from rcm_sidecar.errors import ConfigError
from rcm_sidecar.evaluation.metrics import refused
from rcm_sidecar.evaluation.run import NO_FEATURES
from rcm_sidecar.evaluation.sampling import Drawn, SampleSource, network_calls
from rcm_sidecar.protocol import EvaluationBody, EvaluationPlan, Floors, PlanRow, Row


def time_rows(
    plan: EvaluationPlan, *, step: int, source: SampleSource, condition: Tensor, networks: Mapping[str, Network]
) -> EvaluationBody:
    """Draw samples for every row of `plan` that has a sampler; nothing is compared.

    Args:
        plan: Rows and seed.
        step: Training step of the weights.
        source: Samplers.
        condition: Of the samples [n, ...]; so many are drawn, whatever the plan says, since a time needs few.
        networks: Sampler -> velocity network.
    """
    started = time.perf_counter()
    rows = tuple(_timed(plan, row, source, condition, networks) for row in plan.rows if row.sampler in networks)
    return EvaluationBody(
        step=step,
        network=plan.network,
        features=None,
        feature_dimension=None,
        floors=Floors(real_real=None, teacher_teacher=None),
        rows=rows,
        seconds=time.perf_counter() - started,
    )


def _timed(
    plan: EvaluationPlan, row: PlanRow, source: SampleSource, condition: Tensor, networks: Mapping[str, Network]
) -> Row:
    drawn = _draw(plan, row, source, condition, networks[row.sampler])
    return Row(
        sampler=row.sampler,
        steps=row.steps,
        guidance=row.guidance,
        calls=network_calls(row.sampler, row.steps, row.guidance),
        n=len(condition),
        seed=plan.seed,
        seconds=drawn.seconds,
        metrics={name: refused(NO_FEATURES) for name in plan.metrics},
    )


def _draw(plan: EvaluationPlan, row: PlanRow, source: SampleSource, condition: Tensor, network: Network) -> Drawn:
    if row.steps is None:
        raise ConfigError("E_CONFIG_VALUE", f"An evaluation row of the {row.sampler} needs steps.")
    if row.sampler == "student":
        return source.student(network, condition, row.steps, plan.seed)
    guidance = source.config.teacher.guidance if row.guidance is None else row.guidance
    return source.teacher(network, condition, row.steps, guidance, plan.seed)
