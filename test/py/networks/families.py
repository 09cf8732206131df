"""Both network families as one argument of a test: a small network, inputs, the twin, and what differs by nature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from networks import cosmos_twin, small_cosmos, small_wan, wan_twin


@dataclass(frozen=True)
class Family:
    """`small` has small_network and small_inputs, `twin` the formulas without Duals or checkpoints.

    `embeddings` are the parts in front of the blocks; `key_projection` of a cross-attention makes the text's keys.
    Products of a forward with tangents (`forward_gemms`), of a backward and of a recomputation, by number of blocks.
    """

    small: ModuleType
    twin: ModuleType
    embeddings: tuple[str, ...]
    key_projection: str
    difference_error: float
    forward_gemms: Callable[[int], int]
    backward_gemms: Callable[[int], int]
    recomputed_gemms: Callable[[int], int]

    def network(self, mode="none", frozen=False):
        """In fp64 with everything random; `frozen`: without the embeddings."""
        net = self.small.small_network()
        net.activation_checkpointing = mode
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(not (frozen and name.startswith(self.embeddings)))
        return net


FAMILIES = {
    "wan": Family(
        small_wan,
        wan_twin,
        embeddings=("patch_embedding", "text_embedding", "time_embedding", "time_projection"),
        key_projection="k",
        difference_error=1e-6,  # its time goes to 1000
        # A block: q k v o, q o and the feed-forward pair with tangents, text k and v without. Outside: patch, the time
        # embedding's pair, its projection and the head with tangents, the text embedding's pair without.
        forward_gemms=lambda blocks: (2 * 8 + 2) * blocks + 2 * 5 + 2,
        # Two a linear layer; none for the inputs of the patch, time and text embeddings, which need no gradient.
        backward_gemms=lambda blocks: 2 * 10 * blocks + 2 * 7 - 3,
        recomputed_gemms=lambda blocks: 10 * blocks,
    ),
    "cosmos": Family(
        small_cosmos,
        cosmos_twin,
        embeddings=("x_embedder", "t_embedder", "t_embedding_norm"),
        key_projection="k_proj",
        difference_error=1e-8,
        # A block: q k v o, q o, the feed-forward pair and three bottleneck pairs with tangents, text k and v without.
        # Outside: patch, the time embedding's pair, the final bottleneck's pair and the head, all with tangents.
        forward_gemms=lambda blocks: (2 * 14 + 2) * blocks + 2 * 6,
        # Two a linear layer; one for text k and v, patch, the first time layer: their inputs need no gradient.
        backward_gemms=lambda blocks: (2 * 14 + 2) * blocks + 2 * 6 - 2,
        recomputed_gemms=lambda blocks: 16 * blocks,
    ),
}
