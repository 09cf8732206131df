"""Text states kept between runs, by the content of the encoder and the prompt: only new ones need the encoder."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from rcm_sidecar.checkpoints.reading import weights_files
from rcm_sidecar.encoders.model_folder import ModelFolder
from rcm_sidecar.encoders.prompts import cleaned
from rcm_sidecar.encoders.text_encoder import Encoded, TextEncoder
from rcm_sidecar.errors import HostError
from rcm_sidecar.files import write_file, write_tensors
from rcm_sidecar.short_memory import free_memory

_SCHEMA = 1
"""Part of every key: raised when prompts are cleaned, tokenised or encoded in another way."""


@dataclass(frozen=True)
class EmbeddingCache:
    """Text states of one encoder.

    Attributes:
        folder: Of the cache on this machine.
        encoder: sha256 over the encoder, its tokenizer and the number of tokens.
        model: Where the encoder lies.
    """

    folder: Path
    encoder: str
    model: ModelFolder

    def read(self, prompt: str) -> Encoded | None:
        """What was kept for a prompt; None when there is nothing, or nothing that can be used."""
        try:
            with safe_open(str(self._path(prompt)), framework="pt") as file:
                rows, facts = file.get_tensor("rows"), file.metadata() or {}
        except (OSError, SafetensorError):
            return None
        if rows.dim() != 2 or rows.dtype != torch.bfloat16 or not bool(torch.isfinite(rows).all()):
            return None
        return Encoded(rows, facts.get("truncated") == "true")

    def write(self, prompt: str, encoded: Encoded) -> None:
        """Keep text states.

        Raises:
            HostError: E_DISK_FULL or E_RUN_DIR.
        """
        facts = {"truncated": "true" if encoded.truncated else "false"}
        write_tensors(self._path(prompt), {"rows": encoded.rows}, facts)

    def _path(self, prompt: str) -> Path:
        content = [_SCHEMA, self.encoder, cleaned(prompt, self.model.family)]
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        return self.folder / "text" / f"{key}.safetensors"


def open_embedding_cache(model: ModelFolder, length: int, folder: Path) -> EmbeddingCache:
    """The cache of a model's encoder; its files are read once to know their content, then by size and time.

    Args:
        model: Where the encoder lies.
        length: Tokens of a prompt.
        folder: Of the cache on this machine.
    """
    files = [*weights_files(model.text_encoder), model.tokenizer]
    config = model.text_encoder / "config.json"
    if config.is_file():
        files.append(config)
    content = [length, *(file_hash(file, folder) for file in files)]
    return EmbeddingCache(folder, hashlib.sha256(json.dumps(content).encode()).hexdigest(), model)


def encode_prompts(
    prompts: Sequence[str],
    cache: EmbeddingCache,
    load: Callable[[], TextEncoder],
    encoding: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Encoded]:
    """Text states by prompt. The encoder is loaded when one of them is new, and freed before this returns.

    Args:
        prompts: Repeated ones are encoded once.
        cache: Of the encoder that `load` loads.
        load: Loads it.
        encoding: Called before each new prompt with how many are done, of how many new ones; what it raises ends this.
    """
    kept = each_encoded(prompts, cache, load, encoding)
    return dict(kept)


def each_encoded(
    prompts: Iterable[str],
    cache: EmbeddingCache,
    load: Callable[[], TextEncoder],
    encoding: Callable[[int, int], None] = lambda done, total: None,
    *,
    must_keep: bool = False,
) -> Iterator[tuple[str, Encoded]]:
    """Each prompt with its text states, one at a time: as `encode_prompts`, for more than memory holds.

    Args:
        prompts: As there.
        cache: As there.
        load: As there.
        encoding: As there.
        must_keep: States are read from the cache afterwards; what cannot be kept is an error.

    Raises:
        HostError: E_DISK_FULL or E_RUN_DIR, with `must_keep`.
    """
    new: list[str] = []
    for prompt in dict.fromkeys(prompts):
        known = cache.read(prompt)
        if known is None:
            new.append(prompt)
        else:
            yield prompt, known
    if not new:
        return
    encoding(0, len(new))
    encoder = load()
    for done, prompt in enumerate(new):
        encoding(done, len(new))
        encoded = encoder.encode(prompt)
        # What cannot be kept (a full disk) is computed again next time.
        with contextlib.nullcontext() if must_keep else contextlib.suppress(HostError):
            cache.write(prompt, encoded)
        yield prompt, encoded
    del encoder
    free_memory()  # the classes of transformers refer to themselves in circles


def file_hash(file: Path, folder: Path) -> str:
    """sha256 of a file's content; that of a file seen before is known by its place, size and time.

    Args:
        file: Any size; one of 11 GB takes some seconds the first time.
        folder: Of the cache, where hashes are kept.
    """
    real, facts = file.resolve(), file.stat()
    name = json.dumps([str(real), facts.st_size, facts.st_mtime_ns, facts.st_ino])
    kept = folder / "file-hashes" / hashlib.sha256(name.encode()).hexdigest()
    with contextlib.suppress(OSError):
        known = kept.read_text("ascii")
        if len(known) == 64:
            return known
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    with contextlib.suppress(HostError):
        write_file(kept, digest.encode())
    return digest
