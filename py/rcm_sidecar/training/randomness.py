"""Random numbers as a function of (seed, step, stream): nothing to store in a checkpoint, nothing global."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator(seed: int, step: int, stream: str) -> torch.Generator:
    """A CPU generator that depends on its arguments only.

    Args:
        seed: The run's seed.
        step: Trainer step, or any other position.
        stream: What the numbers are for, for example "scm/noise". Different names give independent numbers.

    >>> float(torch.rand(1, generator=generator(0, 7, "a"))) == float(torch.rand(1, generator=generator(0, 7, "a")))
    True
    """
    digest = hashlib.sha256(f"{seed}:{step}:{stream}".encode()).digest()
    made = torch.Generator()
    made.manual_seed(int.from_bytes(digest[:8], "little"))
    return made


def normal(seed: int, step: int, stream: str, shape: Sequence[int]) -> Tensor:
    """Standard normal float32 numbers of a shape."""
    return torch.randn(tuple(shape), generator=generator(seed, step, stream))
