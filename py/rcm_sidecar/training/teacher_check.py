"""Looks at the teacher before a run depends on it (`health.teacherCheck`)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rcm_sidecar.data import Batch
from rcm_sidecar.diffusion.coordinates import compute_dtype
from rcm_sidecar.diffusion.guidance import Network
from rcm_sidecar.errors import WeightsError
from rcm_sidecar.evaluation.sampling import Conditioning
from rcm_sidecar.training.randomness import normal

_TIMES = (0.02, 0.5, 1.0)
_LEAST_CHANGE = 1e-6
"""Smallest change by the condition, relative to the velocity's size, that counts as one."""


@torch.no_grad()
def check_guidance(teacher: Network, batch: Batch, condition: Conditioning, guidance: float, time_scale: float) -> None:
    """The output is finite, not zero, and differs between condition and negative condition.

    Raises:
        WeightsError: E_TEACHER_CHECK.
    """
    text, negative = condition(batch.condition), condition.empty(len(batch.latents))
    for t in _TIMES:
        x, time = _state(batch, t, time_scale)
        velocity = teacher(x, time, text)
        if not bool(torch.isfinite(velocity).all()):
            raise _failed(f"its output is not finite at time {t}", "Check that the weights are whole.")
        size = velocity.norm()
        if size == 0:
            raise _failed(f"its output is zero at time {t}", "These weights were never trained.")
        if guidance == 1:
            continue
        change = (velocity - teacher(x, time, negative)).norm() / size
        if change < _LEAST_CHANGE:
            hint = "Check the conditioner and teacher.negative, or set teacher.guidance: 1."
            raise _failed("guidance does not change its output", hint)


@torch.no_grad()
def check_roles_equal(
    teacher: Network, others: Mapping[str, Network], batch: Batch, condition: Conditioning, time_scale: float
) -> None:
    """Networks that start as copies of the teacher are the same function, bit for bit.

    Raises:
        WeightsError: E_TEACHER_CHECK.
    """
    text = condition(batch.condition)
    x, time = _state(batch, 0.5, time_scale)
    expected = teacher(x, time, text)
    for name, network in others.items():
        if not torch.equal(network(x, time, text), expected):
            raise _failed(f"the {name} starts as its copy and gives another output", None)


def _state(batch: Batch, t: float, time_scale: float) -> tuple[Tensor, Tensor]:
    noise = normal(0, 0, "teacher-check", batch.latents.shape).to(batch.latents)
    x = (1 - t) * batch.latents + t * noise
    return x, torch.full((len(x),), time_scale * t, dtype=compute_dtype(x), device=x.device)


def _failed(what: str, hint: str | None) -> WeightsError:
    return WeightsError("E_TEACHER_CHECK", f"The teacher cannot be used: {what}.", hint)
