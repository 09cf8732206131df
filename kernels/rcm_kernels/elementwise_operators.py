"""The elementwise kernels as PyTorch operators: opaque to compile, visible to dispatch modes, without autograd.

Defined on a plain `torch.library.Library`: they are called some ten times a block, and `custom_op`'s wrappers double
the host's time (measured on a CPU: 45 us a call against 25). The gradient is the business of `elementwise.py`.

Gradients come in any layout and are laid out here, inside the operator: compile traces a backward without strides.

With `save` an operator returns what a backward needs and every result on its own. Without, a value and its tangent
come as the halves of one tensor [2, ...], so that a product can take both as one matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rcm_kernels import elementwise_reference as reference
from rcm_kernels.row_plan import LONGEST_ROW, even_heads, even_rows

Optional = Tensor | None

FUSED_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NAMESPACE = "rcm_kernels"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def _fused(x: Tensor, row: int) -> bool:
    return x.is_cuda and x.dtype in FUSED_DTYPES and x.numel() > 0 and row <= LONGEST_ROW


def _outputs(x: Tensor, save: bool, count: int, tangents: tuple[bool, ...]) -> tuple[list[Tensor], list[Any]]:
    """(results to return, places to write: `count` values then their tangents or None), like contiguous x."""
    if save:
        values = [_empty(x) for _ in range(count)]
        rates = [_empty(x) if has else None for has in tangents]
        return [*values, *(rate for rate in rates if rate is not None)], [*values, *rates]
    results = [_empty(x, 2) if has else _empty(x) for has in tangents]
    values = [result[0] if has else result for result, has in zip(results, tangents, strict=True)]
    return results, [*values, *(result[1] if has else None for result, has in zip(results, tangents, strict=True))]


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _empty(x: Tensor, count: int = 0) -> Tensor:
    return x.new_empty((count, *x.shape) if count else x.shape)


def _layer_norm_tangents(tensors: tuple[Optional, ...], y: Optional, norm: bool) -> tuple[bool, ...]:
    """Whether (r, z) have tangents, for those that are computed."""
    before, after = any(t is not None for t in tensors[:3]), any(t is not None for t in tensors)
    return (*((before,) if y is not None else ()), *((after,) if norm else ()))


def _layer_norm(
    x: Tensor,
    y: Optional,
    g: Optional,
    f: Optional,
    s: Optional,
    tx: Optional,
    ty: Optional,
    tg: Optional,
    tf: Optional,
    ts: Optional,
    norm: bool,
    one: bool,
    eps: float,
    save: bool,
) -> list[Tensor]:
    tangents = _layer_norm_tangents((tx, ty, tg, tf, ts), y, norm)
    results, places = _outputs(x, save, len(tangents), tangents)
    stats = x.new_empty(*x.shape[:2], 2, dtype=_wide(x)) if save and norm else None
    count = len(tangents)
    values, rates = places[:count], places[count:]
    if y is None:
        values, rates = [None, *values], [None, *rates]
    if not norm:
        values, rates = [*values, None], [*rates, None]
    if _fused(x, x.shape[-1]):
        from rcm_kernels import norm_jvp

        with torch.cuda.device(x.device):
            norm_jvp.launch(x, y, g, f, s, tx, ty, tg, tf, ts, (*values, *rates, stats), one, eps)
    else:
        computed = reference.layer_norm(x, y, g, f, s, tx, ty, tg, tf, ts, norm, one, eps)
        _copy((*values, *rates, stats), computed)
    return results if stats is None else [*results, stats]


def _fake_layer_norm(x: Tensor, y: Optional, g: Any, f: Any, s: Any, *rest: Any) -> list[Tensor]:
    *tangents, norm, _, _, save = rest
    has = _layer_norm_tangents(tuple(tangents), y, norm)
    results, _ = _outputs(x, save, len(has), has)
    if save and norm:
        results.append(x.new_empty(*x.shape[:2], 2, dtype=_wide(x)))
    return results


def _layer_norm_backward(
    grad_r: Optional,
    grad_z: Optional,
    r: Tensor,
    stats: Optional,
    y: Optional,
    g: Optional,
    f: Optional,
    one: bool,
    wanted: list[bool],
) -> list[Tensor]:
    """The gradients asked for by `wanted` (x, y with a gate, gate, factor, shift), the last three [B, 1, D] wide."""
    want_x, want_y, *want_sums = wanted
    if not _fused(r, r.shape[-1]):
        computed = reference.layer_norm_backward(grad_r, grad_z, r, stats, y, g, f, one)
        rows = [
            grad.to(r.dtype) for grad, want in zip(computed[:2], wanted[:2], strict=True) if want and grad is not None
        ]
        return [*rows, *(grad for grad, want in zip(computed[2:], want_sums, strict=True) if want and grad is not None)]
    from rcm_kernels import norm_jvp

    grad_x, grad_y = (
        torch.empty_like(r, memory_format=torch.contiguous_format) if want else None for want in wanted[:2]
    )
    laid_r, laid_z = (None if grad is None else even_rows(grad) for grad in (grad_r, grad_z))
    with torch.cuda.device(r.device):
        sums = norm_jvp.launch_backward(
            laid_r, laid_z, r, stats, y, g, f, grad_x, grad_y, (want_sums[0], want_sums[1], want_sums[2]), one
        )
    added = [None if part is None else part.sum(1, keepdim=True) for part in sums]
    return [grad for grad in (grad_x, grad_y, *added) if grad is not None]


def _fake_layer_norm_backward(
    grad_r: Any, grad_z: Any, r: Tensor, stats: Any, y: Any, g: Any, f: Any, one: bool, wanted: list[bool]
) -> list[Tensor]:
    rows = [_empty(r) for want in wanted[:2] if want]
    return [*rows, *(r.new_empty(r.shape[0], 1, r.shape[2], dtype=_wide(r)) for want in wanted[2:] if want)]


def _rms_norm(
    x: Tensor, tx: Optional, weight: Tensor, table: Optional, interleaved: bool, eps: float, save: bool
) -> list[Tensor]:
    results, places = _outputs(x, save, 1, (tx is not None,))
    rstd = _fake_rstd(x, weight) if save else None
    if _fused(x, x.shape[2] * x.shape[3]):
        from rcm_kernels import rope_jvp

        with torch.cuda.device(x.device):
            rope_jvp.launch(x, tx, weight, table, (*places, rstd), interleaved, eps)
    else:
        _copy((*places, rstd), reference.rms_norm(x, tx, weight, table, interleaved, eps))
    return results if rstd is None else [*results, rstd]


def _fake_rms_norm(
    x: Tensor, tx: Optional, weight: Tensor, table: Any, interleaved: bool, eps: float, save: bool
) -> list[Tensor]:
    results, _ = _outputs(x, save, 1, (tx is not None,))
    return [*results, _fake_rstd(x, weight)] if save else results


def _fake_rstd(x: Tensor, weight: Tensor) -> Tensor:
    full = weight.shape[0] == x.shape[2] * x.shape[3]
    return x.new_empty(x.shape[:2] if full else x.shape[:3], dtype=_wide(x))


def _rms_norm_backward(
    grad: Tensor, x: Tensor, rstd: Tensor, weight: Tensor, table: Optional, interleaved: bool, wanted: list[bool]
) -> list[Tensor]:
    """The gradients asked for by `wanted` (x, weight), the weight's wide."""
    if not _fused(x, x.shape[2] * x.shape[3]):
        grad_x, sums = reference.rms_norm_backward(grad, x, rstd, weight, table, interleaved)
        return [one for one, want in zip((grad_x.to(x.dtype), sums), wanted, strict=True) if want]
    from rcm_kernels import rope_jvp

    out = torch.empty_like(x, memory_format=torch.contiguous_format) if wanted[0] else None
    with torch.cuda.device(x.device):
        partial = rope_jvp.launch_backward(even_heads(grad), x, rstd, weight, table, out, wanted[1], interleaved)
    return [one for one in (out, None if partial is None else partial.sum(0)) if one is not None]


