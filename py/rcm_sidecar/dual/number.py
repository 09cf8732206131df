"""The Dual type: a value and its directional derivative, carried side by side."""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn, TypeAlias

import torch
from torch import Tensor


def _refuse(op: str) -> NoReturn:
    raise TypeError(f"Dual numbers have no Python operators: use rcm_sidecar.dual.ops.{op}")


class Dual(NamedTuple):
    """A primal tensor and its tangent of the same shape and dtype; the tangent is None where it is known to be zero.

    A NamedTuple, so FSDP2, activation checkpointing and torch.compile see two plain tensors. The primal keeps its
    autograd graph, the tangent never has one. Operators raise TypeError: a tuple's own `+` would silently build a
    tuple of four.
    """

    primal: Tensor
    tangent: Tensor | None

    def __add__(self, other: Any) -> NoReturn:
        _refuse("add(x, y)")

    def __radd__(self, other: Any) -> NoReturn:
        _refuse("add(x, y)")

    def __sub__(self, other: Any) -> NoReturn:
        _refuse("add(x, y) with linear_map on y for the sign")

    def __rsub__(self, other: Any) -> NoReturn:
        _refuse("add(x, y) with linear_map on y for the sign")

    def __mul__(self, other: Any) -> NoReturn:
        _refuse("linear_map, modulate or gate")

    def __rmul__(self, other: Any) -> NoReturn:
        _refuse("linear_map, modulate or gate")

    def __truediv__(self, other: Any) -> NoReturn:
        _refuse("linear_map")

    def __matmul__(self, other: Any) -> NoReturn:
        _refuse("linear(x, weight)")


DualOrTensor: TypeAlias = Tensor | Dual


def primal_of(x: DualOrTensor) -> Tensor:
    """The value itself, for shapes, dtypes and devices."""
    return x.primal if isinstance(x, Dual) else x


def split(x: DualOrTensor) -> tuple[Tensor, Tensor | None]:
    """`(primal, tangent)` of a Dual, `(tensor, None)` of a Tensor."""
    return (x.primal, x.tangent) if isinstance(x, Dual) else (x, None)


def join(value: Tensor, tangent: Tensor | None, *inputs: DualOrTensor) -> DualOrTensor:
    """`value` when every input was a Tensor, else a Dual with the tangent in the value's shape and dtype."""
    if not any(isinstance(x, Dual) for x in inputs):
        return value
    if tangent is None:
        return Dual(value, None)
    if tangent.shape != value.shape:
        tangent = tangent.expand(value.shape)
    return Dual(value, tangent if tangent.dtype == value.dtype else tangent.to(value.dtype))


def widen(x: Tensor) -> Tensor:
    """`x` in at least float32: float64 stays float64, half precision becomes float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype `widen` gives a tensor of `dtype`."""
    return torch.promote_types(dtype, torch.float32)
