"""What a trainer, sampler or data set may know of a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """Facts of one built network, reachable as `net.spec`.

    Attributes:
        name: Registry name, for example "wan2.1-t2v-1.3b".
        family: "wan2.1" or "cosmos-predict2"; decides the weight layouts.
        time_scale: Network time = time_scale * rectified-flow time; 1000 for Wan, 1 for Cosmos.
        in_dim: Latent channels of the input.
        out_dim: Latent channels of the velocity.
        patch: Tokens cover (frames, rows, columns) of the latent; latent sizes must be multiples of it.
        text_len: Rows of the text states the released weights were trained with. The network takes any number.
        text_dim: Width of the text states.
        negative: What the negative branch of guidance gets: the embedding of the model's own negative prompt, or zeros.
        sampler_times: The student's TrigFlow times between atan(sigma_max) and 0.
        teacher_shift: Default shift of the teacher's time grid.
        vae_stride: Pixels per latent (frames, rows, columns); frames = 1 + stride * (latent frames - 1).
        pixel_sizes: (height, width) the released weights support; empty where anything that fits the patch is legal.
        max_latent: Largest legal latent (frames, rows, columns), or None for no limit.
    """

    name: str
    family: Literal["wan2.1", "cosmos-predict2"]
    time_scale: float
    in_dim: int
    out_dim: int
    patch: tuple[int, int, int]
    text_len: int
    text_dim: int
    negative: Literal["prompt", "zeros"]
    sampler_times: tuple[float, ...]
    teacher_shift: float
    vae_stride: tuple[int, int, int] = (4, 8, 8)
    pixel_sizes: tuple[tuple[int, int], ...] = ()
    max_latent: tuple[int, int, int] | None = None
