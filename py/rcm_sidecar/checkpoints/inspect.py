"""What weights are, from their headers alone: no tensor data is read, so it takes a moment at any size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from rcm_sidecar.checkpoints.guess import Guess, guess_network
from rcm_sidecar.checkpoints.layouts import Family, Layout
from rcm_sidecar.checkpoints.mismatch import Mismatch, other_kind
from rcm_sidecar.checkpoints.reading import weights_files
from rcm_sidecar.checkpoints.weights_file import (
    WeightsFile,
    cause_of,
    companion_config,
    differences,
    open_network,
)
from rcm_sidecar.networks import build

_UNKNOWN = "these are weights of another network, or carry a prefix that is not known"


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why weights do not fit a network.

    Attributes:
        mismatch: The keys.
        cause: The most probable reason, one sentence.
    """

    mismatch: Mismatch
    cause: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """What the headers say.

    Attributes:
        path: What was inspected.
        files: That hold the tensors.
        layout: Of the names; None when they belong to no network of ours.
        prefix: Of the keys, "" for none.
        family: None when the names belong to no network of ours.
        network: The one compared with: the one asked for, else the nearest; None for another kind of file.
        dtypes: How many tensors are stored in each, by torch's name.
        tensors: Of the network, without what else the file holds.
        parameters: Numbers in them.
        bytes: Size of all files.
        misfit: None when the weights are exactly those of `network`.
    """

    path: Path
    files: tuple[Path, ...]
    layout: Layout | None
    prefix: str
    family: Family | None
    network: Guess | None
    dtypes: Mapping[str, int]
    tensors: int
    parameters: int
    bytes: int
    misfit: Misfit | None


def inspect_weights(
    path: str | PathLike[str], model: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Inspection:
    """Read the headers of weights and compare them with a network.

    Args:
        path: A file, folder or sharded index of any layout `load_network` reads.
        model: A name of `networks.names()`; None guesses the network from the shapes.
        overrides: Of `model`, as arguments of `networks.build`.

    Raises:
        WeightsError: E_WEIGHTS_NOT_FOUND, E_WEIGHTS_EMPTY, E_WEIGHTS_UNREADABLE or E_WEIGHTS_LAYOUT.
        ConfigError: E_NETWORK_*, for a model that does not exist.
    """
    return inspect_open(open_network(Path(path)), model, overrides)


def inspect_open(weights: WeightsFile, model: str | None, overrides: Mapping[str, Any] | None) -> Inspection:
    """`inspect_weights` of weights that are open."""
    network = Guess(model, overrides or {}) if model else guess_network(weights, companion_config(weights.path))
    files = tuple(weights_files(weights.path))
    return Inspection(
        path=weights.path,
        files=files,
        layout=weights.layout if weights.family is not None else None,
        prefix=weights.prefix,
        family=weights.family,
        network=network,
        dtypes=Counter(str(tensor.dtype).removeprefix("torch.") for tensor in weights.tensors.values()),
        tensors=len(weights.tensors),
        parameters=sum(tensor.count for tensor in weights.tensors.values()),
        bytes=sum(file.stat().st_size for file in files),
        misfit=_misfit(weights, network),
    )


def _misfit(weights: WeightsFile, network: Guess | None) -> Misfit | None:
    if network is None:
        return Misfit(Mismatch(unexpected=list(weights.tensors)), other_kind(weights.tensors) or _UNKNOWN)
    net = build(network.model, device="meta", **network.overrides)
    mismatch = differences(net, weights)
    return None if mismatch.empty else Misfit(mismatch, cause_of(net, weights, mismatch))
