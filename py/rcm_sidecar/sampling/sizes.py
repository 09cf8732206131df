"""Sizes in pixels and the latents they become."""

from __future__ import annotations

from dataclasses import dataclass

from rcm_sidecar.errors import ConfigError
from rcm_sidecar.networks.spec import NetworkSpec


@dataclass(frozen=True, slots=True)
class PixelSize:
    """Of a video; a picture is one frame."""

    frames: int
    height: int
    width: int


def pixel_size(spec: NetworkSpec, latent: tuple[int, int, int, int]) -> PixelSize:
    """What latents [C,T,H,W] are decoded to."""
    _, frames, rows, columns = latent
    stride = spec.vae_stride
    return PixelSize(1 + stride[0] * (frames - 1), rows * stride[1], columns * stride[2])


def latent_shape(spec: NetworkSpec, size: PixelSize) -> tuple[int, int, int, int]:
    """Latents [C,T,H,W] of a size.

    Raises:
        ConfigError: E_USAGE, the network takes no latents of this size; names the nearest that it takes.
    """
    stride, patch, most = spec.vae_stride, spec.patch, spec.max_latent
    limits = (None, None, None) if most is None else most
    first, step = 1 + stride[0] * (patch[0] - 1), stride[0] * patch[0]
    last = None if limits[0] is None else 1 + stride[0] * (limits[0] - 1)
    _check("frames", size.frames, first, step, last)
    for name, value, axis in (("height", size.height, 1), ("width", size.width, 2)):
        side = stride[axis] * patch[axis]
        limit = limits[axis]
        _check(name, value, side, side, None if limit is None else limit * stride[axis])
    return spec.in_dim, 1 + (size.frames - 1) // stride[0], size.height // stride[1], size.width // stride[2]


def _check(name: str, value: int, first: int, step: int, last: int | None) -> None:
    if last is not None and value > last:
        raise ConfigError("E_USAGE", f"--{name} {value} is more than this network takes.", f"Use at most {last}.")
    if value >= first and (value - first) % step == 0:
        return
    below = first + (max(value, first) - first) // step * step
    offered = [below] if below > value else [below, below + step]
    rule = f"a multiple of {step}" if first == step else f"{step}n+{first}"
    hint = f"Use {' or '.join(map(str, offered))}."
    raise ConfigError("E_USAGE", f"--{name} {value} is not {rule}, as this network needs it.", hint)
