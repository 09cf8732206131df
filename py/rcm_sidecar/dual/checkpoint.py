"""Activation checkpointing that recomputes the primal only (design.md section 2, "Asymmetric checkpointing")."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import cast

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rcm_sidecar.dual.attention import KeptAttention
from rcm_sidecar.dual.number import Dual, DualOrTensor, split

Body = Callable[..., DualOrTensor]


def checkpoint_block(body: Body, *inputs: DualOrTensor, keep_attention: bool) -> DualOrTensor:
    """Run `body(*inputs, kept)` and keep only the primal inputs for backward.

    The forward computes value and tangent. Backward runs `body` once more on plain Tensors: no tangent is computed
    twice. With `keep_attention` the output and log-sum-exp of every attention call are kept as well, so the
    recomputation runs no attention and its activations are bit-equal.

    Args:
        body: Ordinary code over Duals; hands its last argument (KeptAttention) to `ops.attention`. It must save the
            same tensors in the same order for Tensors as for Duals, as code made of `dual.ops` does.
        inputs: Tensors or Duals.
        keep_attention: Keep attention's results (more memory, less work).

    Returns:
        What `body` returned.
    """
    kept = KeptAttention(keep_attention)
    primals = tuple(split(x)[0] for x in inputs)
    # Emptied on first use: the closure lives until backward and must not hold the tangents until then.
    duals: list[tuple[DualOrTensor, ...]] = [inputs]
    tangents: list[Tensor | None] = []

    def run(*values: Tensor) -> Tensor:
        if kept.replaying:
            return cast(Tensor, body(*values, kept))
        out = body(*duals.pop(), kept)
        value, tangent = split(out)
        if isinstance(out, Dual):
            tangents.append(tangent)
        return value

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), kept.recomputation()

    value = checkpoint(run, *primals, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return Dual(value, tangents.pop()) if tangents else value
