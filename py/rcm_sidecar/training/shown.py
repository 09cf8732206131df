"""What people see of a run: weights of their own, with the label table and the condition made of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rcm_sidecar.data import LabelConditioner
from rcm_sidecar.diffusion.guidance import Network
from rcm_sidecar.distributed.tensors import whole
from rcm_sidecar.evaluation.sampling import Conditioning
from rcm_sidecar.training.learner import Learner

CONDITIONER = "conditioner."
"""Prefix of the label table's parameters beside those of a network."""


@dataclass(frozen=True)
class Shown:
    """Whole copies on the leading process; made before networks are shared among processes.

    Attributes:
        learner: Evaluated and exported.
        teacher: The frozen teacher; None when it is the learner that is pretrained.
        conditioner: Label table, on the CPU.
        condition: Made of it.
    """

    learner: Learner
    teacher: Network | None
    conditioner: LabelConditioner
    condition: Conditioning

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Everything `load_whole` may fill, by name."""
        table = {f"{CONDITIONER}{name}": value for name, value in self.conditioner.named_parameters()}
        return {**self.learner.parameters, **table}


def load_whole(shown: Shown | None, weights: Mapping[str, Tensor]) -> None:
    """Copy weights, sharded or not, into what is shown, one tensor after the other. All processes call it together.

    Args:
        shown: None on processes that show nothing.
        weights: Parameters or their average, by name; all of the learner's, those of the table if it trains.
    """
    targets = {} if shown is None else shown.parameters
    with torch.no_grad():
        for name, value in weights.items():
            everything = whole(value)
            if shown is not None:
                targets[name].copy_(everything)


def frozen_copy(table: LabelConditioner) -> LabelConditioner:
    """A label table of its own."""
    return copy.deepcopy(table).requires_grad_(False)


def from_cpu(network: Network, device: torch.device) -> Network:
    """The network for callers whose tensors are on the CPU, as random numbers are."""
    if device.type == "cpu":
        return network

    def call(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        velocity: Tensor = network(x.to(device), t.to(device), text.to(device))
        return velocity.cpu()

    return call
