"""Networks a user names: a locator to a path, a folder of weights with its sampler.json and label table."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from rcm_sidecar.checkpoints.load import load_network
from rcm_sidecar.config import Model, NetworkOverrides
from rcm_sidecar.data import LabelConditioner
from rcm_sidecar.data.label_conditioner import CONDITIONER_FILE
from rcm_sidecar.errors import WeightsError
from rcm_sidecar.evaluation.cache import teacher_key
from rcm_sidecar.networks import Network, build

SAMPLER_FILE = "sampler.json"
_ASSETS = Path(__file__).resolve().parent.parent / "assets"
_BUILTIN = re.compile(r"builtin:([a-z0-9]+)-([a-z0-9-]+)")


@dataclass(frozen=True)
class Source:
    """A network ready to sample from, as an export or teacher folder describes it.

    Attributes:
        network: Frozen.
        conditioner: Its label table, or None.
        document: The whole sampler.json.
    """

    network: Network
    conditioner: LabelConditioner | None
    document: dict[str, Any]


def locate(locator: str) -> Path:
    """The path of a weights locator: a path, or `builtin:NAME` for shipped ones.

    Raises:
        WeightsError: E_WEIGHTS_NOT_FOUND.
    """
    if locator.startswith("hf:"):
        raise WeightsError("E_WEIGHTS_NOT_FOUND", f"{locator} is not on this machine.", "Give the path of a copy.")
    match = _BUILTIN.fullmatch(locator)
    path = _ASSETS / match[1] / match[2] if match else Path(locator)
    if not path.exists():
        hint = "Shipped weights: builtin:digits-teacher." if match else "Check the path."
        raise WeightsError("E_WEIGHTS_NOT_FOUND", f"There are no weights at {locator}.", hint)
    return path


def folder_of(path: Path) -> Path:
    """The folder that holds the weights' companions."""
    return path if path.is_dir() else path.parent


def load_frozen(model: Model, path: Path) -> Network:
    """The config's network with the weights of `path`, strictly loaded, without gradients.

    Raises:
        WeightsError: the weights do not fit.
    """
    network = build(model.name, device="meta", **model.overrides.arguments())
    load_network(network, path)
    return network.requires_grad_(False)


def content_key(path: Path) -> str:
    """sha256 over the safetensors and .pth files of a source, for the cache of its samples."""
    folder = folder_of(path)
    files = [path, folder / CONDITIONER_FILE] if path.is_file() else sorted(folder.iterdir())
    weights = [file for file in files if file.suffix in (".safetensors", ".pth", ".pt") and file.is_file()]
    return teacher_key({file.name: file.read_bytes() for file in weights})


def load_source(path: Path) -> Source:
    """Everything that sampling needs, from sampler.json and the files it names.

    Raises:
        WeightsError: E_WEIGHTS_NOT_FOUND, E_WEIGHTS_SAMPLER (no or unreadable sampler.json), or what loading finds.
    """
    if not path.exists():
        raise WeightsError("E_WEIGHTS_NOT_FOUND", f"There are no weights at {path}.", "Check the path.")
    folder = folder_of(path)
    document = _read_sampler(folder)
    try:
        name = document["network"]["name"]
        overrides = msgspec.convert(document["network"]["overrides"], NetworkOverrides)
        weights = path if path.is_file() else folder / document["weights"]
        table = document["conditioner"]
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise _bad_sampler(folder, str(error)) from error
    if weights.parent != folder or (table is not None and Path(table).name != table):
        raise _bad_sampler(folder, "it names a file outside its folder")
    network = build(name, device="meta", **overrides.arguments())
    load_network(network, weights)
    conditioner = None if table is None else LabelConditioner.load(folder / table)
    return Source(network.requires_grad_(False), conditioner, document)


def copy_weights(target: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Copy named weights into a network's parameters; names must be the same."""
    parameters = dict(target.named_parameters())
    if parameters.keys() != weights.keys():
        raise ValueError("the weights are of another network")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def _read_sampler(folder: Path) -> dict[str, Any]:
    try:
        document = json.loads((folder / SAMPLER_FILE).read_text("utf-8"))
    except FileNotFoundError as error:
        hint = "Use an export folder of a run."
        raise WeightsError("E_WEIGHTS_SAMPLER", f"There is no {SAMPLER_FILE} in {folder}.", hint) from error
    except (OSError, ValueError) as error:
        raise _bad_sampler(folder, str(error)) from error
    if not isinstance(document, dict) or document.get("schema") != 1:
        raise _bad_sampler(folder, "its schema is not 1")
    return document


def _bad_sampler(folder: Path, why: str) -> WeightsError:
    hint = "Export the run again, or use another one."
    return WeightsError("E_WEIGHTS_SAMPLER", f"{folder / SAMPLER_FILE} cannot be used: {why}.", hint)
