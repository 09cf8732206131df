"""The evaluation metrics of one set of images against the fixed references of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from rcm_sidecar.evaluation.features import FeatureFunction
from rcm_sidecar.evaluation.frechet import Moments, enough_samples, frechet_distance, moments
from rcm_sidecar.evaluation.intervals import Interval, frechet_interval, mean_interval, resample_counts
from rcm_sidecar.evaluation.manifolds import Manifold, ManifoldScores, compare, manifold, nearest_distances
from rcm_sidecar.protocol import MetricValue

TOO_FEW = "n"
"""Reason of a value that was refused because there are too few samples."""
IS_REFERENCE = "reference"
"""Reason of a value that would compare a set with itself."""
NO_TEACHER = "teacher"
"""Reason of a distance to the teacher where there is none."""
NOT_FINITE = "nonFinite"
"""Reason of a value of samples that are not finite numbers."""


@dataclass(frozen=True)
class ImageSet:
    """Images to judge: latents [n,C,T,H,W] and the label [n] each was meant to show.

    `is_train` and `is_held_out` mark the sets that are references themselves.
    """

    latents: Tensor
    labels: Tensor
    is_train: bool = False
    is_held_out: bool = False


@dataclass(frozen=True)
class References:
    """What every row is compared with; made once an evaluation.

    Attributes:
        features: Features and classes of latents.
        train: Training images, for `nearestTrain`.
        train_manifold: Balls around the training images' features.
        held_out: Moments of the held-out images' features, for `fdReal`.
        teacher: Moments of a fresh set of the teacher, for `fdTeacher`; None without a teacher.
        neighbours: k of the balls.
        resamples: Bootstrap resamples; 0 gives no intervals.
        seed: Of the bootstrap.
    """

    features: FeatureFunction
    train: Tensor
    train_manifold: Manifold
    held_out: Moments
    teacher: Moments | None
    neighbours: int
    resamples: int
    seed: int


@dataclass(frozen=True)
class Judged:
    """An image set with what several metrics need of it."""

    images: ImageSet
    features: Tensor
    classes: Tensor
    scores: ManifoldScores | None
    counts: Tensor


def judge(names: tuple[str, ...], images: ImageSet, references: References) -> dict[str, MetricValue]:
    """The metrics `names` of `images`, each with its 95 % interval; a value that cannot be given says why."""
    if not bool(images.latents.isfinite().all()):
        return {name: refused(NOT_FINITE) for name in names}
    features, classes = references.features(images.latents)
    count = len(features)
    comparable = not images.is_train and count > references.neighbours
    scores = compare(references.train_manifold, manifold(features, references.neighbours)) if comparable else None
    counts = resample_counts(count, references.resamples, references.seed)
    judged = Judged(images, features, classes, scores, counts)
    return {name: METRICS[name](judged, references) for name in names}


def refused(reason: str) -> MetricValue:
    """A value that is not given."""
    return MetricValue(value=None, low=None, high=None, reason=reason)


def distance_value(reference: Moments | None, features: Tensor, counts: Tensor) -> MetricValue:
    """Frechet distance of `features` to `reference`, refused where either has too few samples."""
    if reference is None:
        return refused(NO_TEACHER)
    dimension = features.shape[1]
    if not enough_samples(len(features), dimension) or not enough_samples(reference.count, dimension):
        return refused(TOO_FEW)
    value = frechet_distance(reference, moments(features)).item()
    return _measured(value, frechet_interval(reference, features, value, counts))


def _fd_teacher(judged: Judged, references: References) -> MetricValue:
    return distance_value(references.teacher, judged.features, judged.counts)


def _fd_real(judged: Judged, references: References) -> MetricValue:
    if judged.images.is_held_out:
        return refused(IS_REFERENCE)
    return distance_value(references.held_out, judged.features, judged.counts)


def _manifold_metric(contributions: Callable[[ManifoldScores], Tensor], per_sample: bool) -> Metric:
    def metric(judged: Judged, references: References) -> MetricValue:
        if judged.images.is_train:
            return refused(IS_REFERENCE)
        if judged.scores is None:
            return refused(TOO_FEW)
        values = contributions(judged.scores)
        counts = judged.counts
        if not per_sample:
            counts = resample_counts(len(values), references.resamples, references.seed)
        return _mean(values, counts)

    return metric


def _accuracy(judged: Judged, references: References) -> MetricValue:
    return _mean((judged.classes == judged.images.labels).double(), judged.counts)


def _nearest_train(judged: Judged, references: References) -> MetricValue:
    """Mean Euclidean distance to the nearest training image, in standardised pixels; a copy has 0."""
    if judged.images.is_train:
        return refused(IS_REFERENCE)
    return _mean(nearest_distances(judged.images.latents, references.train), judged.counts)


def _mean(contributions: Tensor, counts: Tensor) -> MetricValue:
    return _measured(contributions.double().mean().item(), mean_interval(contributions, counts))


def _measured(value: float, interval: Interval) -> MetricValue:
    if not math.isfinite(value):
        return refused(NOT_FINITE)
    low, high = (None, None) if interval is None else interval
    return MetricValue(value=value, low=low, high=high)


Metric = Callable[[Judged, References], MetricValue]

METRICS: Mapping[str, Metric] = {
    "fdTeacher": _fd_teacher,
    "fdReal": _fd_real,
    "precision": _manifold_metric(lambda scores: scores.precision, per_sample=True),
    "recall": _manifold_metric(lambda scores: scores.recall, per_sample=False),
    "density": _manifold_metric(lambda scores: scores.density, per_sample=True),
    "coverage": _manifold_metric(lambda scores: scores.coverage, per_sample=False),
    "accuracy": _accuracy,
    "nearestTrain": _nearest_train,
}
"""Every metric `evaluation.metrics` may name."""
