"""Random training times (config `timeDistribution`).

Every kind is written as a noise-to-data ratio a : b, so that t = a / (a + b) and u = atan2(a, b) are exact at both
ends. All randomness comes from the generator; a draw takes the same random numbers whatever they turn out to be.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

TimeDistribution = Literal["logNormalSigma", "uniformShifted", "uniformLogisticNormal"]


def draw(
    kind: TimeDistribution,
    count: int,
    *,
    generator: torch.Generator,
    mean: float | None = None,
    std: float | None = None,
    shift: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """TrigFlow times u [count] in [0, pi/2], on the generator's device.

    Args:
        kind: logNormalSigma: log sigma ~ N(mean, std); uniformShifted: rectified-flow time uniform, then shifted;
            uniformLogisticNormal: rectified-flow time half uniform, half sigmoid of N(0, std), by a coin for each draw.
        count: Number of times.
        generator: Source of randomness.
        mean: For logNormalSigma.
        std: For logNormalSigma and uniformLogisticNormal.
        shift: For uniformShifted.
        dtype: Of the result; drawn in float64.

    Raises:
        ValueError: unknown kind, or parameters that are not exactly the kind's.
    """
    noise, data = _ratio(kind, count, generator, _parameters(kind, mean=mean, std=std, shift=shift))
    return torch.atan2(noise, data).to(dtype)


def draw_rf(
    kind: TimeDistribution,
    count: int,
    *,
    generator: torch.Generator,
    mean: float | None = None,
    std: float | None = None,
    shift: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Rectified-flow times t [count] in [0, 1] of the same distribution; arguments as `draw`."""
    noise, data = _ratio(kind, count, generator, _parameters(kind, mean=mean, std=std, shift=shift))
    return (noise / (noise + data)).to(dtype)


_NEEDED: dict[str, tuple[str, ...]] = {
    "logNormalSigma": ("mean", "std"),
    "uniformShifted": ("shift",),
    "uniformLogisticNormal": ("std",),
}


def _parameters(kind: str, **given: float | None) -> dict[str, float]:
    if kind not in get_args(TimeDistribution):
        raise ValueError(f"unknown time distribution {kind!r}")
    present = {name: value for name, value in given.items() if value is not None}
    if set(present) != set(_NEEDED[kind]):
        raise ValueError(f"{kind} takes {', '.join(_NEEDED[kind])}; got {', '.join(present) or 'nothing'}")
    return present


def _ratio(kind: str, count: int, generator: torch.Generator, given: dict[str, float]) -> tuple[Tensor, Tensor]:
    """(a, b) with t = a / (a + b)."""

    def uniform() -> Tensor:
        return torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)

    def normal() -> Tensor:
        return torch.randn(count, generator=generator, device=generator.device, dtype=torch.float64)

    if kind == "logNormalSigma":
        sigma = torch.exp(given["mean"] + given["std"] * normal())
        return sigma, torch.ones_like(sigma)
    position = uniform()
    if kind == "uniformShifted":
        return given["shift"] * position, 1 - position
    odds = torch.exp(given["std"] * normal())
    coin = uniform() < 0.5
    return torch.where(coin, odds, position), torch.where(coin, 1.0, 1 - position)
