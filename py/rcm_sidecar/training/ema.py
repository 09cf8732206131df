"""Averages of the student's weights (rcm-method section 8). Any number of them can run at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from rcm_sidecar.distributed.tensors import local
from rcm_sidecar.errors import CheckpointError
from rcm_sidecar.training.offload import Visitors, rest

DecayRule = Callable[[int], float]
"""Decay beta of the i-th update, i counted from 0."""


def power_gamma(relative_width: float) -> float:
    """Exponent of a power average whose relative width (its standard deviation over training time) is s.

    Largest real root of x^3 + 7 x^2 + (16 - 1/s^2) x + (12 - 1/s^2) (EDM2, arXiv 2312.02696).

    >>> round(power_gamma(0.1), 12)
    6.937203937602
    """
    if not 0 < relative_width < 12**-0.5:
        raise ValueError(f"relativeWidth must lie between 0 and 0.288, got {relative_width}")
    inverse = relative_width**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots[np.abs(roots.imag) < 1e-9].real.max())


def power_decay(relative_width: float) -> DecayRule:
    """Beta = (1 - 1/(i+1))^(gamma+1): the first update copies the weights, later ones look back ever further."""
    gamma = power_gamma(relative_width)
    return lambda update: (1 - 1 / (update + 1)) ** (gamma + 1)


def constant_decay(decay: float) -> DecayRule:
    """Beta = decay at every update."""
    if not 0 <= decay < 1:
        raise ValueError(f"decay must lie in [0, 1), got {decay}")
    return lambda update: decay


class Ema:
    """A float32 average of named weights, with an update counter of its own, sharded like them.

    Args:
        parameters: Name -> tensor; the average starts as a copy.
        decay: The rule, `power_decay` or `constant_decay`.
        offload: Keep the average in main memory; the same bits.

    Attributes:
        updates: Updates so far, the rule's argument.
    """

    @torch.no_grad()
    def __init__(self, parameters: Mapping[str, Tensor], decay: DecayRule, offload: bool = False) -> None:
        self._decay = decay
        if not offload:
            self._weights = {name: value.detach().float().clone() for name, value in parameters.items()}
            self._visitors = None
        else:
            self._weights = {name: rest(value, torch.float32) for name, value in parameters.items()}
            for name, value in self._weights.items():
                local(value).copy_(local(parameters[name]))
            device = local(next(iter(parameters.values()))).device
            self._visitors = Visitors([(value,) for value in self._weights.values()], device)
        self.updates = 0

    @property
    def weights(self) -> dict[str, Tensor]:
        """Name -> float32 average, on the parameters' devices or in main memory; loadable as a network's state."""
        if self._visitors is not None:
            self._visitors.settle()
        return self._weights

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor]) -> None:
        """One update with the same names as at the start: average <- beta average + (1 - beta) parameters."""
        beta = self._decay(self.updates)
        self.updates += 1
        values = [local(parameters[name]).detach() for name in self._weights]
        for chosen, averages in self._averages():
            torch._foreach_lerp_(averages, [value.float() for value in values[chosen]], 1 - beta)

    def _averages(self) -> Iterator[tuple[slice, list[Tensor]]]:
        """(which weights, their averages on the parameters' device)."""
        if self._visitors is None:
            yield slice(None), [local(value) for value in self._weights.values()]
            return
        for chosen, rows in self._visitors.visits():
            yield chosen, [average for (average,) in rows]

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], updates: int) -> None:
        """Restore an average, sharded like this one, and its counter.

        Raises:
            CheckpointError: names or shapes differ; nothing is changed then.
        """
        wrong = sorted(set(self.weights) ^ set(weights))
        wrong = wrong or [name for name, value in self.weights.items() if value.shape != weights[name].shape]
        if wrong:
            raise CheckpointError("E_CHECKPOINT_CORRUPT", f"The average's weights do not fit: {', '.join(wrong[:3])}.")
        for name, value in self.weights.items():
            local(value).copy_(local(weights[name]))
        self.updates = updates
