"""One evaluation: every row of a plan, measured against the same references."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from rcm_sidecar.config import RunConfig
from rcm_sidecar.data.digits import DigitsData
from rcm_sidecar.diffusion.guidance import Network
from rcm_sidecar.errors import ConfigError
from rcm_sidecar.evaluation.cache import cache_key, cached
from rcm_sidecar.evaluation.features import FeatureFunction, feature_function
from rcm_sidecar.evaluation.frechet import enough_samples, frechet_distance, moments
from rcm_sidecar.evaluation.manifolds import manifold
from rcm_sidecar.evaluation.metrics import ImageSet, References, judge, refused
from rcm_sidecar.evaluation.sampling import Conditioning, Drawn, SampleSource, network_calls
from rcm_sidecar.networks import build
from rcm_sidecar.protocol import EvaluationBody, EvaluationPlan, Floors, PlanRow, Row

REFERENCE_SEED_OFFSET = 4000
"""The fresh teacher set that `fdTeacher` compares with is drawn with the plan's seed plus this."""

NO_FEATURES = "features"
"""Reason of every value where the plan names no features."""


@dataclass(frozen=True)
class Evaluator:
    """An evaluation under way: the plan, where samples come from, which networks there are."""

    plan: EvaluationPlan
    source: SampleSource
    data: DigitsData
    student: Network | None
    teacher: Network | None
    teacher_key: str
    cache_dir: Path | None
    drawn: dict[tuple[int, float, int], Drawn] = field(default_factory=dict)

    @property
    def labels(self) -> Tensor:
        """Labels of a drawn set [samples]: those of the data set in its order, from the start again if need be."""
        return self.data.all_labels[torch.arange(self.plan.samples) % len(self.data.all_labels)]

    def reference(self) -> Drawn | None:
        """The fresh teacher set, None without a teacher."""
        settings = self.source.config.teacher
        if self.teacher is None:
            return None
        return self.draw_teacher(settings.sampler.steps, settings.guidance, self.plan.seed + REFERENCE_SEED_OFFSET)

    def draw_teacher(self, steps: int, guidance: float, seed: int) -> Drawn:
        """Samples of the teacher: drawn once an evaluation, from the cache on disk if they are there."""
        if (steps, guidance, seed) not in self.drawn:
            self.drawn[steps, guidance, seed] = self._draw_teacher(steps, guidance, seed)
        return self.drawn[steps, guidance, seed]

    def _draw_teacher(self, steps: int, guidance: float, seed: int) -> Drawn:
        teacher, labels, config = self.teacher, self.labels, self.source.config
        if teacher is None:
            raise ConfigError("E_CONFIG_VALUE", "The evaluation has teacher rows and there is no teacher.")
        settings = {
            "kind": config.teacher.sampler.kind,
            "shift": config.teacher.sampler.shift,
            "negative": config.teacher.negative,
            "steps": steps,
            "guidance": guidance,
            "seed": seed,
            "samples": len(labels),
            "data": self.data.sha256,
        }
        shape = (len(labels), *self.source.latent_shape)
        key = cache_key(self.teacher_key, settings)
        return cached(self.cache_dir, key, shape, lambda: self.source.teacher(teacher, labels, steps, guidance, seed))

    def draw(self, row: PlanRow) -> tuple[ImageSet, float | None]:
        """The images of a row and the seconds one took; None for images of the data set."""
        if row.sampler == "train":
            return ImageSet(self.data.train_images, self.data.train_labels, is_train=True), None
        if row.sampler == "heldOut":
            return ImageSet(self.data.held_out_images, self.data.held_out_labels, is_held_out=True), None
        if row.steps is None:
            raise ConfigError("E_CONFIG_VALUE", f"An evaluation row of the {row.sampler} needs steps.")
        if row.sampler == "teacher":
            guidance = self.source.config.teacher.guidance if row.guidance is None else row.guidance
            drawn = self.draw_teacher(row.steps, guidance, self.plan.seed)
        elif self.student is None:
            raise ConfigError("E_CONFIG_VALUE", "The evaluation has student rows and there is no student.")
        else:
            drawn = self.source.student(self.student, self.labels, row.steps, self.plan.seed)
        return ImageSet(drawn.latents, self.labels), drawn.seconds


