"""Strict loading: the file holds every tensor of the network, nothing else, in the right shapes, or nothing changes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from rcm_sidecar.checkpoints.layouts import (
    Layout,
    detect_layout,
    diffusers_names,
    official_names,
    plain_name,
    strip_prefixes,
)
from rcm_sidecar.checkpoints.mismatch import Mismatch, likely_cause
from rcm_sidecar.checkpoints.reading import StoredTensor, open_weights
from rcm_sidecar.errors import WeightsError
from rcm_sidecar.networks import Network

_NAMED = 5


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
    dtype and device of the parameters; parameters on the meta device are replaced by CPU ones.

    Args:
        net: A network from `networks.build`.
        path: Where the weights are.

    Returns:
        What was found.

    Raises:
        WeightsError: E_WEIGHTS_MISSING, E_WEIGHTS_EMPTY, E_WEIGHTS_UNREADABLE, E_WEIGHTS_LAYOUT, or
            E_WEIGHTS_MISMATCH, which names the first five keys that do not fit. `net` is unchanged then.
    """
    with ExitStack() as stack:
        stored = open_weights(Path(path), stack)
        names, prefix = strip_prefixes(stored)
        layout = detect_layout(names.values(), prefix)
        found = {name: stored[key] for key, name in names.items()}
        if layout == "diffusers":
            ours = {theirs: name for name, theirs in diffusers_names(net).items()}
            found = {ours.get(name, name): tensor for name, tensor in found.items()}
        _check(net, found, Path(path))
        for name, parameter in list(net.named_parameters()):
            if plain_name(name) in found:  # adapters stay as they are
                _fill(net, name, parameter, found)
    return LoadedWeights(layout, prefix, len(found))


def _check(net: Network, found: Mapping[str, StoredTensor], path: Path) -> None:
    wanted = {name: tuple(parameter.shape) for name, parameter in official_names(net).items()}
    mismatch = Mismatch(
        missing=[name for name in wanted if name not in found],
        unexpected=[name for name in found if name not in wanted],
        misshaped=[
            f"{name} is {list(found[name].shape)} and should be {list(shape)}"
            for name, shape in wanted.items()
            if name in found and not _fits(name, found[name].shape, shape)
        ],
    )
    if mismatch.empty:
        integers = [name for name in wanted if not found[name].floating]
        if integers:
            raise WeightsError("E_WEIGHTS_MISMATCH", f"{path}: {integers[0]} holds integers, not weights")
        return
    shapes = {name: tensor.shape for name, tensor in found.items()}
    raise WeightsError(
        "E_WEIGHTS_MISMATCH",
        f"{path} does not fit {net.spec.name}: {mismatch.summary(_NAMED)}",
        likely_cause(net, mismatch, shapes),
    )


def _fits(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Equal, or the patch embedding as a matrix instead of a convolution (the public rCM files)."""
    if shape == wanted:
        return True
    flat = (wanted[0], torch.Size(wanted[1:]).numel())
    return name == "patch_embedding.weight" and shape == flat


def _fill(net: Network, name: str, parameter: nn.Parameter, found: Mapping[str, StoredTensor]) -> None:
    value = found[plain_name(name)].load().reshape(parameter.shape)
    if not parameter.is_meta:
        with torch.no_grad():
            parameter.copy_(value)
        return
    owner, _, leaf = name.rpartition(".")
    # A copy even where the dtype fits: the loaded tensor may be a view of the mapped file.
    data: Tensor = value.to(parameter.dtype, copy=True)
    setattr(net.get_submodule(owner), leaf, nn.Parameter(data, requires_grad=parameter.requires_grad))
