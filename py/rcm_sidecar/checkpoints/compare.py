"""Whether two sets of weights are the same network: every tensor, and a forward pass of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcm_sidecar.checkpoints.guess import Guess
from rcm_sidecar.checkpoints.inspect import Inspection, inspect_weights
from rcm_sidecar.checkpoints.load import load_network
from rcm_sidecar.checkpoints.weights_file import open_network
from rcm_sidecar.errors import WeightsError
from rcm_sidecar.networks import build
from rcm_sidecar.safetensors_file import LazyTensor

_LARGEST_FORWARD = 3_000_000_000  # parameters; beyond that a pass on a CPU is a matter of many minutes
_FLOAT_BYTES = 4
_LATENT = 8
_TEXT_ROWS = 8
_DAMAGED = "the disk may be failing: convert again, to another place"


@dataclass(frozen=True, slots=True)
class Forward:
    """A forward pass of both with the same inputs, in float32.

    Attributes:
        difference: Largest difference of two velocities over the largest velocity; None when none was run.
        reason: Why none was run.
    """

    difference: float | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Compared:
    """How many tensors were read back equal bit for bit, and the forward pass."""

    tensors: int
    forward: Forward


def compare_tensors(wanted: Mapping[str, LazyTensor], path: Path, compared: Callable[[int], None]) -> None:
    """Read weights back and compare them bit for bit with what was to be written.

    Args:
        wanted: By official name, in the dtype that was written.
        path: What was written.
        compared: Called with its size after each tensor.

    Raises:
        WeightsError: E_WEIGHTS_COMPARE.
    """
    stored = open_network(path).tensors
    if stored.keys() != wanted.keys():
        names = ", ".join(sorted(stored.keys() ^ wanted.keys())[:5])
        raise WeightsError("E_WEIGHTS_COMPARE", f"what is read back is not what was written: {names}", _DAMAGED)
    for name, tensor in wanted.items():
        if not same_bits(tensor.load(), stored[name].load()):
            raise WeightsError("E_WEIGHTS_COMPARE", f"{name}, read back, is not what was written", _DAMAGED)
        compared(tensor.nbytes)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in dtype and in every bit, NaN included; shapes may differ."""
    if a.dtype != b.dtype or a.numel() != b.numel():
        return False
    return torch.equal(*(value.contiguous().reshape(-1).view(torch.uint8) for value in (a, b)))


def compare_forward(source: Inspection, converted: Path, *, cast: bool) -> Forward:
    """One forward pass of both, where the network is small enough.

    Args:
        source: What the source is.
        converted: What was written.
        cast: Whether the dtype was changed; without that the velocities have to be equal.

    Raises:
        WeightsError: E_WEIGHTS_COMPARE.
    """
    assert source.network is not None
    if (reason := _why_not(source.parameters)) is not None:
        return Forward(None, reason)
    first = _velocity(source.network, source.path)
    second = _velocity(_network_of(converted, source.network), converted)
    largest = first.abs().max().item()
    difference = (first - second).abs().max().item() / largest if largest else (second.abs().max().item())
    if not cast and difference != 0:
        message = f"the same input gives another velocity with the result (differs by {difference:.2g})"
        raise WeightsError("E_WEIGHTS_COMPARE", message, "this is a bug in the conversion: please report it")
    return Forward(difference)


def _network_of(converted: Path, source: Guess) -> Guess:
    """What its config.json says of the result; files without one say nothing of heads and norms."""
    found = inspect_weights(converted).network if (converted / "config.json").is_file() else None
    return found or source


def _why_not(parameters: int) -> str | None:
    if parameters > _LARGEST_FORWARD:
        return f"{parameters / 1e9:.1f} billion parameters are too many for a forward pass here"
    need, free = parameters * _FLOAT_BYTES * 1.2, _available_bytes()
    if free is not None and free < need:
        return f"a forward pass takes {need / 1e9:.1f} GB of memory; {free / 1e9:.1f} GB are free"
    return None


def _available_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


@torch.no_grad()
def _velocity(network: Guess, path: Path) -> Tensor:
    """A velocity of the weights in float32, at half time, for fixed noise and text."""
    net: Any = build(network.model, device="meta", dtype=torch.float32, **network.overrides)
    load_network(net, path)
    spec, generator = net.spec, torch.Generator().manual_seed(0)
    sides = [max(size, _LATENT // size * size) for size in spec.patch[1:]]
    x = torch.randn(1, spec.in_dim, spec.patch[0], *sides, generator=generator)
    text = torch.randn(1, _TEXT_ROWS, spec.text_dim, generator=generator)
    velocity: Tensor = net(x, torch.full((1,), 0.5 * spec.time_scale), text)
    return velocity
