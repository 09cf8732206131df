"""Strict loading: the file holds every tensor of the network, nothing else, in the right shapes, or nothing changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from torch import Tensor, nn

from rcm_sidecar.checkpoints.layouts import Layout, plain_name
from rcm_sidecar.checkpoints.weights_file import WeightsFile, check_fit, open_network
from rcm_sidecar.distributed.tensors import fill
from rcm_sidecar.networks import Network
from rcm_sidecar.safetensors_file import LazyTensor


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """What `load_network` found.

    Attributes:
        layout: Of the file.
        prefix: Removed from its keys, "" for none.
        tensors: How many were loaded.
    """

    layout: Layout
    prefix: str
    tensors: int


def load_network(net: Network, path: str | PathLike[str]) -> LoadedWeights:
    """Fill the parameters of `net` from a file or folder of any supported layout.

    Supported: a .safetensors file, a sharded index, a folder of the original or diffusers layout (also the pipeline
    folder above `transformer/`), .pth and .pt (weights only, memory-mapped), the public rCM files (`net.` and
    `net_ema.` prefixes, patch embedding as [D, 64]) and ComfyUI's prefix. Tensors are read one after the other into the
    dtype and device of the parameters; of a sharded parameter each process reads its own part only. Parameters on the
    meta device are replaced by CPU ones.

    Args:
        net: A network from `networks.build`; if it is sharded, with memory.
        path: Where the weights are.

    Returns:
        What was found.

    Raises:
        WeightsError: E_WEIGHTS_NOT_FOUND, E_WEIGHTS_EMPTY, E_WEIGHTS_UNREADABLE, E_WEIGHTS_LAYOUT, or
            E_WEIGHTS_MISMATCH, which names the first five keys that do not fit. `net` is unchanged then.
    """
    return fill_network(net, open_for(net, Path(path)))


def open_for(net: Network, path: Path) -> WeightsFile:
    """Open weights and check from their headers that they fit `net`, which may be on the meta device.

    Raises:
        WeightsError: As `load_network`.
    """
    weights = open_network(path)
    check_fit(net, weights)
    return weights


def fill_network(net: Network, weights: WeightsFile) -> LoadedWeights:
    """Read what `open_for` has found to fit; see `load_network`."""
    for name, parameter in list(net.named_parameters()):
        if plain_name(name) in weights.tensors:  # adapters stay as they are
            _fill(net, name, parameter, weights.tensors)
    return LoadedWeights(weights.layout, weights.prefix, len(weights.tensors))


def _fill(net: Network, name: str, parameter: nn.Parameter, found: Mapping[str, LazyTensor]) -> None:
    value = found[plain_name(name)].load().reshape(parameter.shape)
    if not parameter.is_meta:
        fill(parameter, value)
        return
    owner, _, leaf = name.rpartition(".")
    # A copy even where the dtype fits: the loaded tensor may be a view of the mapped file.
    data: Tensor = value.to(parameter.dtype, copy=True)
    setattr(net.get_submodule(owner), leaf, nn.Parameter(data, requires_grad=parameter.requires_grad))
