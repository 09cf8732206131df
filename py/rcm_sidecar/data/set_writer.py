"""Writes a set of samples in the public layout. A kill at any moment loses the sample in the making and nothing else.

A sample has a number, and with it its place: sample i lies in shard i // per_shard. Until all samples of a shard are
there, each is a file of its own below `.parts`; then the shard is written under a temporary name, renamed, and its
parts are removed. Several processes deal the shards out among themselves and never touch one another's files.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from rcm_sidecar.data.shard_index import LATENT, PROMPT, TEXT
from rcm_sidecar.data.stored_text import NEGATIVE_FILE
from rcm_sidecar.errors import ConfigError
from rcm_sidecar.files import sync, write_file, write_json, write_through

MANIFEST = "set.json"
"""What a set is made of; a folder with it may be gone on with."""
PARTS = ".parts"

_SCHEMA = 1
_MOST_PER_SHARD = 64
_SHARDS_PER_PROCESS = 8
"""At least so many, as far as there are samples: processes then end at about the same time."""


class SetManifest(msgspec.Struct, frozen=True, rename="camel"):
    """The content of `set.json`.

    Attributes:
        schema: Of this file.
        samples: Number of samples.
        per_shard: Samples of each shard but the last.
        content: All that decides what a sample is, by name; plain values.
    """

    schema: int
    samples: int
    per_shard: int
    content: dict[str, Any]


class _Part(msgspec.Struct, frozen=True, array_like=True):
    latent: bytes
    text: bytes
    prompt: bytes


class SetWriter:
    """The share of a process in a set.

    Args:
        folder: Of the set.
        manifest: Of the set.
        share: This process, from 0.
        shares: Number of processes.
    """

    def __init__(self, folder: Path, manifest: SetManifest, share: int, shares: int) -> None:
        self._folder, self._manifest = folder, manifest
        self._shards = range(share, -(-manifest.samples // manifest.per_shard), shares)

    @property
    def parts(self) -> Path:
        """Folder of what is not needed any more when the set is complete."""
        return self._folder / PARTS

    def missing(self) -> list[int]:
        """Numbers of this share's samples that are not there yet, in order. Finishes shards whose parts all are."""
        numbers: list[int] = []
        for shard in self._shards:
            if self._path(shard).is_file():
                self._remove_parts(shard)
                continue
            lacking = [number for number in self._numbers(shard) if not self._part(number).is_file()]
            if not lacking:
                self._pack(shard)
            numbers += lacking
        return numbers

    def add(self, number: int, latent: Tensor, text: Tensor, prompt: str) -> None:
        """Store a sample that was missing, in bf16.

        Args:
            number: Of the sample.
            latent: [C,T,H,W].
            text: [L,D], rows after the last token zero.
            prompt: For people.

        Raises:
            HostError: E_DISK_FULL or E_RUN_DIR.
        """
        part = _Part(saved(latent), saved(text), prompt.encode())
        write_file(self._part(number), msgspec.msgpack.encode(part))
        shard = number // self._manifest.per_shard
        if all(self._part(other).is_file() for other in self._numbers(shard)):
            self._pack(shard)

    def add_negative(self, text: Tensor) -> None:
        """Store the text [L,D] of the negative condition, in bf16; errors as `add`."""
        write_file(self._folder / NEGATIVE_FILE, saved(text))

    def _numbers(self, shard: int) -> range:
        first, manifest = shard * self._manifest.per_shard, self._manifest
        return range(first, min(first + manifest.per_shard, manifest.samples))

    def _path(self, shard: int) -> Path:
        return self._folder / f"shard_{shard:06d}.tar"

    def _part(self, number: int) -> Path:
        return self.parts / f"{number:09d}.part"

    def _pack(self, shard: int) -> None:
        path = self._path(shard)
        # Written beside the parts: whoever reads the folder sees no shard that is not whole.
        packed = self.parts / path.name
        write_through(packed, lambda temporary: _write_shard(temporary, self._members(shard)))
        os.replace(packed, path)
        sync(self._folder)
        self._remove_parts(shard)

    def _members(self, shard: int) -> Iterator[dict[str, Any]]:
        for number in self._numbers(shard):
            part = msgspec.msgpack.decode(self._part(number).read_bytes(), type=_Part)
            yield {"__key__": f"{number:09d}", LATENT: part.latent, TEXT: part.text, PROMPT: part.prompt}

    def _remove_parts(self, shard: int) -> None:
        for number in self._numbers(shard):
            self._part(number).unlink(missing_ok=True)


def open_set(
    folder: Path,
    samples: int,
    content: Mapping[str, Any],
    share: int = 0,
    shares: int = 1,
    per_shard: int | None = None,
) -> SetWriter:
    """Begin a set, or go on with it; the number of processes may differ from time to time.

    Args:
        folder: Of the set; made if it is missing.
        samples: Number of samples.
        content: All that decides what a sample is, plain values by name. What was begun is gone on with only if equal.
        share: This process, from 0.
        shares: Number of processes.
        per_shard: Samples of a shard; None: up to 64, fewer where processes share few. That of a set which was begun
            stays.

    Raises:
        ConfigError: E_USAGE, the folder holds another set.
        HostError: E_DISK_FULL or E_RUN_DIR.
    """
    # First this, then the manifest: another process may begin the same set meanwhile.
    foreign = [path.name for path in folder.glob("*") if path.suffix == ".tar" or path.name == NEGATIVE_FILE]
    known = _read_manifest(folder)
    if known is None:
        if foreign:
            message = f"{folder} holds {foreign[0]}, which is of no set that was begun here; nothing is overwritten."
            raise ConfigError("E_USAGE", message, "Choose another folder with --out.")
        fitting = samples if shares == 1 else samples // (shares * _SHARDS_PER_PROCESS)
        known = SetManifest(_SCHEMA, samples, per_shard or max(1, min(_MOST_PER_SHARD, fitting)), dict(content))
        write_json(folder / MANIFEST, msgspec.to_builtins(known))
    _refuse_other(folder, known, samples, content)
    return SetWriter(folder, known, share, shares)


def saved(values: Tensor) -> bytes:
    """What torch.save writes of the values in bf16: the same bytes for the same values."""
    file = io.BytesIO()
    torch.save(values.detach().cpu().bfloat16().clone(memory_format=torch.contiguous_format), file)
    return file.getvalue()


def _read_manifest(folder: Path) -> SetManifest | None:
    path = folder / MANIFEST
    try:
        return msgspec.json.decode(path.read_bytes(), type=SetManifest)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        message = f"{path} cannot be read: {error}."
        raise ConfigError("E_USAGE", message, "Choose another folder with --out.") from error


def _refuse_other(folder: Path, known: SetManifest, samples: int, content: Mapping[str, Any]) -> None:
    before = {"samples": known.samples, **known.content}
    now = {"samples": samples, **content}
    name = next((name for name in {**before, **now} if before.get(name) != now.get(name)), None)
    if name is None:
        return
    message = f"The set in {folder} was begun with {name} {before.get(name)}, not {now.get(name)}."
    raise ConfigError("E_USAGE", message, "Give what it was begun with, or another folder with --out.")


def _write_shard(path: Path, members: Iterator[dict[str, Any]]) -> None:
    import webdataset

    with webdataset.TarWriter(str(path), encoder=False, mtime=0) as shard:
        for member in members:
            shard.write(member)
