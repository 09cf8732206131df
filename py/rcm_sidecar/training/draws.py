"""Random numbers of a step, and on a GPU those of the next step while this one is at work.

All come from (seed, step, stream) and are drawn on the CPU for the whole batch, of which a process takes its samples:
neither an interruption nor the size of micro-batches, the number of processes or the device changes them. So neither
does the moment at which they are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from rcm_sidecar.config import LogNormalSigma, TimeDistribution, UniformLogisticNormal, UniformShifted
from rcm_sidecar.diffusion.time_distributions import draw
from rcm_sidecar.training.randomness import generator, normal

Change: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class RolloutNumbers:
    """What the student's own samples start from.

    Attributes:
        start: Noise [B, ...].
        fresh: Noise of each call after the first [B, ...].
        times: TrigFlow times [n, B], float64.
    """

    start: Tensor
    fresh: tuple[Tensor, ...]
    times: Tensor

    def each(self, noise: Change, times: Change) -> RolloutNumbers:
        """Noise and times changed."""
        return RolloutNumbers(noise(self.start), tuple(map(noise, self.fresh)), times(self.times))


@dataclass(frozen=True)
class Numbers:
    """Random numbers of one loss, for a process's samples.

    Attributes:
        noise: Standard normal [B, ...] float32.
        times: [B] float64: TrigFlow times, or for dCM where on its grid.
        rollout: Of losses on the student's own samples.
    """

    noise: Tensor
    times: Tensor
    rollout: RolloutNumbers | None = None

    def each(self, noise: Change, times: Change) -> Numbers:
        """Noise and times changed."""
        rollout = None if self.rollout is None else self.rollout.each(noise, times)
        return Numbers(noise(self.noise), times(self.times), rollout)

    def pinned(self) -> Numbers:
        """The same in memory that a GPU can read by itself."""
        return self.each(Tensor.pin_memory, Tensor.pin_memory)

    def to(self, latents: Tensor) -> Numbers:
        """The same on the device of latents, noise in their dtype; times stay float64."""
        device, dtype = latents.device, latents.dtype
        return self.each(lambda noise: on_device(noise, device).to(dtype), lambda times: on_device(times, device))


@dataclass(frozen=True)
class Draws:
    """Draws the numbers of one step, on the CPU.

    Attributes:
        seed: Of the run.
        step: Counted from 0.
        size: Samples of the whole batch, for which the numbers are drawn.
        share: Those of this process.
        shape: Of one latent.
    """

    seed: int
    step: int
    size: int
    share: slice
    shape: tuple[int, ...]

    def noise(self, stream: str) -> Tensor:
        """Standard normal [B, ...] float32."""
        return normal(self.seed, self.step, stream, (self.size, *self.shape))[self.share]

    def times(self, stream: str, distribution: TimeDistribution) -> Tensor:
        """TrigFlow times [B], float64."""
        return draw_times(distribution, self.size, generator(self.seed, self.step, stream))[self.share]

    def uniform(self, stream: str) -> Tensor:
        """Numbers in [0, 1), [B], float64."""
        source = generator(self.seed, self.step, stream)
        return torch.rand(self.size, generator=source, dtype=torch.float64)[self.share]


class DrawnAhead:
    """Numbers of the step to come, drawn by a thread; where `threaded` is false, all when they are asked for.

    A thread, because the host has no idle moment where it is what limits a step; drawing does not hold the interpreter.
    """

    def __init__(self, threaded: bool = False) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="draws") if threaded else None
        self._next: tuple[Hashable, Future[dict[str, Numbers]]] | None = None

    def begin(self, key: Hashable, drawing: Callable[[], dict[str, Numbers]]) -> None:
        """Have the numbers drawn that `take` will ask for with this key."""
        if self._pool is not None:
            self._next = (key, self._pool.submit(drawing))

    def take(self, key: Hashable, drawing: Callable[[], dict[str, Numbers]]) -> dict[str, Numbers]:
        """What was drawn for this key, else drawn now."""
        begun, self._next = self._next, None
        if begun is None or begun[0] != key:
            return drawing()
        return begun[1].result()


def draw_times(distribution: TimeDistribution, count: int, source: torch.Generator) -> Tensor:
    """TrigFlow times [count], float64, of a config's distribution."""
    match distribution:
        case LogNormalSigma(mean=mean, std=std):
            return draw("logNormalSigma", count, generator=source, mean=mean, std=std)
        case UniformShifted(shift=shift):
            return draw("uniformShifted", count, generator=source, shift=shift)
        case UniformLogisticNormal(std=std):
            return draw("uniformLogisticNormal", count, generator=source, std=std)


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU there. The copy to a GPU is launched only: the host waits for nothing that runs there."""
    return tensor.to(device, non_blocking=True)
