"""Which files of a repository are the network's, by name."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

from rcm_sidecar.checkpoints.companions import COMPANIONS
from rcm_sidecar.errors import WeightsError

HubLayout: TypeAlias = Literal["official", "diffusers"]

_WEIGHTS = (".safetensors", ".pth", ".pt")
# What the network's file is called in the original layout, the best first; shards come with their index.
_OFFICIAL = ("diffusion_pytorch_model*.safetensors*", "model*.safetensors*", "model.pt", "model.pth")
# Beside the network: its sizes, what our exports add, the terms of use.
_BESIDE = ("config.json", *COMPANIONS, "LICENSE*")
_OTHER_NETWORKS = ("wan2.1_vae*", "models_t5*", "models_clip*", "conditioner.*")
_DIFFUSERS = ("transformer/*.safetensors", "transformer/*.safetensors.index.json", "transformer/config.json")
# The VAE, the text encoder and their tokenizers, in both layouts.
_ENCODERS = ("Wan2.1_VAE.pth", "models_t5*", "google/*", "vae/*", "text_encoder/*", "tokenizer/*", "scheduler/*")


def select(
    names: Sequence[str], layout: HubLayout | None, files: Sequence[str] = (), *, encoders: bool = False
) -> list[str]:
    """The files to fetch, sorted.

    Args:
        names: All files of the repository.
        layout: Which one, where a repository holds both; None prefers the original.
        files: Exactly these weight files, and what belongs beside them.
        encoders: The VAE and the text encoder, too.

    Raises:
        WeightsError: E_HUB_NOT_FOUND when there are none, or several to choose from.
    """
    if files:
        missing = [name for name in files if name not in names]
        if missing:
            raise _not_found(f"there is no file {missing[0]} in the repository", names)
        chosen = list(files)
    else:
        chosen = _network(names, layout)
    beside = _BESIDE if not chosen[0].startswith("transformer/") else (*_BESIDE[1:], "model_index.json")
    others = [name for name in names if encoders and any(fnmatchcase(name, pattern) for pattern in _ENCODERS)]
    return sorted({*chosen, *others, *(name for name in names if _fits(name, beside))})


def _network(names: Sequence[str], layout: HubLayout | None) -> list[str]:
    official = [] if layout == "diffusers" else _official(names)
    diffusers = [] if layout == "official" else [name for name in names if _fits(name, _DIFFUSERS)]
    found = official or (diffusers if any(name.endswith(_WEIGHTS) for name in diffusers) else [])
    if not found:
        what = "weights" if layout is None else f"weights in the {layout} layout"
        raise _not_found(f"no {what} in the repository", names)
    return found


def _official(names: Sequence[str]) -> list[str]:
    root = [name for name in names if "/" not in name and not _fits(name.lower(), _OTHER_NETWORKS)]
    for pattern in _OFFICIAL:
        found = [name for name in root if fnmatchcase(name, pattern)]
        if any(name.endswith(_WEIGHTS) for name in found):
            return found
    others = [name for name in root if name.endswith(_WEIGHTS)]
    if len(others) > 1:
        raise _not_found("the repository holds several weight files: name one with --file", names)
    return others


def _not_found(what: str, names: Sequence[str]) -> WeightsError:
    weights = [name for name in names if name.endswith(_WEIGHTS)]
    listed = ", ".join(weights[:8]) + (", ..." if len(weights) > 8 else "")
    return WeightsError("E_HUB_NOT_FOUND", f"{what}.", f"It holds {listed}." if weights else "Check the name.")


def _fits(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern fits; `*` stays in one folder."""
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)
