"""Training data as a pure function of position, so that a resumed run needs one number to go on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from rcm_sidecar.data.order import ShuffledOrder

TOLERATED_SHARE = 0.1
"""How far mean and standard deviation of the latents may be from 0 and 1 before a warning."""


@dataclass(frozen=True)
class BadSample:
    """A sample that no batch has, and why: `reason` completes "Sample NAME is skipped: "."""

    name: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """Samples of a step.

    Attributes:
        latents: [B,C,T,H,W] float32.
        condition: What a `Conditioning` makes text of: labels [B] int64, or text [B,L,D] float32 as it was stored.
        ids: Name of each sample; empty where samples have none.
        skipped: Samples that are bad and were replaced.
    """

    latents: Tensor
    condition: Tensor
    ids: tuple[str, ...] = ()
    skipped: tuple[BadSample, ...] = ()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything by name, for a file."""
        return {"latents": self.latents, "labels" if self.condition.dim() == 1 else "text": self.condition}


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

    @property
    def identity(self) -> str:
        """Equal for equal streams of samples: checkpoints keep it, since a position means nothing in other data."""
        ...

    @property
    def incomplete(self) -> tuple[BadSample, ...]:
        """Samples that no batch will have, known from the start."""
        ...

    def batch(self, start_sample: int, count: int, seed: int) -> Batch:
        """Samples `start_sample` to `start_sample + count` of the endless shuffled stream of `seed`."""
        ...

    def close(self) -> None:
        """Let go of files and threads."""
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
        self._order = ShuffledOrder(len(labels))

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self._labels)

    @property
    def identity(self) -> str:
        """Of data that cannot change."""
        return ""

    @property
    def incomplete(self) -> tuple[BadSample, ...]:
        """None."""
        return ()

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
        chosen = self._order.numbers(start_sample, count, seed)
        return Batch(self._latents[chosen], self._labels[chosen])

    def statistics(self) -> Statistics:
        """Mean and standard deviation of the latents."""
        values = self._latents.double()
        return Statistics(values.mean().item(), values.std(correction=0).item())

    def close(self) -> None:
        """Nothing is open."""


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
