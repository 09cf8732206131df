"""What lies beside the weights of a network and goes where they go: how to sample from them, and their label table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rcm_sidecar.checkpoints.reading import weights_files
from rcm_sidecar.checkpoints.sampler_file import SAMPLER_FILE, bad_sampler_file
from rcm_sidecar.data.label_conditioner import CONDITIONER_FILE
from rcm_sidecar.files import write_file, write_json

COMPANIONS = (SAMPLER_FILE, CONDITIONER_FILE)


def read_companions(path: Path) -> dict[str, bytes]:
    """The companions of weights that are there, by name.

    Args:
        path: Of the weights, a file or folder.

    Raises:
        WeightsError: E_WEIGHTS_SAMPLER.
    """
    folder = path if path.is_dir() else path.parent
    found = {name: (folder / name).read_bytes() for name in COMPANIONS if (folder / name).is_file()}
    if SAMPLER_FILE in found:
        _settings(found[SAMPLER_FILE], folder)
    return found


def write_companions(companions: dict[str, bytes], folder: Path) -> None:
    """Put them beside the weights in `folder`; sampler.json names those.

    Raises:
        HostError: E_DISK_FULL, E_RUN_DIR.
    """
    for name, content in companions.items():
        if name == SAMPLER_FILE:
            write_json(folder / name, _settings(content, folder) | {"weights": _weights_name(folder)})
        else:
            write_file(folder / name, content)


def _weights_name(folder: Path) -> str:
    """The file to load: of shards, their index."""
    index = next(folder.glob("*.safetensors.index.json"), None)
    return (index or weights_files(folder)[0]).name


def _settings(content: bytes, folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads(content)
    except ValueError as error:
        raise bad_sampler_file(folder, str(error)) from error
    if not isinstance(settings, dict):
        raise bad_sampler_file(folder, "it is no JSON object")
    return settings
