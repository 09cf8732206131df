"""Which network weights belong to, from the shapes in their headers and the config.json beside them.

Facts: wan2.1.md sections 1 and 4, cosmos-predict2.md sections 2 and 4.6.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rcm_sidecar.checkpoints.layouts import Family
from rcm_sidecar.checkpoints.weights_file import WeightsFile
from rcm_sidecar.errors import ConfigError
from rcm_sidecar.networks import build
from rcm_sidecar.networks.registry import FAMILIES

_BLOCK = re.compile(r"blocks\.(\d+)\.")
_WAN_HEAD_DIM = 128  # of both releases; the shapes do not show it
_PATCH = (1, 2, 2)
_PRESETS: Mapping[Family, Mapping[str, Any]] = {"wan2.1": FAMILIES[0].PRESETS, "cosmos-predict2": FAMILIES[1].PRESETS}
# Keys of config.json that hold what no shape shows, in the official and the diffusers layout.
_UNSEEN = {
    "num_heads": ("num_heads", "num_attention_heads"),
    "eps": ("eps",),
    "text_len": ("text_len",),
    "rope_ratios": ("rope_ratios", "rope_scale"),
}


@dataclass(frozen=True, slots=True)
class Guess:
    """A name of `networks.names()` and what differs from it, as arguments of `networks.build`."""

    model: str
    overrides: Mapping[str, Any]


def guess_network(weights: WeightsFile, config: Mapping[str, Any]) -> Guess | None:
    """The named network nearest to the weights, with the overrides that make it theirs; None for another kind of file.

    Where weights of a release lack blocks, the guess is the release: they are incomplete, not another network.

    Args:
        weights: From `open_network`.
        config: The config.json beside them, or an empty mapping.
    """
    if weights.family is None:
        return None
    shapes = {name: tensor.shape for name, tensor in weights.tensors.items()}
    seen = _wan_sizes(shapes, config) if weights.family == "wan2.1" else _cosmos_sizes(shapes, config)
    for sizes in (seen | _unseen(config, seen), seen):
        guess = _nearest(weights.family, sizes, trusted_blocks=config.get("num_layers") == seen.get("num_layers"))
        try:
            build(guess.model, device="meta", **guess.overrides)
        except ConfigError:
            continue  # a config.json with values that fit no network
        return guess
    return Guess(_nearest(weights.family, {}, trusted_blocks=False).model, {})


def _nearest(family: Family, sizes: Mapping[str, Any], *, trusted_blocks: bool) -> Guess:
    def differing(name: str) -> dict[str, Any]:
        preset = _PRESETS[family][name]
        return {key: value for key, value in sizes.items() if getattr(preset, key) != value}

    model = min(_PRESETS[family], key=lambda name: len(differing(name)))
    overrides = differing(model)
    if overrides.keys() == {"num_layers"} and not trusted_blocks and not model.endswith("-tiny"):
        overrides = {}
    return Guess(model, overrides)


def _wan_sizes(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> dict[str, Any]:
    patch_weight = shapes.get("patch_embedding.weight", ())
    patch = patch_weight[2:] if len(patch_weight) == 5 else _patch(config)
    area = math.prod(patch)
    sizes = {
        "dim": _side(shapes, "patch_embedding.weight", 0),
        "ffn_dim": _side(shapes, "blocks.0.ffn.0.weight", 0),
        "num_layers": _blocks(shapes),
        "in_dim": _side(shapes, "patch_embedding.weight", 1, 1 if len(patch_weight) == 5 else area),
        "out_dim": _side(shapes, "head.head.weight", 0, area),
        "text_dim": _side(shapes, "text_embedding.0.weight", 1),
        "freq_dim": _side(shapes, "time_embedding.0.weight", 1),
        "patch_size": tuple(patch),
    }
    dim = sizes["dim"]
    if isinstance(dim, int) and dim % _WAN_HEAD_DIM == 0:
        sizes["num_heads"] = dim // _WAN_HEAD_DIM
    return {key: value for key, value in sizes.items() if value is not None}


def _cosmos_sizes(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> dict[str, Any]:
    patch = _patch(config)
    area = math.prod(patch)
    dim = _side(shapes, "x_embedder.proj.1.weight", 0)
    columns = _side(shapes, "x_embedder.proj.1.weight", 1, area)
    head = _side(shapes, "blocks.0.self_attn.q_norm.weight", 0)
    hidden = _side(shapes, "blocks.0.mlp.layer1.weight", 0)
    sizes = {
        "dim": dim,
        "num_heads": dim // head if dim and head and dim % head == 0 else None,
        "num_layers": _blocks(shapes),
        "in_dim": columns - 1 if columns else None,  # the last channel is the padding mask
        "out_dim": _side(shapes, "final_layer.linear.weight", 0, area),
        "text_dim": _side(shapes, "blocks.0.cross_attn.k_proj.weight", 1),
        "mlp_ratio": hidden / dim if hidden and dim else None,
        "adaln_lora_dim": _side(shapes, "blocks.0.adaln_modulation_self_attn.1.weight", 0),
        "patch_size": patch,
    }
    return {key: value for key, value in sizes.items() if value is not None}


def _unseen(config: Mapping[str, Any], seen: Mapping[str, Any]) -> dict[str, Any]:
    """What only config.json says, in the types of the networks' configs."""
    found: dict[str, Any] = {}
    for field, keys in _UNSEEN.items():
        value = next((config[key] for key in keys if key in config), None)
        if value is None or (field == "rope_ratios" and "mlp_ratio" not in seen):
            continue
        numbers = isinstance(value, list) and all(isinstance(part, int | float) for part in value)
        found[field] = tuple(map(float, value)) if numbers else value
    return found


def _patch(config: Mapping[str, Any]) -> tuple[int, ...]:
    value = config.get("patch_size")
    if isinstance(value, list) and len(value) == 3 and all(type(part) is int and part > 0 for part in value):
        return tuple(value)
    return _PATCH


def _side(shapes: Mapping[str, tuple[int, ...]], name: str, axis: int, over: int = 1) -> int | None:
    shape = shapes.get(name, ())
    return shape[axis] // over if len(shape) > axis and shape[axis] >= over else None


def _blocks(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    indexes = [int(match[1]) for name in shapes if (match := _BLOCK.match(name))]
    return max(indexes) + 1 if indexes else None
