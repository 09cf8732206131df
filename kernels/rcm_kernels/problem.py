"""What one attention call asks for: arguments checked, mask and missing tangents in the form the kernels take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Mask: TypeAlias = None | Literal["causal"] | tuple[Literal["block-causal"], int]

KERNEL_DTYPES = (torch.bfloat16, torch.float16)
KERNEL_HEAD_DIMS = (32, 64, 96, 128, 256)
TANGENTS = ("tq", "tk", "tv")
ALIGNMENT_BYTES = 16  # of tensor memory accesses: base addresses and all strides but the last


@dataclass(frozen=True)
class Problem:
    """Sizes and options of one checked call.

    Attributes:
        batch, heads, queries, keys, head_dim: B, H, Lq, Lk, D.
        scale: Factor of the scores.
        frame: 0 for no mask, else tokens per frame: query i sees the keys of its own and earlier frames. 1 is causal.
    """

    batch: int
    heads: int
    queries: int
    keys: int
    head_dim: int
    scale: float
    frame: int


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    scale: float | None,
    mask: Mask,
) -> Problem:
    """Check shapes, dtypes, devices, scale and mask of a forward.

    Raises:
        ValueError: Names the argument and what is wrong with it.
    """
    _check_rank(q, "q")
    batch, heads, queries, head_dim = q.shape
    keys = k.shape[2] if k.ndim == 4 else -1
    _check_like(k, "k", q, (batch, heads, keys, head_dim))
    _check_like(v, "v", q, (batch, heads, keys, head_dim))
    for tangent, name, primal in ((tq, "tq", q), (tk, "tk", k), (tv, "tv", v)):
        if tangent is not None:
            _check_like(tangent, name, primal, tuple(primal.shape))
    if not q.dtype.is_floating_point:
        raise ValueError(f"q: dtype {q.dtype} is not a floating point dtype")
    for size, name, what in ((queries, "q", "queries"), (keys, "k", "keys"), (head_dim, "q", "head dim")):
        if size < 1:
            raise ValueError(f"{name}: {what} must be at least 1, got {size}")
    return Problem(batch, heads, queries, keys, head_dim, _factor_of(scale, head_dim), frame_of(mask))


def check_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float | None, mask: Mask
) -> Problem:
    """Check shapes, dtypes, devices, scale and mask of a backward; the gradient may have any floating point dtype.

    Raises:
        ValueError: Names the argument and what is wrong with it.
    """
    problem = check(q, k, v, None, None, None, scale, mask)
    shape = tuple(q.shape)
    _check_like(out, "out", q, shape)
    _check_like(grad, "grad", q, shape, grad.dtype)
    if not grad.dtype.is_floating_point:
        raise ValueError(f"grad: dtype {grad.dtype} is not a floating point dtype")
    _check_like(lse, "lse", q, shape[:3], torch.promote_types(q.dtype, torch.float32))
    return problem


def check_tensors(**tensors: Tensor | None) -> None:
    """Raise ValueError, naming the argument, for what is not a tensor; a tangent may be None."""
    for name, x in tensors.items():
        if not isinstance(x, Tensor) and not (x is None and name in TANGENTS):
            raise ValueError(f"{name}: expected a torch.Tensor, got {type(x).__name__}")


def check_for_kernels(tensors: dict[str, Tensor | None]) -> None:
    """Check what the fused kernels need beyond `check`: dtype, head dim, alignment of addresses and strides.

    Raises:
        ValueError: Names the argument and what is wrong with it.
    """
    for name, x in tensors.items():
        if x is None:
            continue
        if not x.is_cuda:
            raise ValueError(f"{name}: the fused kernels need a CUDA tensor, got device {x.device}")
        if x.dtype not in KERNEL_DTYPES:
            raise ValueError(f"{name}: the fused kernels take bfloat16 and float16, got {x.dtype}")
        if x.shape[-1] not in KERNEL_HEAD_DIMS:
            raise ValueError(f"{name}: head dim {x.shape[-1]} is not one of {KERNEL_HEAD_DIMS}")
        check_alignment(name, x)


def check_alignment(name: str, x: Tensor) -> None:
    """Raise ValueError unless rows can be fetched by tensor memory accesses."""
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        raise ValueError(f"{name}: the last dimension must be contiguous, its stride is {x.stride(-1)}")
    for dim in range(x.ndim - 1):
        step = x.stride(dim) * x.element_size()
        if x.shape[dim] > 1 and (step % ALIGNMENT_BYTES or step <= 0):
            raise ValueError(
                f"{name}: the stride of dimension {dim} must be a positive multiple of {ALIGNMENT_BYTES} bytes, "
                f"got {step} (strides {tuple(x.stride())})"
            )
    if x.data_ptr() % ALIGNMENT_BYTES:
        raise ValueError(f"{name}: its address must be a multiple of {ALIGNMENT_BYTES} bytes")


def frame_of(mask: Mask) -> int:
    """Tokens per frame of a mask; 0 is no mask, 1 is causal.

    Raises:
        ValueError: Anything else than None, "causal" or ("block-causal", tokens_per_frame >= 1).
    """
    if mask is None:
        return 0
    if mask == "causal":
        return 1
    if isinstance(mask, tuple | list) and len(mask) == 2 and mask[0] == "block-causal":
        tokens = mask[1]
        if isinstance(tokens, int) and not isinstance(tokens, bool) and tokens >= 1:
            return tokens
        raise ValueError(f"mask: tokens per frame must be an integer of at least 1, got {tokens!r}")
    raise ValueError(f'mask: expected None, "causal" or ("block-causal", tokens_per_frame), got {mask!r}')


def visible_keys(rows: Tensor, frame: int, keys: int) -> Tensor:
    """How many leading keys each query of `rows` [n] sees."""
    if frame == 0:
        return torch.full_like(rows, keys)
    return ((rows // frame + 1) * frame).clamp(max=keys)


def visible_pairs(queries: int, keys: int, frame: int) -> int:
    """Number of (query, key) pairs that the mask leaves."""
    if frame == 0:
        return queries * keys
    whole = queries // frame
    pairs = sum(min((i + 1) * frame, keys) for i in range(whole)) * frame
    return pairs + (queries - whole * frame) * min((whole + 1) * frame, keys)


def _factor_of(scale: float | None, head_dim: int) -> float:
    if scale is None:
        return 1.0 / math.sqrt(head_dim)
    try:
        factor = float(scale)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"scale: expected a number or None, got {type(scale).__name__}") from None
    if not math.isfinite(factor):
        raise ValueError(f"scale: must be finite, got {factor}")
    return factor


def _check_rank(x: Tensor, name: str) -> None:
    if x.ndim != 4:
        raise ValueError(f"{name}: expected [batch, heads, length, head dim], got shape {tuple(x.shape)}")


def _check_like(x: Tensor, name: str, other: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> None:
    """`x` has `shape`, `dtype` (that of `other` where None) and the device of `other`."""
    if len(shape) == 4:
        _check_rank(x, name)
    if tuple(x.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(x.shape)}")
    if x.dtype != (dtype or other.dtype):
        raise ValueError(f"{name}: expected dtype {dtype or other.dtype}, got {x.dtype}")
    if x.device != other.device:
        raise ValueError(f"{name}: expected device {other.device}, got {x.device}")
