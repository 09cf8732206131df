"""Small data sets in the public layout, written by webdataset itself: latents and text embeddings of random numbers."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import webdataset

LATENT = (16, 2, 4, 6)
TEXT = (8, 16)


def saved(value: Any) -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def latent_of(number: int, shape: tuple[int, ...] = LATENT) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(number)).bfloat16()


def text_of(number: int, shape: tuple[int, int] = TEXT) -> torch.Tensor:
    """Rows of a text of number % L + 1 tokens, then zeros, as the public builder stores them."""
    text = torch.randn(shape, generator=torch.Generator().manual_seed(1000 + number))
    text[number % shape[0] + 1 :] = 0
    return text.bfloat16()


def sample_of(number: int, latent: tuple[int, ...] = LATENT, text: tuple[int, int] = TEXT) -> dict[str, Any]:
    return {
        "__key__": f"{number:09d}",
        "latent.pt": saved(latent_of(number, latent)),
        "embed.pt": saved(text_of(number, text)),
        "prompt.txt": f"prompt {number}".encode(),
    }


def write_shard(path: Path, samples: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for sample in samples:
            writer.write(sample)
    return path


def write_shards(
    folder: Path,
    count: int = 10,
    per_shard: int = 4,
    latent: tuple[int, ...] = LATENT,
    text: tuple[int, int] = TEXT,
    changes: Mapping[int, Mapping[str, Any]] | None = None,
) -> Path:
    """`count` samples and the negative embedding; `changes` replaces or (None) removes members of samples."""
    samples = []
    for number in range(count):
        members = {**sample_of(number, latent, text), **(changes or {}).get(number, {})}
        samples.append({name: value for name, value in members.items() if value is not None})
    for first in range(0, count, per_shard):
        write_shard(folder / f"shard_{first // per_shard:06d}.tar", samples[first : first + per_shard])
    (folder / "negative.embed.pt").write_bytes(saved(text_of(999, text)))
    return folder
