"""Stored text embeddings as conditions, and the negative condition that guidance needs with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rcm_sidecar.config import RunConfig
from rcm_sidecar.data.latent_shards import DamagedSample, WrongShape, fit_text, load_tensor
from rcm_sidecar.data.open_data import sample_shape
from rcm_sidecar.errors import ConfigError, DataError
from rcm_sidecar.networks import build
from rcm_sidecar.networks.spec import NetworkSpec

NEGATIVE_FILE = "negative.embed.pt"
"""In the folder of the shards: the text encoder's states [L,D] of the model's negative prompt."""


@dataclass(frozen=True)
class StoredText:
    """A conditioning whose text comes with the samples.

    Attributes:
        negative: [L,D] float32.
    """

    negative: Tensor

    def __call__(self, text: Tensor) -> Tensor:
        """Text [B,L,D] as it is."""
        return text

    def empty(self, batch: int) -> Tensor:
        """The negative condition [batch,L,D]."""
        return self.negative.expand(batch, -1, -1)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """What must not change, as a label table names its own."""
        yield "negative", self.negative

    def to(self, device: torch.device) -> StoredText:
        """The same on another device."""
        return StoredText(self.negative.to(device))


def stored_text(config: RunConfig) -> StoredText:
    """The condition of a run on stored embeddings, with the negative that `teacher.negative` names. On the CPU.

    Raises:
        ConfigError: E_CONFIG_VALUE for the empty condition of a label table.
        DataError: E_DATA_NEGATIVE, the file of the negative prompt is missing or of another encoder.
    """
    spec = build(config.model.name, device="meta", **config.model.overrides.arguments()).spec
    return StoredText(_negative(config, spec))


def _negative(config: RunConfig, spec: NetworkSpec) -> Tensor:
    word = config.teacher.negative
    if word == "empty":
        message = "teacher.negative empty is the last row of a label table; stored embeddings have none."
        raise ConfigError("E_CONFIG_VALUE", message, "Use default, zeros or the path of an embedding.")
    zeros = torch.zeros(spec.text_len, spec.text_dim)
    if word == "zeros" or (word == "default" and spec.negative == "zeros") or config.teacher.guidance == 1:
        return zeros
    path = Path(config.data.path or "") / NEGATIVE_FILE if word == "default" else Path(word)
    try:
        return fit_text(load_tensor(path.read_bytes(), "content"), sample_shape(config, spec))
    except OSError as error:
        message = f"The embedding of the negative prompt is missing: {path}."
        raise DataError("E_DATA_NEGATIVE", message, _how_to_get(spec)) from error
    except WrongShape as error:
        raise DataError("E_DATA_NEGATIVE", f"{path} does not fit the model: {error}.", error.hint) from error
    except DamagedSample as error:
        raise DataError("E_DATA_NEGATIVE", f"{path} cannot be used: {error}.", _how_to_get(spec)) from error


def _how_to_get(spec: NetworkSpec) -> str:
    shape = f"[{spec.text_len}, {spec.text_dim}]"
    return (
        f"Save the text encoder's states {shape} of the model's negative prompt there (docs/data.md), "
        "or set teacher.negative to such a file."
    )
