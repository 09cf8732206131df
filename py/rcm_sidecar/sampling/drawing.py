"""Latents of prompts: the sampler of a recipe on a loaded network, one sample at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rcm_sidecar.checkpoints.load import load_network
from rcm_sidecar.checkpoints.sampler_file import StudentPart, TeacherPart
from rcm_sidecar.diffusion.samplers import sample_student, sample_teacher, student_times
from rcm_sidecar.errors import ConfigError
from rcm_sidecar.evaluation.sampling import network_calls, noise_sets
from rcm_sidecar.networks import Network, build
from rcm_sidecar.sampling.recipe import Recipe
from rcm_sidecar.short_memory import again_if_short, load_or_stream, stream_blocks


@dataclass(frozen=True)
class Sampler:
    """The sampler of a recipe with a number of steps.

    Attributes:
        settings: Of a student or a teacher.
        steps: Network calls of a student, solver steps of a teacher.
        calls: Network calls of a sample.
        sigma_max: Noise that a teacher starts from; None as the official samplers do.
    """

    settings: StudentPart | TeacherPart
    steps: int
    calls: int
    sigma_max: float | None = None


def choose_sampler(settings: StudentPart | TeacherPart, steps: int | None) -> Sampler:
    """The sampler with `steps`; None takes 4 for a student, a teacher's own.

    Raises:
        ConfigError: E_USAGE, a student that cannot take so many.
    """
    if isinstance(settings, TeacherPart):
        chosen = settings.steps if steps is None else steps
        return Sampler(settings, chosen, network_calls("teacher", chosen, settings.guidance))
    chosen = len(settings.times) + 1 if steps is None else steps
    try:
        student_times(chosen, settings.sigma_max, settings.times)
    except ValueError as error:
        raise ConfigError("E_USAGE", f"This student cannot take {chosen} steps: {error}.", None) from error
    return Sampler(settings, chosen, chosen)


class Drawer:
    """A loaded network that draws latents.

    Where the weights do not fit a GPU they stay in main memory and visit it block by block, with the same result.

    Attributes:
        streamed: Whether memory was short.

    Args:
        recipe: What to load and how to sample it.
        device: Where it computes: in float32 on a CPU; on a GPU bfloat16 but for the time path and the head.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self._device = device
        self._time_scale = recipe.spec.time_scale
        self._network = _loaded(recipe, device)
        load_or_stream(self._network.to, lambda network: network.blocks, device)
        self.streamed = next(self._network.blocks.parameters()).device.type != device.type

    @torch.no_grad()
    def draw(
        self,
        sampler: Sampler,
        shape: tuple[int, int, int, int],
        seed: int,
        text: Tensor,
        negative: Tensor | None,
        called: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """One latent [1,C,T,H,W] float32 on the CPU, the same for the same seed on every device but for rounding.

        Args:
            sampler: From `choose_sampler`.
            shape: [C,T,H,W].
            seed: Of the noise.
            text: [L,D].
            negative: [L,D], for a teacher with guidance.
            called: Called before each network call; raises to stop.

        Raises:
            HostError: E_GPU, the memory does not suffice even block by block.
        """

        def attempt() -> Tensor:
            return self._draw(sampler, shape, seed, text, negative, called)

        return again_if_short(attempt, self._stream, "with weights in main memory", exhausted=self.streamed).cpu()

    def _stream(self) -> None:
        self.streamed = True
        stream_blocks(self._network, self._network.blocks, self._device)

    def _draw(
        self,
        sampler: Sampler,
        shape: tuple[int, int, int, int],
        seed: int,
        text: Tensor,
        negative: Tensor | None,
        called: Callable[[], None],
    ) -> Tensor:
        settings = sampler.settings

        def network(x: Tensor, t: Tensor, states: Tensor) -> Tensor:
            called()
            velocity: Tensor = self._network(x, t, states)
            return velocity

        count = 1 if isinstance(settings, TeacherPart) else sampler.steps
        noises = [noise.to(self._device) for noise in noise_sets(count, 1, shape, seed)]
        states = text[None].to(self._device, torch.float32)
        if isinstance(settings, StudentPart):
            times = student_times(sampler.steps, settings.sigma_max, settings.times)
            fresh = noises[1:] or None
            return sample_student(network, noises[0], times, fresh, text=states, time_scale=self._time_scale)
        return sample_teacher(
            network,
            noises[0],
            steps=sampler.steps,
            shift=settings.shift,
            guidance=settings.guidance,
            text=states,
            negative=None if negative is None else negative[None].to(self._device, torch.float32),
            time_scale=self._time_scale,
            kind=settings.kind,
            sigma_max=sampler.sigma_max,
        )


def _loaded(recipe: Recipe, device: torch.device) -> Network:
    """The frozen network on the CPU, in the dtypes it is computed in on `device`."""
    network = build(recipe.spec.name, device="meta", **recipe.overrides).requires_grad_(False)
    if device.type == "cuda":
        for name, parameter in network.named_parameters():
            if not name.startswith(network.wide_parts):
                parameter.data = parameter.data.bfloat16()
    load_network(network, recipe.weights)
    return network
