"""A pass without gradient in float32 through a network whose weights are stored, or gathered, in half precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from rcm_sidecar.dual.number import widen

_widening = False


@contextmanager
def in_float32() -> Iterator[None]:
    """Inside, products take their weights in at least float32, so that nothing is rounded to half precision.

    Weights are cast one layer at a time: no copy of a network is made, and sharded ones are gathered as always. For
    passes without gradient only, on the thread that runs them: a recomputation in backward would not know of it.
    """
    global _widening
    before, _widening = _widening, True
    try:
        with torch.no_grad():
            yield
    finally:
        _widening = before


def weights_in_use(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A layer's weight and bias as its product takes them: as they are, or widened inside `in_float32`."""
    if not _widening:
        return weight, bias
    return widen(weight), None if bias is None else widen(bias)
