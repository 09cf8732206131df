"""Teacher samples kept between runs, by content hash: the same teacher is sampled once."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from rcm_sidecar.errors import HostError
from rcm_sidecar.evaluation.sampling import Drawn
from rcm_sidecar.files import write_tensors

_PIECE_BYTES = 1 << 24


def cache_key(teacher_key: str, settings: Mapping[str, Any]) -> str:
    """sha256 of everything the samples depend on.

    Args:
        teacher_key: sha256 of the bytes of the teacher and its conditioner.
        settings: Sampler, guidance, negative condition, seed, labels and their number: plain JSON values.
    """
    content = {"schema": 1, "teacher": teacher_key, "torch": torch.__version__, "settings": dict(settings)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def teacher_key(files: Mapping[str, Path]) -> str:
    """sha256 over the contents of named files, for `cache_key`: independent of where they lie. Reads them in pieces."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{files[name].stat().st_size}\0".encode())
        with files[name].open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
    return digest.hexdigest()


def cached(folder: Path | None, key: str, shape: tuple[int, ...], draw: Callable[[], Drawn]) -> Drawn:
    """The samples under `key`, drawn and stored if they are not there or not readable as samples of `shape`.

    Without a folder, or where it cannot be written, everything still works, just slower.
    """
    if folder is None:
        return draw()
    path = folder / "teacher-samples" / f"{key}.safetensors"
    stored = _read(path, shape)
    if stored is not None:
        return stored
    drawn = draw()
    _write(path, drawn)
    return drawn


def _read(path: Path, shape: tuple[int, ...]) -> Drawn | None:
    try:
        with safe_open(str(path), framework="pt") as file:
            facts = file.metadata() or {}
            latents = file.get_tensor("latents")
            seconds = float(facts["seconds"])
            if hashlib.sha256(latents.numpy().tobytes()).hexdigest() != facts["sha256"]:
                return None
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    if tuple(latents.shape) != shape or latents.dtype != torch.float32:
        return None
    return Drawn(latents, seconds)


def _write(path: Path, drawn: Drawn) -> None:
    """Keep the samples; what cannot be kept (a full disk) is drawn again next time."""
    digest = hashlib.sha256(drawn.latents.contiguous().numpy().tobytes()).hexdigest()
    with contextlib.suppress(HostError):
        write_tensors(path, {"latents": drawn.latents}, {"seconds": repr(drawn.seconds), "sha256": digest})
