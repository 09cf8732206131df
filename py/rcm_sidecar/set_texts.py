"""Text states of a set's prompts: all of them before any latent is made, so that encoder and network never meet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from rcm_sidecar.counted_progress import Report
from rcm_sidecar.data.latent_shards import DamagedSample, WrongShape, load_tensor
from rcm_sidecar.encoders.embedding_cache import EmbeddingCache, each_encoded, open_embedding_cache
from rcm_sidecar.encoders.model_folder import ModelFolder
from rcm_sidecar.encoders.prompts import negative_prompt
from rcm_sidecar.encoders.text_encoder import load_text_encoder, padded
from rcm_sidecar.errors import DataError, WeightsError
from rcm_sidecar.link import JobLink
from rcm_sidecar.networks.spec import NetworkSpec


@dataclass(frozen=True)
class SetTexts:
    """Text states of one set.

    Attributes:
        spec: Of the network that reads them.
        folder: With the encoder.
        cache: Keeps them on disk: those of a large set do not fit into memory.
    """

    spec: NetworkSpec
    folder: ModelFolder
    cache: EmbeddingCache

    def encode(self, prompts: Iterable[str], device: torch.device, report: Report, link: JobLink) -> None:
        """Have the states of these prompts in the cache; the encoder is freed again.

        Raises:
            WeightsError: E_WEIGHTS_MISMATCH, states that the network does not take.
            HostError: E_DISK_FULL, E_GPU.
        """
        report("reading the text encoder", 0, 1)
        cut = 0
        for _, states in each_encoded(
            prompts,
            self.cache,
            lambda: load_text_encoder(self.folder, self.spec.text_len, device),
            lambda done, total: report("encoding prompts", done, total),
            must_keep=True,
        ):
            self._check_width(states.rows)
            cut += states.truncated
        if cut:
            link.log("warn", f"Of {cut} prompts what is beyond {self.spec.text_len} tokens is cut.")

    def of(self, prompt: str) -> Tensor:
        """States [L,D] bf16 of a prompt that was encoded, rows after the last token zero."""
        states = self.cache.read(prompt)
        if states is None:
            message = f"The text states of {prompt[:40]!r} are gone from {self.cache.folder}."
            raise DataError("E_DATA_SHARD", message, "Run the command again: it goes on.")
        return padded(states.rows, self.spec.text_len)

    def _check_width(self, rows: Tensor) -> None:
        if rows.shape[1] == self.spec.text_dim:
            return
        message = f"{self.folder.text_encoder} gives {rows.shape[1]} numbers a token; the network takes "
        hint = "Set model.path to the folder with the text encoder published with the network."
        raise WeightsError("E_WEIGHTS_MISMATCH", f"{message}{self.spec.text_dim}.", hint)


def open_set_texts(spec: NetworkSpec, folder: ModelFolder, cache_dir: Path, work: Path) -> SetTexts:
    """The texts of a set.

    Args:
        spec: Of the network that reads them.
        folder: With the encoder.
        cache_dir: Knows the hashes of large files.
        work: Where the states are kept.
    """
    cache = open_embedding_cache(folder, spec.text_len, cache_dir)
    return SetTexts(spec, folder, replace(cache, folder=work))


@dataclass(frozen=True)
class Negative:
    """What the negative branch of guidance gets: states of a prompt, a stored tensor, or zeros where both are None."""

    prompt: str | None
    stored: Tensor | None

    def states(self, texts: SetTexts) -> Tensor:
        """[L,D]; a prompt has been encoded."""
        if self.stored is not None:
            return padded(self.stored, texts.spec.text_len)
        if self.prompt is not None:
            return texts.of(self.prompt)
        return torch.zeros(texts.spec.text_len, texts.spec.text_dim)


def find_negative(setting: str, spec: NetworkSpec) -> Negative:
    """The negative condition of `teacher.negative`: a word, text:... or the path of stored states.

    Raises:
        ConfigError: E_CONFIG_VALUE.
        DataError: E_DATA_NEGATIVE, a file that does not hold states of this model.
    """
    path = Path(setting)
    if not path.is_absolute():
        return Negative(negative_prompt(setting, spec.family), None)
    hint = "Set teacher.negative=default: the states are then made here."
    try:
        stored = load_tensor(path.read_bytes(), "content")
    except (OSError, DamagedSample, WrongShape) as error:
        raise DataError("E_DATA_NEGATIVE", f"{path} cannot be used: {error}.", hint) from error
    if stored.dim() != 2 or stored.shape[1] != spec.text_dim or len(stored) > spec.text_len:
        message = f"{path} holds {list(stored.shape)}, the model takes [{spec.text_len}, {spec.text_dim}]."
        raise DataError("E_DATA_NEGATIVE", message, hint)
    return Negative(None, stored)