def make_references(
    plan: EvaluationPlan, data: DigitsData, features: FeatureFunction, fresh: Drawn | None
) -> References:
    """What all rows of `plan` are compared with; `fresh` is a set of the teacher drawn with another seed."""
    train = features(data.train_images)[0]
    return References(
        features=features,
        train=data.train_images,
        train_manifold=manifold(train, plan.neighbours),
        held_out=moments(features(data.held_out_images)[0]),
        teacher=None if fresh is None else moments(features(fresh.latents)[0]),
        neighbours=plan.neighbours,
        resamples=plan.bootstrap_resamples,
        seed=plan.seed,
    )


def run_evaluation(
    plan: EvaluationPlan,
    *,
    step: int,
    student: Network | None,
    teacher: Network | None,
    condition: Conditioning,
    data: DigitsData,
    config: RunConfig,
    cache_dir: Path | str | None,
    teacher_key: str,
    check_cancelled: Callable[[], None],
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationBody:
    """Measure every row of `plan`.

    Args:
        plan: Rows, number of samples, seed, metrics.
        step: Training step of the weights.
        student: Velocity network f(x, t, text), None if the plan has no student rows.
        teacher: The same; None leaves out what needs one.
        condition: Labels to text.
        data: The digits.
        config: For sampler settings and the network's time scale.
        cache_dir: Where teacher samples are kept; None keeps none.
        teacher_key: Content hash of teacher and conditioner.
        check_cancelled: Called before every network call and between rows; raises to stop.
        progress: Called with rows done and rows in all.

    Returns:
        The body of the `evaluation` event. The reference set's seed is plan.seed + REFERENCE_SEED_OFFSET.

    Raises:
        ConfigError: E_CONFIG_VALUE for a row that cannot be drawn.
        WeightsError: the features cannot be loaded.
    """
    started = time.perf_counter()
    source = SampleSource(config, condition, _latent_shape(data), time_scale_of(config), check_cancelled)
    folder = None if cache_dir is None else Path(cache_dir)
    evaluator = Evaluator(plan, source, data, student, teacher, teacher_key, folder)
    features = None if plan.features is None else feature_function(plan.features)
    fresh = evaluator.reference() if features is not None else None
    references = None if features is None else make_references(plan, data, features, fresh)
    rows = []
    for row in plan.rows:
        check_cancelled()
        images, seconds = evaluator.draw(row)
        rows.append(measure_images(plan, row, images, seconds, references))
        if progress is not None:
            progress(len(rows), len(plan.rows))
    return EvaluationBody(
        step=step,
        network=plan.network,
        features=plan.features,
        feature_dimension=None if references is None else references.held_out.mean.shape[0],
        floors=floors_of(evaluator, references),
        rows=tuple(rows),
        seconds=time.perf_counter() - started,
    )


def time_scale_of(config: RunConfig) -> float:
    """Network time of one unit of rectified-flow time."""
    return build(config.model.name, device="meta", **config.model.overrides.arguments()).spec.time_scale


def measure_images(
    plan: EvaluationPlan, row: PlanRow, images: ImageSet, seconds: float | None, references: References | None
) -> Row:
    """The row of given images: every metric of the plan, whoever drew them.

    Args:
        plan: Metrics and seed.
        row: What the images are said to be.
        images: The images.
        seconds: Time one took; None for images of the data set, which have no seed either.
        references: What they are compared with; None gives no values.
    """
    if references is None:
        metrics = {name: refused(NO_FEATURES) for name in plan.metrics}
    else:
        metrics = judge(plan.metrics, images, references)
    return Row(
        sampler=row.sampler,
        steps=row.steps,
        guidance=row.guidance,
        calls=network_calls(row.sampler, row.steps, row.guidance),
        n=len(images.labels),
        seed=None if seconds is None else plan.seed,
        seconds=seconds,
        metrics=metrics,
    )


def floors_of(evaluator: Evaluator, references: References | None) -> Floors:
    """Distances between two sets of one kind: training to held-out images, two sets of the teacher."""
    if references is None:
        return Floors(real_real=None, teacher_teacher=None)
    train = moments(references.train_manifold.points)
    real_real = frechet_distance(references.held_out, train).item()
    dimension = train.mean.shape[0]
    if references.teacher is None or not enough_samples(references.teacher.count, dimension):
        return Floors(real_real=real_real, teacher_teacher=None)
    settings = evaluator.source.config.teacher
    again = evaluator.draw_teacher(settings.sampler.steps, settings.guidance, evaluator.plan.seed)
    second = moments(references.features(again.latents)[0])
    return Floors(real_real=real_real, teacher_teacher=frechet_distance(references.teacher, second).item())


def _latent_shape(data: DigitsData) -> tuple[int, int, int, int]:
    channels, frames, height, width = data.train_images.shape[1:]
    return channels, frames, height, width
