"""The order of training samples: a full permutation of each epoch, a pure function of seed and position."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


class ShuffledOrder:
    """The endless stream of sample numbers. Each epoch is a permutation seeded by (seed, epoch).

    Args:
        size: Number of samples.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._last: tuple[tuple[int, int], Tensor] | None = None

    def numbers(self, start: int, count: int, seed: int) -> Tensor:
        """Sample numbers [count], int64, at positions `start` to `start + count`; they may cross epochs.

        Raises:
            ValueError: a negative position or an empty window.
        """
        if start < 0 or count < 1:
            raise ValueError(f"no batch of {count} samples from {start}")
        pieces, position, left = [], start, count
        while left:
            epoch, offset = divmod(position, self.size)
            piece = self.epoch(epoch, seed)[offset : offset + left]
            pieces.append(piece)
            position, left = position + len(piece), left - len(piece)
        return torch.cat(pieces)

    def epoch(self, epoch: int, seed: int) -> Tensor:
        """The permutation of one epoch [size], shared between callers: never change it in place."""
        key = (seed, epoch)
        if self._last is None or self._last[0] != key:
            digest = hashlib.sha256(f"epoch/{seed}/{epoch}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
            self._last = key, torch.randperm(self.size, generator=generator)
        return self._last[1]
