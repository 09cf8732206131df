"""Where each sample of a folder of shards lies: one pass over the tar headers, kept for the next run.

webdataset reads shards from front to back, which gives no sample by its number. With the byte offsets of this index a
step's samples are a pure function of its number, so that a resume goes on exactly, every process reads its own samples
only, and an epoch is a full permutation instead of a shuffle buffer. What makes a sample of the members of a shard is
webdataset's own rule.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from rcm_sidecar.errors import DataError, HostError
from rcm_sidecar.files import write_file

LATENT, TEXT, PROMPT = "latent.pt", "embed.pt", "prompt.txt"
"""Members of a sample, after its key; the prompt is for people and may be missing."""

_VERSION = 1
_COPY_AGAIN = "Copy the shard again, or move it out of the folder to train without it."
# webdataset's convention for members that belong to no sample.
_META = re.compile(r"__[^/]*__($|/)")


class Member(msgspec.Struct, frozen=True, array_like=True):
    """Bytes of a shard."""

    offset: int
    size: int


class StoredSample(msgspec.Struct, frozen=True, array_like=True):
    """A whole sample of a shard."""

    key: str
    latent: Member
    text: Member
    prompt: Member | None


class ShardContent(msgspec.Struct, frozen=True, rename="camel"):
    """What is in one shard.

    Attributes:
        size: Of the file, in bytes.
        modified_ns: Its time stamp: a file with another size or stamp is read again.
        samples: In the order of the file.
        incomplete: Key of each sample that lacks a member, and the member's name.
    """

    size: int
    modified_ns: int
    samples: list[StoredSample]
    incomplete: list[tuple[str, str]]


class _IndexFile(msgspec.Struct, frozen=True):
    version: int
    shards: dict[str, ShardContent]


@dataclass(frozen=True)
class ShardIndex:
    """All samples of a folder, in the order of shard names and then of the file.

    Attributes:
        folder: With the shards.
        shards: File name -> content.
    """

    folder: Path
    shards: Mapping[str, ShardContent]

    @cached_property
    def samples(self) -> list[tuple[str, StoredSample]]:
        """(shard, sample) by number."""
        return [(name, sample) for name, content in self.shards.items() for sample in content.samples]

    @cached_property
    def incomplete(self) -> dict[str, str]:
        """Name of each sample that lacks a member -> what is wrong."""
        found = ((name, key, member) for name, content in self.shards.items() for key, member in content.incomplete)
        return {f"{name}/{key}": f"it has no {member}" for name, key, member in found}

    @cached_property
    def identity(self) -> str:
        """sha256 over names, keys and places of all samples: equal indexes give equal streams. No time stamps."""
        digest = hashlib.sha256()
        for name, content in self.shards.items():
            digest.update(msgspec.msgpack.encode((name, content.size, content.samples)))
        return digest.hexdigest()


def open_index(folder: Path, cache_dir: Path | None, workers: int = 1) -> ShardIndex:
    """The index of all `*.tar` in `folder`, from the cache as far as the files are unchanged.

    Args:
        folder: With the shards.
        cache_dir: Keeps indexes between runs; None, or a folder that cannot be written, costs only time.
        workers: Shards read at a time.

    Raises:
        DataError: E_DATA_NOT_FOUND without shards or samples, E_DATA_SHARD for one that is damaged.
    """
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        hint = "Set data.path to a folder of *.tar with *.latent.pt and *.embed.pt (docs/data.md)."
        raise DataError("E_DATA_NOT_FOUND", f"There are no shards (*.tar) in {folder}.", hint)
    cache = None if cache_dir is None else cache_dir / "shard-indexes" / f"{_name_of(folder)}.msgpack"
    known = _read_cache(cache)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        read = pool.map(lambda path: _content(path, known.get(path.name)), paths)
        contents = {path.name: content for path, content in zip(paths, read, strict=True)}
    if cache is not None and contents != known:
        _write_cache(cache, contents)
    index = ShardIndex(folder, contents)
    if not index.samples:
        hint = f"A sample is a <key>.{LATENT} and a <key>.{TEXT} side by side (docs/data.md)."
        raise DataError("E_DATA_NOT_FOUND", f"The {len(paths)} shards in {folder} hold no whole sample.", hint)
    return index


def _content(path: Path, known: ShardContent | None) -> ShardContent:
    try:
        status = path.stat()
        if known is not None and (known.size, known.modified_ns) == (status.st_size, status.st_mtime_ns):
            return known
        samples, incomplete = _samples(path, status.st_size)
    except tarfile.ReadError as error:
        raise DataError("E_DATA_SHARD", f"{path} is cut short or no tar file: {error}.", _COPY_AGAIN) from error
    except OSError as error:
        raise DataError("E_DATA_SHARD", f"{path} cannot be read: {error.strerror or error}.") from error
    return ShardContent(status.st_size, status.st_mtime_ns, samples, incomplete)


def _samples(path: Path, size: int) -> tuple[list[StoredSample], list[tuple[str, str]]]:
    from webdataset.tariterators import group_by_keys

    samples: list[StoredSample] = []
    incomplete: list[tuple[str, str]] = []
    try:
        groups: list[dict[str, Any]] = list(group_by_keys(_members(path, size)))
    except ValueError as error:
        message = f"{path} has a member twice: {error.args[0]}."
        raise DataError("E_DATA_SHARD", message, "Write the shard again; each key belongs to one sample.") from error
    for group in groups:
        key = group["__key__"]
        missing = next((name for name in (LATENT, TEXT) if name not in group), None)
        if missing is None:
            samples.append(StoredSample(key, group[LATENT], group[TEXT], group.get(PROMPT)))
        elif any(name in group for name in (LATENT, TEXT, PROMPT)):
            incomplete.append((key, missing))
    return samples, incomplete


def _members(path: Path, size: int) -> Iterator[dict[str, Any]]:
    """Members as webdataset groups them, with the place of their bytes where it would have the bytes."""
    with tarfile.open(path, "r:") as shard:
        for entry in shard:
            shard.members = []  # type: ignore[attr-defined]  # or it keeps all headers
            if not entry.isreg() or _META.match(entry.name):
                continue
            if entry.offset_data + entry.size > size:
                raise tarfile.ReadError(f"the file ends inside {entry.name}")
            member = Member(entry.offset_data, entry.size)
            yield {"fname": entry.name, "data": member, "__url__": str(path)}


def _name_of(folder: Path) -> str:
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


def _read_cache(cache: Path | None) -> Mapping[str, ShardContent]:
    if cache is None:
        return {}
    try:
        stored = msgspec.msgpack.decode(cache.read_bytes(), type=_IndexFile)
    except (OSError, msgspec.DecodeError):
        return {}
    return stored.shards if stored.version == _VERSION else {}


def _write_cache(cache: Path, contents: dict[str, ShardContent]) -> None:
    try:
        write_file(cache, msgspec.msgpack.encode(_IndexFile(_VERSION, contents)))
    except HostError:
        return  # a cache that cannot be written is no reason to stop
