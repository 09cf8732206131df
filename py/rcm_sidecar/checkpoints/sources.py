"""Networks a user names: a locator to a path, a folder of weights with its sampler.json and label table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rcm_sidecar.checkpoints.load import load_network
from rcm_sidecar.checkpoints.reading import weights_files
from rcm_sidecar.checkpoints.sampler_file import StudentFolder, TeacherFolder, bad_sampler_file, read_sampler_file
from rcm_sidecar.config import Model
from rcm_sidecar.data import LabelConditioner
from rcm_sidecar.data.label_conditioner import CONDITIONER_FILE
from rcm_sidecar.errors import ConfigError, WeightsError
from rcm_sidecar.evaluation.cache import teacher_key
from rcm_sidecar.hub import cached_snapshot, is_hub_locator
from rcm_sidecar.networks import Network, build

_ASSETS = Path(__file__).resolve().parent.parent / "assets"
_BUILTIN = re.compile(r"builtin:([a-z0-9]+)-([a-z0-9-]+)")


@dataclass(frozen=True)
class Source:
    """A network ready to sample from, as an export or teacher folder describes it.

    Attributes:
        network: Frozen.
        conditioner: Its label table, or None.
        settings: Its sampler.json.
    """

    network: Network
    conditioner: LabelConditioner | None
    settings: StudentFolder | TeacherFolder


def locate(locator: str) -> Path:
    """The path of a weights locator: a path, `builtin:NAME` (shipped) or `hf:OWNER/NAME@REVISION` (fetched).

    Raises:
        WeightsError: E_WEIGHTS_NOT_FOUND.
    """
    if is_hub_locator(locator):
        return cached_snapshot(locator)
    match = _BUILTIN.fullmatch(locator)
    path = _ASSETS / match[1] / match[2] if match else Path(locator)
    if not path.exists():
        hint = "Shipped weights: builtin:digits-teacher." if match else "Check the path."
        raise WeightsError("E_WEIGHTS_NOT_FOUND", f"There are no weights at {locator}.", hint)
    return path


def folder_of(path: Path) -> Path:
    """The folder that holds the weights' companions."""
    return path if path.is_dir() else path.parent


def build_frozen(model: Model) -> Network:
    """The config's network on the meta device, without gradients."""
    return build(model.name, device="meta", **model.overrides.arguments()).requires_grad_(False)


def content_key(path: Path) -> str:
    """sha256 over the files a network is loaded from and its label table, for the cache of its samples."""
    files = [*weights_files(path), folder_of(path) / CONDITIONER_FILE]
    return teacher_key({file.name: file for file in files if file.is_file()})


def load_source(path: Path) -> Source:
    """Everything that sampling needs, from sampler.json and the files it names.

    Raises:
        WeightsError: E_WEIGHTS_NOT_FOUND, E_WEIGHTS_SAMPLER (no or unreadable sampler.json), or what loading finds.
    """
    if not path.exists():
        raise WeightsError("E_WEIGHTS_NOT_FOUND", f"There are no weights at {path}.", "Check the path.")
    folder = folder_of(path)
    settings = read_sampler_file(folder)
    try:
        network = build(settings.network.name, device="meta", **settings.network.overrides.arguments())
    except ConfigError as error:
        raise bad_sampler_file(folder, error.message) from error
    spec, (channels, *sizes) = network.spec, settings.latent.shape
    if channels != spec.in_dim or any(size % part for size, part in zip(sizes, spec.patch, strict=True)):
        raise bad_sampler_file(folder, f"its network takes no latents of {list(settings.latent.shape)}")
    load_network(network, path if path.is_file() else folder / settings.weights)
    conditioner = None if settings.conditioner is None else load_table(folder / settings.conditioner, network)
    return Source(network.requires_grad_(False), conditioner, settings)


def load_table(path: Path, network: Network) -> LabelConditioner:
    """The label table of a file or folder, for `network`.

    Raises:
        WeightsError: E_WEIGHTS_SHAPE when its rows are not as wide as the network's text, or what reading finds.
    """
    table = LabelConditioner.load(path)
    width = table.table.shape[2]
    if width != network.spec.text_dim:
        message = f"The label table at {path} has rows of {width} numbers; the network takes {network.spec.text_dim}."
        raise WeightsError("E_WEIGHTS_SHAPE", message, "Use the table the network was trained with.")
    return table