def _fake_rms_norm_backward(
    grad: Any, x: Tensor, rstd: Any, weight: Tensor, table: Any, interleaved: bool, wanted: list[bool]
) -> list[Tensor]:
    sums = [weight.new_empty(weight.shape, dtype=_wide(x))] if wanted[1] else []
    return [*([_empty(x)] if wanted[0] else []), *sums]


def _activation(x: Tensor, tx: Optional, kind: str, save: bool) -> list[Tensor]:
    results, places = _outputs(x, save, 1, (tx is not None,))
    if _fused(x, 1):
        from rcm_kernels import gelu_jvp

        with torch.cuda.device(x.device):
            gelu_jvp.launch(x, tx, *places, kind)
    else:
        _copy(places, reference.activation(x, tx, kind))
    return results


def _fake_activation(x: Tensor, tx: Optional, kind: str, save: bool) -> list[Tensor]:
    return _outputs(x, save, 1, (tx is not None,))[0]


def _activation_backward(grad: Tensor, x: Tensor, kind: str) -> Tensor:
    out = _empty(x)
    if _fused(x, 1):
        from rcm_kernels import gelu_jvp

        with torch.cuda.device(x.device):
            gelu_jvp.launch(x, grad.contiguous(), None, out, kind)
    else:
        _copy((out,), reference.activation(x, grad, kind)[1:])
    return out


def _copy(places: Any, computed: Any) -> None:
    for place, value in zip(places, computed, strict=True):
        if place is not None:
            place.copy_(value)


def _define(name: str, signature: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    _library.define(f"{name}{signature}")
    for key in ("CPU", "CUDA"):
        _library.impl(name, run, key)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


layer_norm = _define(
    "layer_norm_jvp",
    "(Tensor x, Tensor? y, Tensor? g, Tensor? f, Tensor? s, Tensor? tx, Tensor? ty, Tensor? tg, Tensor? tf, "
    "Tensor? ts, bool norm, bool one, float eps, bool save) -> Tensor[]",
    _layer_norm,
    _fake_layer_norm,
)
layer_norm_backward = _define(
    "layer_norm_backward",
    "(Tensor? grad_r, Tensor? grad_z, Tensor r, Tensor? stats, Tensor? y, Tensor? g, Tensor? f, bool one, "
    "bool[] wanted) -> Tensor[]",
    _layer_norm_backward,
    _fake_layer_norm_backward,
)
rms_norm = _define(
    "rms_norm_jvp",
    "(Tensor x, Tensor? tx, Tensor weight, Tensor? table, bool interleaved, float eps, bool save) -> Tensor[]",
    _rms_norm,
    _fake_rms_norm,
)
rms_norm_backward = _define(
    "rms_norm_backward",
    "(Tensor grad, Tensor x, Tensor rstd, Tensor weight, Tensor? table, bool interleaved, bool[] wanted) -> Tensor[]",
    _rms_norm_backward,
    _fake_rms_norm_backward,
)
activation = _define(
    "activation_jvp", "(Tensor x, Tensor? tx, str kind, bool save) -> Tensor[]", _activation, _fake_activation
)
activation_backward = _define(
    "activation_backward", "(Tensor grad, Tensor x, str kind) -> Tensor", _activation_backward,
    lambda grad, x, kind: _empty(x),
)  # fmt: skip
