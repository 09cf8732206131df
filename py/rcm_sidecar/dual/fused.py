"""The calls from `dual.ops` to the elementwise kernels of `rcm_kernels`, and the one place that decides to make them.

Everything here takes and returns Duals or Tensors like the primitive it serves. Tangents come back without a graph.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor

from rcm_sidecar.dual.number import Dual, DualOrTensor, join, split

Maybe = DualOrTensor | None

# Below this many elements a launch takes longer than the work, and the eager form has fewer Python calls around it.
SMALLEST = 1 << 16
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def runs_fused(x: Tensor) -> bool:
    """Whether `rcm_kernels` computes the norms, gates and activations of `x`; else the eager forms of `ops` do."""
    return x.is_cuda and x.dtype in DTYPES and x.numel() >= SMALLEST


def takes_rows(x: DualOrTensor, y: Maybe, *vectors: Maybe) -> bool:
    """Whether a fused norm or gate takes these: x and y [B, L, D], vectors [D] or [B or 1, 1, D]."""
    value = split(x)[0]
    branch = value if y is None else split(y)[0]
    if value.dim() != 3 or branch.shape != value.shape or not runs_fused(value):
        return False
    shapes = [split(vector)[0].shape for vector in vectors if vector is not None]
    return all(len(shape) == 1 or (len(shape) == 3 and shape[1] == 1) for shape in shapes)


def layer_norm(
    x: DualOrTensor,
    y: Maybe = None,
    gate: Maybe = None,
    factor: Maybe = None,
    shift: Maybe = None,
    *,
    norm: bool = True,
    one: bool = False,
    eps: float = 1e-6,
) -> tuple[DualOrTensor, DualOrTensor]:
    """`r = x + y gate` and `layer_norm(r) factor + shift` in one pass, both; see `rcm_kernels.layer_norm_jvp`.

    What is not computed (r without y, the norm with `norm=False`) comes back as `x`.
    """
    from rcm_kernels import LayerNormTangents, layer_norm_jvp

    parts = (x, y, gate, factor, shift)
    pairs = [(None, None) if part is None else split(part) for part in parts]
    tangents = LayerNormTangents(*(tangent for _, tangent in pairs))
    result = layer_norm_jvp(*(value for value, _ in pairs), tangents, norm=norm, one=one, eps=eps)
    before = [part for part in parts[:3] if part is not None]
    after = [part for part in parts if part is not None]
    residual = x if result.residual is None else _joined(result.residual, result.residual_tangent, before)
    return residual, x if result.out is None else _joined(result.out, result.tangent, after)


def takes_heads(x: DualOrTensor) -> bool:
    """Whether the fused RMS norm takes `x`: [B, L, D] or [B, L, H, d] with an even last axis."""
    value = split(x)[0]
    return value.dim() in (3, 4) and value.shape[-1] % 2 == 0 and runs_fused(value)


def rms_norm(
    x: DualOrTensor, weight: Tensor, eps: float, table: Tensor | None = None, interleaved: bool = True
) -> DualOrTensor:
    """RMS norm and rotary positions of x [B, L, H, d] in one pass; see `rcm_kernels.rms_norm_jvp`."""
    from rcm_kernels import rms_norm_jvp

    value, tangent = split(x)
    out, rate = rms_norm_jvp(value, weight, table, tangent, interleaved=interleaved, eps=eps)
    return _joined(out, rate, [x])


def activation(x: DualOrTensor, kind: Literal["gelu_tanh", "gelu_erf", "silu"]) -> DualOrTensor:
    """GELU or SiLU; see `rcm_kernels.activation_jvp`."""
    from rcm_kernels import activation_jvp

    value, tangent = split(x)
    out, rate = activation_jvp(value, kind, tangent)
    return _joined(out, rate, [x])


def adjacent_halves(x: Tensor, tangent: Tensor) -> Tensor | None:
    """[2, ...] over both without a copy when `tangent` lies right behind `x` in memory, else None.

    Fused passes without gradient write a value and its tangent that way. Compiled code knows no addresses: None there.
    """
    if torch.compiler.is_compiling() or not (x.is_contiguous() and tangent.is_contiguous()):
        return None
    if x.shape != tangent.shape or x.dtype != tangent.dtype or x.device != tangent.device:
        return None
    size = x.numel() * x.element_size()
    if tangent.data_ptr() != x.data_ptr() + size or x.untyped_storage().data_ptr() != _storage(tangent):
        return None
    return x.as_strided((2, *x.shape), (x.numel(), *x.stride()))


def _storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _joined(value: Tensor, tangent: Any, inputs: list[DualOrTensor]) -> DualOrTensor:
    """A Dual when an input was one; the kernel's tangent has a graph node that only raises."""
    if not any(isinstance(x, Dual) for x in inputs):
        return value
    return cast(Dual, join(value, None if tangent is None else tangent.detach(), *inputs))
