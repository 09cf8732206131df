"""What the blocks of all networks do around their own formulas: checkpointing, and the text's keys and values."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rcm_sidecar.dual import DualOrTensor, checkpoint_block
from rcm_sidecar.dual.kept import Kind
from rcm_sidecar.networks.inputs import Checkpointing
from rcm_sidecar.networks.text_cache import TextCache

# What a block keeps beside its inputs. The rest is computed again, the primal only.
KEPT: Mapping[Checkpointing, tuple[Kind, ...]] = {
    "block": (),
    "asymmetric": ("attention",),
    "selective": ("attention", "product"),
}


def run_block(body: Callable[..., DualOrTensor], *inputs: DualOrTensor, checkpointing: Checkpointing) -> DualOrTensor:
    """`body(*inputs)`, its activations kept or recomputed in backward.

    Args:
        body: Ordinary code over Tensors and Duals. A LoRA role it needs must be one it closes over, so that the
            recomputation gets the role of this call.
        inputs: What gradients flow to.
        checkpointing: How activations are kept.
    """
    if checkpointing == "none" or not torch.is_grad_enabled():
        return body(*inputs)
    return checkpoint_block(body, *inputs, keep=KEPT[checkpointing])


def text_pair(
    cache: TextCache | None, block: int, compute: Callable[[], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Keys and values of the text for one block, from the cache if there is one."""
    return compute() if cache is None else cache.get(block, compute)
