"""The shipped config, teacher and a plan, for evaluation tests."""

from pathlib import Path

from rcm_sidecar.checkpoints import load_network
from rcm_sidecar.config import load_config
from rcm_sidecar.data import LabelConditioner
from rcm_sidecar.data.digits import ASSETS
from rcm_sidecar.networks import Network, build
from rcm_sidecar.protocol import EvaluationPlan, PlanRow

CONFIG = load_config(Path(__file__).parent.parent / "fixtures" / "digits-rcm.json")


def shipped_teacher() -> tuple[Network, LabelConditioner]:
    net = build(CONFIG.model.name, **CONFIG.model.overrides.arguments())
    load_network(net, ASSETS / "teacher" / "model.safetensors")
    return net.requires_grad_(False), LabelConditioner.load(ASSETS / "teacher")


def row(sampler: str, steps: int | None = None, guidance: float | None = None) -> PlanRow:
    return PlanRow(sampler=sampler, steps=steps, guidance=guidance)


def plan_of(
    *rows: PlanRow, samples: int = 400, resamples: int = 20, features: str | None = "builtin:digits-classifier"
):
    return EvaluationPlan(
        rows=rows,
        samples=samples,
        seed=1000,
        network="ema",
        features=features,
        metrics=tuple(CONFIG.evaluation.metrics),
        neighbours=5,
        bootstrap_resamples=resamples,
        preview_steps=(1, 2),
    )
