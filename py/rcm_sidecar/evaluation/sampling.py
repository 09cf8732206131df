"""Drawing sets of samples for evaluation: same seed, same starting noise, whatever the sampler."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rcm_sidecar.config import RunConfig
from rcm_sidecar.diffusion.guidance import Network
from rcm_sidecar.diffusion.samplers import sample_student, sample_teacher, student_times
from rcm_sidecar.errors import ConfigError

_CALL_SAMPLES = 256
"""Of one network call. More are no faster on a CPU and would delay a cancel."""
_CALL_ELEMENTS = 64 * _CALL_SAMPLES
"""Of the latents of one call: 256 digits, but a picture or video of a large model is a call of its own."""


class Conditioning(Protocol):
    """What a data set keeps of a condition, to text: a `LabelConditioner`, or `StoredText` for stored embeddings.

    For teacher.negative: zeros wrap a table so that `empty` gives zeros.
    """

    def __call__(self, condition: Tensor, /) -> Tensor:
        """Text [B,L,D] of labels [B], or of text [B,L,D]."""
        ...

    def empty(self, batch: int) -> Tensor:
        """The negative condition [batch,L,D]."""
        ...


@dataclass(frozen=True)
class Drawn:
    """Samples [n,C,T,H,W] float32 and the seconds one of them took."""

    latents: Tensor
    seconds: float


@dataclass(frozen=True)
class SampleSource:
    """What drawing needs apart from a network.

    Attributes:
        config: For the samplers' settings.
        condition: Labels to text.
        latent_shape: [C,T,H,W].
        time_scale: The network's time is time_scale * t.
        check_cancelled: Called before each network call; raises to stop.
    """

    config: RunConfig
    condition: Conditioning
    latent_shape: tuple[int, int, int, int]
    time_scale: float
    check_cancelled: Callable[[], None]

    def student(self, network: Network, labels: Tensor, steps: int, seed: int) -> Drawn:
        """Samples of the student for labels [n]: `steps` network calls each, no guidance."""
        settings = self.config.student.sampler
        try:
            times = student_times(steps, settings.sigma_max, settings.times)
        except ValueError as error:
            raise ConfigError("E_CONFIG_VALUE", str(error)) from error
        noises = noise_sets(steps, len(labels), self.latent_shape, seed)

        def draw(chosen: slice, text: Tensor) -> Tensor:
            fresh = [noise[chosen] for noise in noises[1:]]
            return sample_student(
                self._checked(network), noises[0][chosen], times, fresh or None, text=text, time_scale=self.time_scale
            )

        return self._in_batches(draw, labels)

    def teacher(self, network: Network, labels: Tensor, steps: int, guidance: float, seed: int) -> Drawn:
        """Samples of the teacher for labels [n], with the config's solver and shift."""
        settings = self.config.teacher.sampler
        noise = noise_sets(1, len(labels), self.latent_shape, seed)[0]

        def draw(chosen: slice, text: Tensor) -> Tensor:
            return sample_teacher(
                self._checked(network),
                noise[chosen],
                steps=steps,
                shift=settings.shift,
                guidance=guidance,
                text=text,
                negative=None if guidance == 1 else self.condition.empty(len(text)),
                time_scale=self.time_scale,
                kind=settings.kind,
            )

        return self._in_batches(draw, labels)

    def _checked(self, network: Network) -> Network:
        def call(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
            self.check_cancelled()
            velocity: Tensor = network(x, t, text)
            return velocity

        return call

    @torch.no_grad()
    def _in_batches(self, draw: Callable[[slice, Tensor], Tensor], labels: Tensor) -> Drawn:
        started = time.perf_counter()
        pieces = []
        for chosen in call_slices(len(labels), self.latent_shape):
            pieces.append(draw(chosen, self.condition(labels[chosen])).float())
        return Drawn(torch.cat(pieces), (time.perf_counter() - started) / len(labels))


def call_slices(samples: int, shape: Sequence[int]) -> list[slice]:
    """Which of `samples` latents [C,T,H,W] go through the network together: at most 256, fewer of large ones."""
    size = max(1, min(_CALL_SAMPLES, _CALL_ELEMENTS // math.prod(shape)))
    return [slice(start, start + size) for start in range(0, samples, size)]


def noise_sets(count: int, samples: int, shape: Sequence[int], seed: int) -> list[Tensor]:
    """`count` sets of noise [samples,C,T,H,W] float32; the first ones are the same for every count."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn((samples, *shape), generator=generator) for _ in range(count)]


def network_calls(sampler: str, steps: int | None, guidance: float | None) -> int:
    """Network calls of one sample: 0 for images, two a step for a teacher with guidance."""
    if steps is None:
        return 0
    return 2 * steps if sampler == "teacher" and guidance != 1 else steps
