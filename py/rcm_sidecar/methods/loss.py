"""What every loss returns, and the reductions they share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rcm_sidecar.diffusion.coordinates import over_batch


class Loss(NamedTuple):
    """A loss without its weight.

    Attributes:
        total: Mean of `per_sample`, 0-d, with the autograd graph. Not finite when a velocity was not.
        per_sample: [B], each the sum over all but the batch axis.
        scalars: Name -> 0-d float64 tensor without graph, on the loss's device; reading them is the caller's
            synchronisation. Each loss documents its names.
    """

    total: Tensor
    per_sample: Tensor
    scalars: dict[str, Tensor]

    def weighted(self, weight: float) -> Loss:
        """The same loss times `weight`: total, per_sample and the scalars proportional to it, `loss` and `grad_norm`.

        Metrics show these weighted values: an sCM loss sits at 93-98 with weight 100 and its `grad_norm` near 200
        (rcm-method sections 4 and 6).
        """
        scalars = {
            name: weight * value if name in ("loss", "grad_norm") else value for name, value in self.scalars.items()
        }
        return Loss(weight * self.total, weight * self.per_sample, scalars)


def sum_per_sample(x: Tensor) -> Tensor:
    """Sum over all but the batch axis: [B, ...] -> [B]."""
    return x.flatten(1).sum(dim=1)


def norm_per_sample(x: Tensor) -> Tensor:
    """Euclidean norm over all but the batch axis, in float64 without graph: [B, ...] -> [B]."""
    norm: Tensor = torch.linalg.vector_norm(x.detach().flatten(1), dim=1, dtype=torch.float64)
    return norm


def finite_per_sample(x: Tensor) -> Tensor:
    """Whether every element of a sample is finite: [B, ...] -> bool [B]."""
    return torch.isfinite(x.detach()).flatten(1).all(1)


def mean_where(values: Tensor, keep: Tensor) -> Tensor:
    """Mean of values [B] where keep [B] is true, 0 where none is; never NaN because of a dropped sample."""
    kept = torch.where(keep, values.detach().double(), 0.0)
    return kept.sum() / keep.sum().clamp(min=1)


def count(mask: Tensor) -> Tensor:
    """Number of true entries as float64."""
    return mask.sum().double()


def first_index(mask: Tensor) -> Tensor:
    """Index of the first true entry as float64, -1 if there is none."""
    return torch.where(mask.any(), mask.double().argmax().double(), -1.0)


def select_samples(mask: Tensor, chosen: Tensor | float, other: Tensor) -> Tensor:
    """Per sample `chosen` where mask [B] is true, else `other`. torch.where, so a dropped NaN gives no gradient."""
    return torch.where(over_batch(mask, other), chosen, other)
