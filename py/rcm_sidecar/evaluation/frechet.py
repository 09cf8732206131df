"""Frechet distance between two sets of features, and its bootstrap, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLES_PER_DIMENSION = 10
"""A distance of fewer samples than this times the feature dimension says more about n than about the sets."""


@dataclass(frozen=True)
class Moments:
    """Mean [..., d] and covariance [..., d, d] (divided by n - 1) in float64, and the number of samples."""

    mean: Tensor
    covariance: Tensor
    count: int


def moments(features: Tensor) -> Moments:
    """Moments of features [n, d]."""
    values = features.double()
    mean = values.mean(0)
    centred = values - mean
    return Moments(mean, centred.T @ centred / (len(values) - 1), len(values))


def enough_samples(count: int, dimension: int) -> bool:
    """True if a Frechet distance of `count` samples may be stated."""
    return count >= SAMPLES_PER_DIMENSION * dimension


def frechet_distance(first: Moments, second: Moments) -> Tensor:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), of Gaussians with these moments (Heusel et al. 2017, eq. 6).

    The trace of the root is the sum of the roots of the eigenvalues of R C2 R with R = C1^(1/2), which is symmetric: no
    complex numbers and no iteration. `second` may have leading batch axes.

    Returns:
        Distance [...] in float64, never below 0.

    >>> one = Moments(torch.zeros(1).double(), torch.eye(1).double(), 10)
    >>> two = Moments(torch.ones(1).double(), 4 * torch.eye(1).double(), 10)
    >>> frechet_distance(one, two).item()  # (0 - 1)^2 + (1 - 2)^2
    2.0
    """
    root = _symmetric_root(first.covariance)
    product = root @ second.covariance @ root
    eigenvalues = torch.linalg.eigvalsh((product + product.mT) / 2)
    trace_of_root = eigenvalues.clamp_min(0).sqrt().sum(-1)
    traces = first.covariance.diagonal(dim1=-2, dim2=-1).sum(-1) + second.covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    distance: Tensor = (first.mean - second.mean).square().sum(-1) + traces - 2 * trace_of_root
    return distance.clamp_min(0)


def resampled_moments(features: Tensor, counts: Tensor) -> Moments:
    """Moments of bootstrap resamples: `counts` [r, n] says how often each of the features [n, d] was drawn."""
    values = features.double()
    shift = values.mean(0)
    values = values - shift
    weights = counts.double()
    total = len(values)
    mean = weights @ values / total
    outer = torch.stack([(values * weight[:, None]).T @ values for weight in weights])
    covariance = (outer - total * mean[:, :, None] * mean[:, None, :]) / (total - 1)
    return Moments(mean + shift, covariance, total)


def _symmetric_root(matrix: Tensor) -> Tensor:
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * eigenvalues.clamp_min(0).sqrt()) @ vectors.T
    return root
