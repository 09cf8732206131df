"""Grids of samples to look at: teacher and student side by side, and previews while training."""

from __future__ import annotations

from collections.abc import Callable

import torch

from rcm_sidecar.config import RunConfig
from rcm_sidecar.data.digits import NUM_CLASSES, load_digits_data, to_pixels
from rcm_sidecar.diffusion.guidance import Network
from rcm_sidecar.errors import ConfigError
from rcm_sidecar.evaluation.run import time_scale_of
from rcm_sidecar.evaluation.sampling import Conditioning, SampleSource
from rcm_sidecar.link import SampleGrid
from rcm_sidecar.protocol import EvaluationPlan

COMPARED_TEACHER_STEPS = (50, 4, 1)
DIGITS_PROMPTS = "builtin:digits-10"


def comparison_grid(
    *,
    student: Network | None,
    teacher: Network | None,
    condition: Conditioning,
    config: RunConfig,
    plan: EvaluationPlan,
    step: int,
    check_cancelled: Callable[[], None],
) -> SampleGrid:
    """Teacher at 50, 4 and 1 steps above the student at the plan's steps; digits 0 to 9; one noise a column.

    Rows of a network that is None are left out.
    """
    source, labels = _source(config, condition, check_cancelled), torch.arange(NUM_CLASSES)
    rows, images = [], []
    if teacher is not None:
        guidance = config.teacher.guidance
        for steps in COMPARED_TEACHER_STEPS:
            rows.append(f"teacher, {_steps(steps)}, guidance {guidance:g}")
            images.append(source.teacher(teacher, labels, steps, guidance, plan.seed).latents)
    if student is not None:
        for steps in _student_steps(plan):
            rows.append(f"student, {_steps(steps)}")
            images.append(source.student(student, labels, steps, plan.seed).latents)
    pixels = torch.stack([to_pixels(latents) for latents in images])
    title = "Same noise in every row" if teacher is not None and student is not None else "Samples"
    return SampleGrid(title, tuple(rows), _columns(), pixels, step, "evaluation")


def preview_grids(
    *,
    network: Network,
    sampler: str,
    condition: Conditioning,
    config: RunConfig,
    plan: EvaluationPlan,
    step: int,
    check_cancelled: Callable[[], None],
) -> list[SampleGrid]:
    """One grid for each of the plan's preview steps: a row a seed of `evaluation.previews`, a column a digit.

    Args:
        network: Velocity network f(x, t, text).
        sampler: "student", or "teacher" while a teacher is trained.
        condition: Labels to text.
        config: Sampler settings, prompts, seeds.
        plan: `preview_steps`.
        step: Training step of the weights.
        check_cancelled: Called before every network call; raises to stop.

    Raises:
        ConfigError: E_CONFIG_NOT_YET for prompts other than builtin:digits-10.
    """
    previews = config.evaluation.previews
    if previews.prompts != DIGITS_PROMPTS:
        message = f"Previews of {previews.prompts} are not there yet."
        raise ConfigError("E_CONFIG_NOT_YET", message, f"Use {DIGITS_PROMPTS}.")
    if not previews.seeds:
        return []
    source = _source(config, condition, check_cancelled)
    labels = torch.arange(NUM_CLASSES)
    grids = []
    for steps in plan.preview_steps:
        if sampler == "teacher":
            guidance = config.teacher.guidance
            sets = [source.teacher(network, labels, steps, guidance, seed) for seed in previews.seeds]
        else:
            sets = [source.student(network, labels, steps, seed) for seed in previews.seeds]
        pixels = torch.stack([to_pixels(drawn.latents) for drawn in sets])
        rows = tuple(f"seed {seed}" for seed in previews.seeds)
        grids.append(SampleGrid(f"{sampler}, {_steps(steps)}", rows, _columns(), pixels, step, "preview"))
    return grids


def _source(config: RunConfig, condition: Conditioning, check_cancelled: Callable[[], None]) -> SampleSource:
    channels, frames, height, width = load_digits_data().train_images.shape[1:]
    return SampleSource(config, condition, (channels, frames, height, width), time_scale_of(config), check_cancelled)


def _student_steps(plan: EvaluationPlan) -> list[int]:
    return [row.steps for row in plan.rows if row.sampler == "student" and row.steps is not None]


def _columns() -> tuple[str, ...]:
    return tuple(str(label) for label in range(NUM_CLASSES))


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"
