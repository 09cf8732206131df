"""Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020) on features.

Both draw a ball around each point of a set, out to its k-th nearest other point of the same set.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Manifold:
    """Points [n, d] in float64 and the radius [n] of the ball around each."""

    points: Tensor
    radii: Tensor
    neighbours: int


@dataclass(frozen=True)
class ManifoldScores:
    """Contributions in float64, whose means are the metrics.

    Attributes:
        precision: [generated] 1 if the sample lies in a ball of a real image.
        density: [generated] number of real balls the sample lies in, over k.
        recall: [real] 1 if the image lies in a ball of a generated sample.
        coverage: [real] 1 if the image's ball holds a generated sample.
    """

    precision: Tensor
    density: Tensor
    recall: Tensor
    coverage: Tensor


def manifold(features: Tensor, neighbours: int) -> Manifold:
    """Balls around features [n, d] that reach the `neighbours`-th nearest other point.

    Raises:
        ValueError: not more points than neighbours.
    """
    if len(features) <= neighbours:
        raise ValueError(f"{len(features)} points have no {neighbours}th neighbour")
    points = features.double()
    distances = _distances(points, points)
    distances.fill_diagonal_(-1.0)  # a point is no neighbour of itself, but copies of it are
    return Manifold(points, distances.kthvalue(neighbours + 1, dim=1).values, neighbours)


def compare(real: Manifold, generated: Manifold) -> ManifoldScores:
    """Contributions of each sample and each real image to the four scores."""
    distances = _distances(real.points, generated.points)
    in_real_ball = distances <= real.radii[:, None]
    return ManifoldScores(
        precision=in_real_ball.any(0).double(),
        density=in_real_ball.double().sum(0) / real.neighbours,
        recall=(distances <= generated.radii[None, :]).any(1).double(),
        coverage=in_real_ball.any(1).double(),
    )


def nearest_distances(queries: Tensor, points: Tensor) -> Tensor:
    """Euclidean distance [q] of each query to the nearest point; both are flattened to [n, values]."""
    return _distances(queries.flatten(1).double(), points.flatten(1).double()).min(1).values


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances [a, b]. Exact differences: the fast form by products loses zeros between equal points."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
