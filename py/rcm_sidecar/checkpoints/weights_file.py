"""A network's weights as they lie on disk, by official name, from the headers alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rcm_sidecar.checkpoints.layouts import (
    Family,
    Layout,
    detect_layout,
    family_of,
    official_name,
    official_names,
    strip_prefixes,
)
from rcm_sidecar.checkpoints.mismatch import Mismatch, likely_cause
from rcm_sidecar.checkpoints.reading import open_weights
from rcm_sidecar.errors import WeightsError
from rcm_sidecar.networks import Network
from rcm_sidecar.safetensors_file import LazyTensor


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """An opened file, folder or sharded index; tensor data is read when a tensor is loaded.

    Attributes:
        path: What was opened.
        layout: Of its names.
        prefix: Removed from its keys, "" for none.
        family: Of the network, None when the names belong to none of ours.
        tensors: By official name; what is no weight of the network is left out.
    """

    path: Path
    layout: Layout
    prefix: str
    family: Family | None
    tensors: Mapping[str, LazyTensor]


def open_network(path: Path) -> WeightsFile:
    """Open weights of any supported layout.

    Raises:
        WeightsError: E_WEIGHTS_NOT_FOUND, E_WEIGHTS_EMPTY, E_WEIGHTS_UNREADABLE or E_WEIGHTS_LAYOUT.
    """
    stored = open_weights(path)
    names, prefix = strip_prefixes(stored)
    layout, family = detect_layout(names.values(), prefix), family_of(names.values())
    found = {name: stored[key] for key, name in names.items()}
    if layout == "diffusers" and family is not None:
        found = {official_name(name, family): tensor for name, tensor in found.items()}
    return WeightsFile(path, layout, prefix, family, found)


def differences(net: Network, weights: WeightsFile) -> Mismatch:
    """What in the file does not fit `net`, from names, shapes and dtypes alone; `net` may be on the meta device."""
    found = weights.tensors
    wanted = {name: tuple(parameter.shape) for name, parameter in official_names(net).items()}
    both = [name for name in wanted if name in found]
    return Mismatch(
        missing=[name for name in wanted if name not in found],
        unexpected=[name for name in found if name not in wanted],
        misshaped=[
            f"{name} is {list(found[name].shape)} and should be {list(wanted[name])}"
            for name in both
            if not _fits(name, found[name].shape, wanted[name])
        ],
        integers=[f"{name} holds integers, not weights" for name in both if not found[name].dtype.is_floating_point],
    )


def cause_of(net: Network, weights: WeightsFile, mismatch: Mismatch) -> str:
    """The most probable reason for `mismatch`, one sentence."""
    return likely_cause(net, mismatch, {name: tensor.shape for name, tensor in weights.tensors.items()})


def check_fit(net: Network, weights: WeightsFile) -> None:
    """Refuse a file that does not hold exactly the tensors of `net`.

    Raises:
        WeightsError: E_WEIGHTS_MISMATCH, which names the first five keys that do not fit and the likely cause.
    """
    mismatch = differences(net, weights)
    if not mismatch.empty:
        message = f"{weights.path} does not fit {net.spec.name}: {mismatch.summary()}"
        raise WeightsError("E_WEIGHTS_MISMATCH", message, cause_of(net, weights, mismatch))


def companion_config(path: Path) -> Mapping[str, Any]:
    """The config.json beside the weights of `path`; empty when there is none that can be read."""
    folder = path if path.is_dir() else path.parent
    if path.is_dir() and (path / "transformer").is_dir():
        folder = path / "transformer"
    try:
        content = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _fits(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Equal, or the patch embedding as a matrix instead of a convolution (the public rCM files)."""
    if shape == wanted:
        return True
    flat = (wanted[0], torch.Size(wanted[1:]).numel())
    return name == "patch_embedding.weight" and shape == flat
