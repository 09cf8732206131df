"""Prompts to text states, by the encoder classes of transformers: UMT5-XXL for Wan2.1, T5-11B for Cosmos-Predict2."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rcm_sidecar.checkpoints.reading import open_weights
from rcm_sidecar.encoders.filling import fill
from rcm_sidecar.encoders.model_folder import FamilyName, ModelFolder
from rcm_sidecar.encoders.original_keys import umt5_key
from rcm_sidecar.encoders.prompts import cleaned
from rcm_sidecar.errors import WeightsError
from rcm_sidecar.safetensors_file import LazyTensor
from rcm_sidecar.short_memory import load_or_stream

PAD_ID = 0
_MODEL_TYPES: Mapping[FamilyName, str] = {"wan2.1": "umt5", "cosmos-predict2": "t5"}
_FIRST_LAYER = "encoder.block.0.layer.0.SelfAttention."
# Of whole models whose encoder alone is used.
_OTHER_PARTS = ("decoder.", "lm_head.")


@dataclass(frozen=True)
class Encoded:
    """Text states of one prompt.

    Attributes:
        rows: [n, width] bfloat16 on the CPU, one for each token; the rows up to the fixed length are zeros.
        truncated: The prompt was longer than what the encoder takes.
    """

    rows: Tensor
    truncated: bool


class TextEncoder:
    """A loaded text encoder.

    Args:
        model: The encoder of transformers, frozen.
        tokenizer: A `tokenizers.Tokenizer`.
        family: How prompts are cleaned.
        length: Tokens a prompt is cut or padded to.
        device: Where token ids go.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, family: FamilyName, length: int, device: torch.device) -> None:
        self._model, self._tokenizer, self._family, self._device = model, tokenizer, family, device
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(length=length, pad_id=PAD_ID)

    @torch.no_grad()
    def encode(self, prompt: str) -> Encoded:
        """States of one prompt: computed under the mask of its tokens, rows of padding left out."""
        tokens = self._tokenizer.encode(cleaned(prompt, self._family))
        ids = torch.tensor([tokens.ids], device=self._device)
        mask = torch.tensor([tokens.attention_mask], device=self._device)
        states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        rows = states[0, : sum(tokens.attention_mask)].to("cpu", torch.bfloat16)
        return Encoded(rows, bool(tokens.overflowing))


def load_text_encoder(
    folder: ModelFolder, length: int, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> TextEncoder:
    """Load the encoder and tokenizer of a model folder.

    Args:
        folder: From `open_model_folder`.
        length: Tokens of a prompt, the network's `spec.text_len`.
        device: Where it computes. What does not fit a GPU stays in main memory and visits it block by block.
        dtype: Of the weights.

    Raises:
        WeightsError: E_WEIGHTS_MISMATCH, E_WEIGHTS_UNREADABLE or what opening finds.
    """
    tokenizer = _load_tokenizer(folder.tokenizer)
    tensors, config = _open(folder.text_encoder, folder.family)

    def load(where: torch.device) -> nn.Module:
        model: nn.Module = _on_meta(config, folder.family)
        fill(model, tensors, folder.text_encoder, where, dtype)
        return model.eval()

    model = load_or_stream(load, lambda module: module.encoder.block, device)
    return TextEncoder(model, tokenizer, folder.family, length, device)


def padded(rows: Tensor, length: int) -> Tensor:
    """Text states [length, width] of rows [n, width]: zeros after the text's end."""
    text = rows.new_zeros(length, rows.shape[1])
    text[: len(rows)] = rows
    return text


def _open(path: Path, family: FamilyName) -> tuple[dict[str, LazyTensor], Any]:
    """Tensors by the names of transformers, and the config of the encoder."""
    from transformers import T5Config, UMT5Config

    if path.is_file():
        tensors = {umt5_key(key): tensor for key, tensor in open_weights(path).items()}
        return tensors, UMT5Config(**_umt5_sizes(path, {key: tensor.shape for key, tensor in tensors.items()}))
    stored = _read_config(path / "config.json")
    kind, wanted = stored.get("model_type"), _MODEL_TYPES[family]
    if kind != wanted:
        message = f"{path} holds a {kind} model; {family} reads the states of a {wanted} one."
        raise WeightsError("E_WEIGHTS_MISMATCH", message, "Use the text encoder published with the network.")
    config = (UMT5Config if family == "wan2.1" else T5Config).from_dict(stored)
    found = {key: tensor for key, tensor in open_weights(path).items() if not key.startswith(_OTHER_PARTS)}
    embedding = found.pop("encoder.embed_tokens.weight", None)
    if embedding is not None:
        found.setdefault("shared.weight", embedding)
    return found, config


def _umt5_sizes(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The original file has no config beside it: its shapes say everything that differs between sizes."""
    layers = {key.split(".")[2] for key in shapes if key.startswith("encoder.block.")}
    try:
        vocabulary, width = shapes["shared.weight"]
        buckets, heads = shapes[f"{_FIRST_LAYER}relative_attention_bias.weight"]
        inner = shapes[f"{_FIRST_LAYER}q.weight"][0]
        hidden = shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0]
    except (KeyError, ValueError) as error:
        message = f"{path} holds no UMT5 encoder: {error} is missing or misshapen."
        raise WeightsError("E_WEIGHTS_MISMATCH", message, "Fetch it again.") from error
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": inner // heads,
        "d_ff": hidden,
        "num_layers": len(layers),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
    }


def _on_meta(config: Any, family: FamilyName) -> Any:
    from transformers import T5EncoderModel, UMT5EncoderModel

    with torch.device("meta"):
        model: Any = UMT5EncoderModel(config) if family == "wan2.1" else T5EncoderModel(config)
    model.encoder.embed_tokens = model.shared  # one module, so that filling one fills both
    return model


def _load_tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise WeightsError("E_WEIGHTS_UNREADABLE", f"{path} is no tokenizer: {error}", "Fetch it again.") from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError("E_WEIGHTS_UNREADABLE", f"{path} cannot be read: {error}", "Fetch it again.") from error
    return content if isinstance(content, dict) else {}
