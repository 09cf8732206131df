"""Why weights do not fit: the first names and the likely cause, in one sentence each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rcm_sidecar.networks import Network

_BLOCK = re.compile(r"blocks\.(\d+)\.")
# A piece of a key name that gives another kind of file away.
_SIGNS: tuple[tuple[str, str], ...] = (
    ("lora_", "this is a LoRA file, not a whole network"),
    ("x_embedder.", "these are weights of Cosmos-Predict2"),
    (
        "transformer_blocks.",
        "these are weights of another architecture, perhaps Cosmos-Predict2 for diffusers",
    ),
    ("token_embedding.", "this is the text encoder"),
    ("shared.weight", "this is a text encoder"),
    ("decoder.", "this is the VAE"),
    ("img_emb.", "this is an image-to-video model; only text-to-video is supported"),
    ("vace_", "this is a VACE model; only text-to-video is supported"),
)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The keys that do not fit."""

    missing: Sequence[str]
    unexpected: Sequence[str]
    misshaped: Sequence[str]

    @property
    def empty(self) -> bool:
        """Whether everything fits."""
        return not (self.missing or self.unexpected or self.misshaped)

    def summary(self, count: int) -> str:
        """How many of each, and the first `count` in the order misshaped, missing, unexpected."""
        named = [
            *self.misshaped,
            *(f"missing {name}" for name in self.missing),
            *(f"unexpected {name}" for name in self.unexpected),
        ]
        totals = (
            f"{len(self.missing)} missing, {len(self.unexpected)} unexpected, {len(self.misshaped)} of another shape"
        )
        return f"{totals}; first: {'; '.join(named[:count])}"


def likely_cause(net: Network, mismatch: Mismatch, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The most probable reason, from names and shapes alone."""
    for sign, cause in _SIGNS:
        if any(sign in name for name in mismatch.unexpected):
            return cause
    if mismatch.misshaped or _blocks(shapes) != _blocks(dict(net.named_parameters())):
        return _other_size(net, shapes)
    if mismatch.missing and not mismatch.unexpected:
        return "the file is incomplete: a shard is missing, or only a part was saved"
    if len(mismatch.unexpected) == len(shapes):
        return "these are weights of another network, or carry a prefix that is not known"
    return "the weights were saved by another version of the network, or carry additions such as adapters"


def _other_size(net: Network, shapes: Mapping[str, tuple[int, ...]]) -> str:
    ours = net.get_parameter("patch_embedding.weight").shape[0] if hasattr(net, "patch_embedding") else None
    theirs = shapes.get("patch_embedding.weight", (None,))[0]
    blocks = (_blocks(shapes), _blocks(dict(net.named_parameters())))
    return (
        f"the file is of a network of another size: width {theirs} and {blocks[0]} blocks, "
        f"here width {ours} and {blocks[1]} blocks; set the model name or its overrides to match"
    )


def _blocks(names: Mapping[str, object]) -> int:
    indexes = [int(match[1]) for name in names if (match := _BLOCK.search(name))]
    return max(indexes, default=-1) + 1
