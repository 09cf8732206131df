"""95 % bootstrap intervals: seeded, by resampling what a value is averaged over."""

from __future__ import annotations

import torch
from torch import Tensor

from rcm_sidecar.evaluation.frechet import Moments, frechet_distance, resampled_moments

_LOW, _HIGH = 0.025, 0.975

Interval = tuple[float, float] | None


def resample_counts(count: int, resamples: int, seed: int) -> Tensor:
    """How often each of `count` items is drawn in each bootstrap resample: [resamples, count], rows sum to count."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(count, (resamples, count), generator=generator)
    return torch.zeros(resamples, count).scatter_add_(1, chosen, torch.ones(resamples, count))


def mean_interval(contributions: Tensor, counts: Tensor) -> Interval:
    """Interval of a mean of contributions [n]; None without resamples."""
    if len(counts) == 0:
        return None
    means = counts.double() @ contributions.double() / len(contributions)
    low, high = torch.quantile(means, torch.tensor([_LOW, _HIGH], dtype=torch.float64)).tolist()
    return low, high


def frechet_interval(reference: Moments, features: Tensor, value: float, counts: Tensor) -> Interval:
    """Interval of a Frechet distance to a fixed reference; None without resamples.

    A resample holds copies, which adds to every distance what a smaller set would add. The distribution of the
    resamples is therefore moved so that its median is the value, and cut at 0.
    """
    if len(counts) == 0:
        return None
    distances = frechet_distance(reference, resampled_moments(features, counts))
    levels = torch.tensor([_LOW, 0.5, _HIGH], dtype=torch.float64)
    low, middle, high = torch.quantile(distances, levels).tolist()
    return max(0.0, value + low - middle), value + high - middle
