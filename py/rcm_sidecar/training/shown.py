"""What people see of a run: its weights or their average, with the label table and the condition made of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from rcm_sidecar.data import LabelConditioner
from rcm_sidecar.diffusion.guidance import Network
from rcm_sidecar.distributed.tensors import local
from rcm_sidecar.evaluation.sampling import Conditioning
from rcm_sidecar.training.trainer import Role

CONDITIONER = "conditioner."
"""Prefix of the label table's parameters beside those of a network."""


@dataclass(frozen=True)
class Shown:
    """What the leading process draws with.

    Attributes:
        velocity: Of what is evaluated. Tensors on the CPU, as random numbers are; so for the teacher.
        teacher: The frozen teacher's; None when it is the teacher that is pretrained.
        conditioner: Label table, whole, on the CPU; None where the data hold texts.
        condition: Made of it, or of the texts of the data.
    """

    velocity: Network
    teacher: Network | None
    conditioner: LabelConditioner | None
    condition: Conditioning


@contextmanager
def average_in_place(role: Role) -> Iterator[None]:
    """Let a role's parameters hold its first average meanwhile, and the average the parameters; as before afterwards.

    Each process exchanges its own parts, so this takes the memory of one tensor. Both are float32: nothing is rounded.
    """
    _exchange(role)
    try:
        yield
    finally:
        _exchange(role)


@torch.no_grad()
def _exchange(role: Role) -> None:
    for name, average in role.emas[0].weights.items():
        here, there = local(role.parameters[name]), local(average)
        kept = here.clone()
        here.copy_(there)
        there.copy_(kept)
