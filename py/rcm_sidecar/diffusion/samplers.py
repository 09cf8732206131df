"""Samplers of the student (1-4 steps, no guidance) and of the teacher (Euler or UniPC with guidance).

States are float64. At the network's border x takes the noise's dtype, while time stays at least float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from rcm_sidecar.diffusion.coordinates import compute_dtype
from rcm_sidecar.diffusion.guidance import Branches, Network, guided_velocity
from rcm_sidecar.diffusion.unipc import sample_unipc

UNIPC_START = 0.999
"""First unshifted time of the official UniPC grid, which must stay below 1 (wan2.1 section 9.3)."""


def student_times(steps: int, sigma_max: float, mid: Sequence[float]) -> list[float]:
    """TrigFlow times of an n-step student: atan(sigma_max), the first n-1 of mid, 0 (rcm-method section 7).

    Raises:
        ValueError: fewer than 1 step, too few times, or times that do not fall.

    >>> [round(u, 4) for u in student_times(3, 80.0, [1.5, 1.4, 1.0])]
    [1.5583, 1.5, 1.4, 0.0]
    """
    if steps < 1 or steps - 1 > len(mid):
        raise ValueError(f"the student's sampler has times for 1 to {len(mid) + 1} steps, not for {steps}")
    times = [math.atan(sigma_max), *mid[: steps - 1], 0.0]
    if any(later >= earlier for earlier, later in zip(times, times[1:], strict=False)):
        raise ValueError(f"sampler times must fall from atan(sigmaMax): {times}")
    return times


@torch.no_grad()
def sample_student(
    student: Network,
    noise: Tensor,
    times: Sequence[float],
    fresh_noise: Tensor | Sequence[Tensor] | None,
    *,
    text: Tensor,
    time_scale: float,
) -> Tensor:
    """Few-step sample: x0 from the student, then noise to the next time (rcm-method section 7, wan2.1 section 9.6).

    Args:
        student: Velocity network f(x, t, text).
        noise: Starting noise [B, ...]; the start is t_0 noise, as in the official inference.
        times: TrigFlow times from `student_times`, falling to 0; one network call for each but the last.
        fresh_noise: [calls - 1, B, ...]; None for one step.
        text: Condition [B, L, D].
        time_scale: The network's time is time_scale * t.

    Returns:
        x0 [B, ...] in at least float32.

    Raises:
        ValueError: times do not end at 0, or the number of fresh noises does not fit.
    """
    calls = len(times) - 1
    if calls < 1 or times[-1] != 0:
        raise ValueError("a student's times end at 0 and hold at least one time before it")
    if (0 if fresh_noise is None else len(fresh_noise)) != calls - 1:
        raise ValueError(f"{calls} steps need {calls - 1} fresh noises")
    rectified = [math.sin(u) / (math.cos(u) + math.sin(u)) for u in times]
    x = rectified[0] * noise.double()
    for index in range(calls):
        velocity = student(x.to(noise.dtype), _network_time(rectified[index], noise, time_scale), text)
        x = x - rectified[index] * velocity.double()
        if index + 1 < calls:
            assert fresh_noise is not None
            following = rectified[index + 1]
            x = (1 - following) * x + following * fresh_noise[index].double()
    return x.to(compute_dtype(noise))


def teacher_grid(
    steps: int, shift: float, kind: Literal["euler", "unipc"] = "euler", sigma_max: float | None = None
) -> list[float]:
    """Rectified-flow times of a teacher's sampler: steps + 1 values falling to 0 (wan2.1 section 9.3).

    The unshifted grid falls evenly from a start to 0 and is then shifted. The start is 1 for Euler and 0.999 for UniPC;
    with `sigma_max` it is chosen so that the shifted grid starts at sigma_max / (1 + sigma_max).

    >>> teacher_grid(4, 1.0)
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if steps < 1 or shift <= 0:
        raise ValueError("a sampler needs at least one step and a positive shift")
    start = 1.0 if kind == "euler" else UNIPC_START
    if sigma_max is not None:
        first = sigma_max / (1 + sigma_max)
        start = first / (first + shift * (1 - first))
    base = [start * (steps - index) / steps for index in range(steps + 1)]
    return [shift * t / (shift * t + (1 - t)) for t in base]


@torch.no_grad()
def sample_teacher(
    teacher: Network,
    noise: Tensor,
    *,
    steps: int,
    shift: float,
    guidance: float,
    text: Tensor,
    negative: Tensor | None,
    time_scale: float,
    kind: Literal["euler", "unipc"] = "euler",
    sigma_max: float | None = None,
    branches: Branches = "sequential",
) -> Tensor:
    """Sample of the teacher from pure noise along `teacher_grid`.

    Args:
        teacher: Velocity network f(x, t, text).
        noise: Starting noise [B, ...], taken as the state at the first time.
        steps: Number of steps; each costs one network call, two with guidance.
        shift: Shift of the time grid.
        guidance: 1 makes no negative call.
        text: Condition [B, L, D].
        negative: Negative condition; None only with guidance 1.
        time_scale: The network's time is time_scale * t, passed as it is (never rounded to whole numbers).
        kind: euler, or unipc (order 2).
        sigma_max: EDM sigma of the first time; None starts as the official samplers do.
        branches: How the two guidance passes run.

    Returns:
        x0 [B, ...] in at least float32.

    Raises:
        MissingNegativeError: guidance differs from 1 and negative is None.
        ValueError: unknown kind, or a grid that cannot be used.
    """

    def velocity(x: Tensor, t: float) -> Tensor:
        time = _network_time(t, noise, time_scale)
        return guided_velocity(teacher, x.to(noise.dtype), time, text, negative, guidance, branches).double()

    grid = teacher_grid(steps, shift, kind, sigma_max)
    x = noise.double()
    if kind == "unipc":
        x = sample_unipc(velocity, x, grid)
    elif kind == "euler":
        for now, following in zip(grid, grid[1:], strict=False):
            x = x + (following - now) * velocity(x, now)
    else:
        raise ValueError(f"unknown sampler {kind!r}")
    return x.to(compute_dtype(noise))


def _network_time(t: float, noise: Tensor, time_scale: float) -> Tensor:
    return torch.full((noise.shape[0],), time_scale * t, dtype=compute_dtype(noise), device=noise.device)
