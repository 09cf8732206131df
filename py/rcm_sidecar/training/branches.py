"""How the teacher's two guidance passes run: what `teacher.branches: auto` becomes. `src/config/branches.ts` prints it.

A pass whose kernels are shorter than the time the host takes to start them gains from being twice as large: two passes
cost the host as much as one. Measured on an H200 (docs/results/network.md): Cosmos-Predict2 2B at 4,080 tokens has
30 ms of kernels in a pass of 96 ms; Wan2.1 1.3B at 31,200 tokens is bound by its kernels, and batching would only
double the memory of a pass. On a CPU the passes run in sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from rcm_sidecar.diffusion.guidance import Branches

BATCHED_TOKENS = 8192
"""Tokens of one pass up to which two run as one: twice those at which the host was seen to need three times as long."""


def auto_branches(device: torch.device, tokens: int) -> Branches:
    """The choice for passes of `tokens` tokens on this process, fixed for a whole attempt."""
    return "batched" if device.type != "cpu" and tokens <= BATCHED_TOKENS else "sequential"


def tokens_of_a_pass(latent: Sequence[int], patch: Sequence[int], samples: int, context: int) -> int:
    """Tokens one process holds in a forward.

    Args:
        latent: [C, T, H, W] of a sample.
        patch: (frames, rows, columns) of a token.
        samples: Of a micro-batch.
        context: Processes that share the tokens of a sample.
    """
    each = math.prod(size // part for size, part in zip(latent[1:], patch, strict=True))
    return samples * -(-each // context)
