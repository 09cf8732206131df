"""Why weights do not fit: the first names and the likely cause, in one sentence each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rcm_sidecar.checkpoints.layouts import Family, family_of
from rcm_sidecar.networks import Network

_BLOCK = re.compile(r"blocks\.(\d+)\.")
# A piece of a key name that gives another kind of file away.
_SIGNS: tuple[tuple[str, str], ...] = (
    ("lora_", "this is a LoRA file, not a whole network"),
    ("crossattn_proj.", "these are weights of Cosmos-Predict2.5, which is another network"),
    ("token_embedding.", "this is the text encoder"),
    ("shared.weight", "this is a text encoder"),
    ("decoder.", "this is the VAE"),
    ("img_emb.", "this is an image-to-video model; only text-to-video is supported"),
    ("vace_", "this is a VACE model; only text-to-video is supported"),
)


_FAMILY_TITLES: Mapping[Family, str] = {"cosmos-predict2": "Cosmos-Predict2", "wan2.1": "Wan2.1"}
# The first layer: its rows are the width of the network.
_FIRST_LAYERS = {"wan2.1": "patch_embedding.weight", "cosmos-predict2": "x_embedder.proj.1.weight"}
# Patches of 16 channels, a condition mask and a padding mask.
_VIDEO_TO_WORLD_COLUMNS = 72


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The keys that do not fit; `misshaped` and `integers` are sentences."""

    missing: Sequence[str] = ()
    unexpected: Sequence[str] = ()
    misshaped: Sequence[str] = ()
    integers: Sequence[str] = ()

    @property
    def empty(self) -> bool:
        """Whether everything fits."""
        return not (self.missing or self.unexpected or self.misshaped or self.integers)

    def summary(self, count: int = 5) -> str:
        """How many of each, and the first `count` in the order misshaped, integers, missing, unexpected."""
        named = [
            *self.misshaped,
            *self.integers,
            *(f"missing {name}" for name in self.missing),
            *(f"unexpected {name}" for name in self.unexpected),
        ]
        totals = (
            f"{len(self.missing)} missing, {len(self.unexpected)} unexpected, {len(self.misshaped)} of another shape"
        )
        return f"{totals}; first: {'; '.join(named[:count])}"


def other_kind(names: Iterable[str]) -> str | None:
    """What else a file is, if one of its names gives it away."""
    names = list(names)
    return next((cause for sign, cause in _SIGNS if any(sign in name for name in names)), None)


def likely_cause(net: Network, mismatch: Mismatch, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The most probable reason, from names and shapes alone."""
    if (cause := other_kind(mismatch.unexpected)) is not None:
        return cause
    family = family_of(mismatch.unexpected)
    if family is not None and family != net.spec.family:
        return f"these are weights of {_FAMILY_TITLES[family]}"
    if mismatch.integers:
        return "the file holds integers where weights should be: it is quantised, or no network"
    if mismatch.misshaped or _blocks(shapes) != _blocks(dict(net.named_parameters())):
        return _other_size(net, shapes)
    if mismatch.missing and not mismatch.unexpected:
        return "the file is incomplete: a shard is missing, or only a part was saved"
    if len(mismatch.unexpected) == len(shapes):
        return "these are weights of another network, or carry a prefix that is not known"
    return "the weights were saved by another version of the network, or carry additions such as adapters"


def _other_size(net: Network, shapes: Mapping[str, tuple[int, ...]]) -> str:
    first = _FIRST_LAYERS[net.spec.family]
    ours, theirs = net.get_parameter(first).shape[0], shapes.get(first, (None,))[0]
    if net.spec.family == "cosmos-predict2" and shapes.get(first, ())[1:] == (_VIDEO_TO_WORLD_COLUMNS,):
        return "this is a video-to-world model; only text-to-image is supported"
    blocks = (_blocks(shapes), _blocks(dict(net.named_parameters())))
    return (
        f"the file is of a network of another size: width {theirs} and {blocks[0]} blocks, "
        f"here width {ours} and {blocks[1]} blocks; set the model name or its overrides to match"
    )


def _blocks(names: Mapping[str, object]) -> int:
    indexes = [int(match[1]) for name in names if (match := _BLOCK.search(name))]
    return max(indexes, default=-1) + 1
