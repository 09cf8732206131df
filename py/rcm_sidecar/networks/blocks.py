"""What the blocks of all networks do around their own formulas: checkpointing, and the text's keys and values."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rcm_sidecar.dual import DualOrTensor, checkpoint_block
from rcm_sidecar.networks.inputs import Checkpointing
from rcm_sidecar.networks.text_cache import TextCache


def run_block(body: Callable[..., DualOrTensor], *inputs: DualOrTensor, checkpointing: Checkpointing) -> DualOrTensor:
    """`body(*inputs, kept)`, its activations kept or recomputed in backward.

    Args:
        body: Ordinary code over Tensors and Duals; hands `kept` to its attention calls. A LoRA role it needs must be
            one it closes over, so that the recomputation gets the role of this call.
        inputs: What gradients flow to.
        checkpointing: How activations are kept.
    """
    if checkpointing == "none" or not torch.is_grad_enabled():
        return body(*inputs, None)
    return checkpoint_block(body, *inputs, keep_attention=checkpointing == "asymmetric")


def text_pair(
    cache: TextCache | None, block: int, compute: Callable[[], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Keys and values of the text for one block, from the cache if there is one."""
    return compute() if cache is None else cache.get(block, compute)
