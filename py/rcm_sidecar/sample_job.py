"""The `sample` job: samples of an exported student or teacher, as a grid and as latents on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from rcm_sidecar.checkpoints.sampler_file import StudentFolder, TeacherFolder
from rcm_sidecar.checkpoints.sources import Source, load_source
from rcm_sidecar.data import LabelConditioner
from rcm_sidecar.diffusion.guidance import Network
from rcm_sidecar.diffusion.samplers import sample_student, sample_teacher, student_times
from rcm_sidecar.errors import ConfigError, WeightsError
from rcm_sidecar.evaluation.sampling import call_slices, noise_sets
from rcm_sidecar.files import write_tensors
from rcm_sidecar.link import JobLink, SampleGrid
from rcm_sidecar.protocol import EndBody, SampleStart
from rcm_sidecar.training.setup import conditioning

_COLUMNS = 10

_Draw: TypeAlias = Callable[[list[Tensor], Tensor], Tensor]
"""Noises of a batch and its labels to samples."""


def run_sample(start: SampleStart, link: JobLink) -> EndBody:
    """Load the source, draw, send one grid and write `samples.safetensors` into the job's folder.

    Raises:
        WeightsError: the source cannot be loaded.
        ConfigError: E_USAGE for a prompt, a label or steps the model does not take.
    """
    link.activity("loading", 0)
    if start.threads is not None:
        torch.set_num_threads(start.threads)
    source = load_source(Path(start.source))
    if start.teacher and not isinstance(source.settings, TeacherFolder):
        raise WeightsError("E_WEIGHTS_SAMPLER", "This folder holds a student, not a teacher.", "Give the teacher's.")
    if source.conditioner is None:
        raise ConfigError("E_USAGE", "This model draws prompts, not labels.", "Use --prompt.")
    labels = labels_for(start.num, start.label, source.conditioner.num_classes)
    link.activity("sampling", 0)
    latents = _draw(source, labels, start.steps, start.seed, link)
    latent = source.settings.latent
    out = Path(start.out_dir)
    write_tensors(out / "samples.safetensors", {"latents": latents, "labels": labels})
    link.sample(sample_grid(latents, labels, latent.mean, latent.std, start.steps, 0))
    return EndBody(state="succeeded", step=0, student_updates=0, critic_updates=0, checkpoint=None, exports=())


def labels_for(count: int, label: int | None, classes: int) -> Tensor:
    """Labels [count]: the given one, or all classes in turn.

    Raises:
        ConfigError: E_USAGE, for a label the model does not know.
    """
    if label is None:
        return torch.arange(count) % classes
    if not 0 <= label < classes:
        raise ConfigError("E_USAGE", f"There is no label {label}: labels are 0 to {classes - 1}.", None)
    return torch.full((count,), label)


def sample_grid(latents: Tensor, labels: Tensor, mean: float, std: float, steps: int, step: int) -> SampleGrid:
    """All samples as one grid of rows of 10 (one row, if they do not fill whole rows); columns name the labels.

    Args:
        latents: [n,C,1,H,W] with C 1 or 3.
        labels: [n].
        mean: Of the pixels, a share of white, by which they were standardised.
        std: The same.
        steps: Sampler steps, for the title.
        step: Training step, for the record.
    """
    columns = _COLUMNS if len(labels) % _COLUMNS == 0 else len(labels)
    pixels = (latents[:, :, 0].double() * std + mean).clamp(0, 1).mul(255).round().to(torch.uint8)
    pixels = pixels.movedim(1, -1).unflatten(0, (-1, columns)).contiguous()
    rows = tuple(f"{row * columns}" for row in range(len(pixels)))
    names = tuple(_column_name(labels[column::columns]) for column in range(columns))
    title = f"{steps} step{'' if steps == 1 else 's'}"
    return SampleGrid(title, rows, names, pixels, step, "request")


def _column_name(labels: Tensor) -> str:
    return str(int(labels[0])) if bool((labels == labels[0]).all()) else ""


@torch.no_grad()
def _draw(source: Source, labels: Tensor, steps: int, seed: int, link: JobLink) -> Tensor:
    settings, table = source.settings, source.conditioner
    assert table is not None
    noises = noise_sets(1 if isinstance(settings, TeacherFolder) else steps, len(labels), settings.latent.shape, seed)

    def network(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        link.requests.raise_if_cancelled_now()
        velocity: Tensor = source.network(x, t, text)
        return velocity

    if isinstance(settings, TeacherFolder):
        draw = _of_teacher(network, settings, table, steps)
    else:
        draw = _of_student(network, settings, table, steps)
    parts = call_slices(len(labels), settings.latent.shape)
    return torch.cat([draw([noise[part] for noise in noises], labels[part]).float() for part in parts])


def _of_teacher(network: Network, settings: TeacherFolder, table: LabelConditioner, steps: int) -> _Draw:
    sampler, condition = settings.sampler, conditioning(table, settings.sampler.negative)

    def draw(noises: list[Tensor], labels: Tensor) -> Tensor:
        return sample_teacher(
            network,
            noises[0],
            steps=steps,
            shift=sampler.shift,
            guidance=sampler.guidance,
            text=condition(labels),
            negative=condition.empty(len(labels)),
            time_scale=settings.time_scale,
            kind=sampler.kind,
        )

    return draw


def _of_student(network: Network, settings: StudentFolder, table: LabelConditioner, steps: int) -> _Draw:
    try:
        times = student_times(steps, settings.sampler.sigma_max, settings.sampler.times)
    except ValueError as error:
        raise ConfigError("E_USAGE", f"This student cannot take {steps} steps: {error}.", None) from error

    def draw(noises: list[Tensor], labels: Tensor) -> Tensor:
        fresh = noises[1:] or None
        return sample_student(network, noises[0], times, fresh, text=table(labels), time_scale=settings.time_scale)

    return draw
