"""Where a downloaded model keeps its text encoder, tokenizer and VAE, in the original and the diffusers layout.

Facts: wan2.1.md section 4.4, cosmos-predict2.md sections 4.5 and 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from rcm_sidecar.errors import WeightsError

FamilyName: TypeAlias = Literal["wan2.1", "cosmos-predict2"]
Part: TypeAlias = Literal["text encoder", "tokenizer", "VAE"]

# Places of a part, the original layout first. A folder counts when it holds what its loader begins with.
_PLACES: Mapping[FamilyName, Mapping[Part, tuple[str, ...]]] = {
    "wan2.1": {
        "text encoder": ("models_t5_umt5-xxl-enc-bf16.pth", "text_encoder/config.json"),
        "tokenizer": ("google/umt5-xxl/tokenizer.json", "tokenizer/tokenizer.json"),
        "VAE": ("Wan2.1_VAE.pth", "vae/config.json"),
    },
    "cosmos-predict2": {
        "text encoder": ("text_encoder/config.json",),
        "tokenizer": ("tokenizer/tokenizer.json",),
        "VAE": ("tokenizer/tokenizer.pth", "vae/config.json"),
    },
}
_PUBLISHED: Mapping[FamilyName, str] = {
    "wan2.1": "hf:Wan-AI/Wan2.1-T2V-1.3B",
    "cosmos-predict2": "hf:nvidia/Cosmos-Predict2-2B-Text2Image",
}


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """The parts beside a network.

    Attributes:
        family: Whose parts they are.
        text_encoder: A .pth file in the original layout, or a folder with config.json.
        tokenizer: tokenizer.json.
        vae: A .pth file in the original layout, or a folder with config.json.
    """

    family: FamilyName
    text_encoder: Path
    tokenizer: Path
    vae: Path


def open_model_folder(path: Path, family: FamilyName) -> ModelFolder:
    """Find all parts; nothing is loaded.

    Args:
        path: The folder as downloaded, or the network in it (`transformer/`, a weights file).
        family: Of the network.

    Raises:
        WeightsError: E_WEIGHTS_NOT_FOUND, which names what is missing and how to get it.
    """
    folder = model_root(path)
    found = {part: _find(folder, places) for part, places in _PLACES[family].items()}
    missing = [f"{part} ({' or '.join(_PLACES[family][part])})" for part, place in found.items() if place is None]
    if missing:
        message = f"{folder} lacks the {_listed(missing)}."
        fetch = f"rcm-bridge weights fetch {_PUBLISHED[family]} --with-encoders"
        hint = f"Name the folder that has all of them with --encoders, or fetch one: {fetch}"
        raise WeightsError("E_WEIGHTS_NOT_FOUND", message, hint)
    encoder, tokenizer, vae = (found[part] for part in ("text encoder", "tokenizer", "VAE"))
    assert encoder is not None and tokenizer is not None and vae is not None  # none is missing
    return ModelFolder(family, encoder, tokenizer, vae)


def model_root(path: Path) -> Path:
    """The folder of the whole model, of a path that names it or the network in it."""
    folder = path if path.is_dir() else path.parent
    return folder.parent if folder.name == "transformer" else folder


def _find(folder: Path, places: tuple[str, ...]) -> Path | None:
    for place in places:
        path = folder / place
        if path.is_file():
            return path.parent if path.name == "config.json" else path
    return None


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
