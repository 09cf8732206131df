"""Training data as a pure function of position, so that a resumed run needs one number to go on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rcm_sidecar.config import RunConfig
from rcm_sidecar.data.digits import load_digits_data
from rcm_sidecar.errors import ConfigError

TOLERATED_SHARE = 0.1
"""How far mean and standard deviation of the latents may be from 0 and 1 before a warning."""

_DIGITS_HOLD_OUT = 0.2


@dataclass(frozen=True)
class Batch:
    """Latents [B,C,T,H,W] float32 and labels [B] int64."""

    latents: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation over all elements of all training latents; the method assumes 0 and 1."""

    mean: float
    std: float


class TrainingData(Protocol):
    """What the trainer may ask of a data set."""

    @property
    def size(self) -> int:
        """Number of samples."""
        ...

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Shape [C,T,H,W] of one latent."""
        ...

    def batch(self, start_sample: int, count: int, seed: int) -> Batch:
        """Samples `start_sample` to `start_sample + count` of the endless shuffled stream of `seed`."""
        ...

    def statistics(self) -> Statistics:
        """Mean and standard deviation of the latents."""
        ...


class TensorData:
    """A data set held in memory. Each epoch is a permutation seeded by (seed, epoch).

    Args:
        latents: [n,C,T,H,W] float32.
        labels: [n] int64.
    """

    def __init__(self, latents: Tensor, labels: Tensor) -> None:
        if len(latents) != len(labels) or len(labels) == 0:
            raise ValueError(f"{len(latents)} latents and {len(labels)} labels")
        self._latents, self._labels = latents, labels
        self._order: tuple[tuple[int, int], Tensor] | None = None

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self._labels)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Shape [C,T,H,W] of one latent."""
        channels, frames, height, width = self._latents.shape[1:]
        return channels, frames, height, width

    def batch(self, start_sample: int, count: int, seed: int) -> Batch:
        """See `TrainingData.batch`; a batch may cross epochs.

        Raises:
            ValueError: a negative position or an empty batch.
        """
        if start_sample < 0 or count < 1:
            raise ValueError(f"no batch of {count} samples from {start_sample}")
        pieces, position, left = [], start_sample, count
        while left:
            epoch, offset = divmod(position, self.size)
            piece = self._permutation(seed, epoch)[offset : offset + left]
            pieces.append(piece)
            position, left = position + len(piece), left - len(piece)
        chosen = torch.cat(pieces)
        return Batch(self._latents[chosen], self._labels[chosen])

    def statistics(self) -> Statistics:
        """Mean and standard deviation of the latents."""
        values = self._latents.double()
        return Statistics(values.mean().item(), values.std(correction=0).item())

    def _permutation(self, seed: int, epoch: int) -> Tensor:
        """The order of one epoch; the last one is remembered, which changes nothing but time."""
        key = (seed, epoch)
        if self._order is None or self._order[0] != key:
            digest = hashlib.sha256(f"epoch/{seed}/{epoch}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
            self._order = key, torch.randperm(self.size, generator=generator)
        return self._order[1]


def open_training_data(config: RunConfig) -> TrainingData:
    """The data set of `config.data`.

    Raises:
        ConfigError: E_CONFIG_NOT_YET for a kind or split that does not exist yet.
    """
    if config.data.kind != "digits":
        message = f"data.kind {config.data.kind} is not there yet."
        raise ConfigError("E_CONFIG_NOT_YET", message, "Use data.kind: digits.")
    if config.data.hold_out != _DIGITS_HOLD_OUT:
        raise ConfigError("E_CONFIG_NOT_YET", "The digits ship with a fixed split.", "Use data.holdOut: 0.2.")
    data = load_digits_data()
    return TensorData(data.train_images, data.train_labels)


def statistics_warning(statistics: Statistics) -> str | None:
    """One sentence with the numbers if the latents are off by more than 10 %, else None.

    >>> statistics_warning(Statistics(0.0, 1.0)) is None
    True
    """
    if abs(statistics.mean) <= TOLERATED_SHARE and abs(statistics.std - 1) <= TOLERATED_SHARE:
        return None
    return (
        f"The training latents have mean {statistics.mean:.3f} and standard deviation {statistics.std:.3f}; "
        "the method assumes 0 and 1. Standardise them."
    )
