"""Activation checkpointing that recomputes the primal only (design.md section 2, "Asymmetric checkpointing")."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import cast

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rcm_sidecar.dual.kept import KeptResults, Kind
from rcm_sidecar.dual.number import Dual, DualOrTensor, split
from rcm_sidecar.step_clock import current_clock, region_of

Body = Callable[..., DualOrTensor]


def checkpoint_block(body: Body, *inputs: DualOrTensor, keep: Collection[Kind] = ()) -> DualOrTensor:
    """Run `body(*inputs)` and keep only the primal inputs, and the results of `keep`, for backward.

    The forward computes value and tangent. Backward runs `body` once more on plain Tensors: no tangent is computed
    twice. Calls of the kinds in `keep` are not computed twice either, and what they feed is bit-equal.

    Args:
        body: Ordinary code over Duals. It must save the same tensors in the same order for Tensors as for Duals, as
            code made of `dual.ops` does.
        inputs: Tensors or Duals.
        keep: Whose results are kept (more memory, less work): "attention", "product".

    Returns:
        What `body` returned.
    """
    kept = KeptResults(keep)
    primals = tuple(split(x)[0] for x in inputs)
    # Emptied on first use: the closure lives until backward and must not hold the tangents until then.
    duals: list[tuple[DualOrTensor, ...]] = [inputs]
    tangents: list[Tensor | None] = []
    clock = current_clock()

    def run(*values: Tensor) -> Tensor:
        if not duals:
            with region_of(clock, "recomputation"), kept.replaying():
                return cast(Tensor, body(*values))
        with kept.recording():
            out = body(*duals.pop())
        value, tangent = split(out)
        if isinstance(out, Dual):
            tangents.append(tangent)
        return value

    value = checkpoint(run, *primals, use_reentrant=False, preserve_rng_state=False)
    return Dual(value, tangents.pop()) if tangents else value
