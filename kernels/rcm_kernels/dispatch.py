"""Which implementation runs one call: Hopper Gluon, portable Triton, or eager torch.

The choice follows the device, the dtype, the head dim and which tangents there are. `RCM_KERNELS_ATTENTION` or
`use_backend` names one; a named backend that cannot run the call is an error, never a silent other one. Calls without
tangents go to torch's own kernels under "auto" and "hopper" (there is no faster one of ours). Tiles come from
the committed table tiles.json: nothing is tuned at run time.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from rcm_kernels.plain import has_plain_kernel, plain_forward
from rcm_kernels.problem import KERNEL_DTYPES, KERNEL_HEAD_DIMS, Problem, check_for_kernels
from rcm_kernels.reference import Result, eager

Backend: TypeAlias = Literal["auto", "hopper", "triton", "eager"]

BACKENDS: tuple[Backend, ...] = ("auto", "hopper", "triton", "eager")
ENVIRONMENT_VARIABLE = "RCM_KERNELS_ATTENTION"
HOPPER_HEAD_DIMS = (64, 96, 128)

_chosen: ContextVar[Backend | None] = ContextVar("rcm_kernels_backend", default=None)


@contextlib.contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """Within the context, calls run on `name`; it wins over the environment variable.

    Raises:
        ValueError: Not one of auto, hopper, triton, eager.
    """
    token = _chosen.set(_known(name, "name"))
    try:
        yield
    finally:
        _chosen.reset(token)


def requested_backend() -> Backend:
    """The backend asked for by `use_backend` or the environment, else "auto"."""
    return _chosen.get() or _known(os.environ.get(ENVIRONMENT_VARIABLE) or "auto", ENVIRONMENT_VARIABLE)


def forward(
    q: Tensor, k: Tensor, v: Tensor, tq: Tensor | None, tk: Tensor | None, tv: Tensor | None, problem: Problem
) -> Result:
    """Run a checked call on the chosen backend.

    Raises:
        ValueError: The named backend cannot run it, or an argument's dtype, head dim or strides do not suit.
    """
    plain = tq is None and tk is None and tv is None and requested_backend() in ("auto", "hopper")
    if plain and has_plain_kernel(q, k, problem):
        out, lse = plain_forward(q, k, v, problem)
        return Result(out, None, lse, None)
    backend = choose(q, tq, tk, tv)
    if backend == "eager":
        return eager(q, k, v, tq, tk, tv, scale=problem.scale, frame=problem.frame)
    named = {"q": q, "k": k, "v": v, "tq": tq, "tk": tk, "tv": tv}
    check_for_kernels(named)
    with torch.cuda.device(q.device):
        if backend == "hopper" and tq is not None:  # as `choose` saw to
            from rcm_kernels import hopper_launch

            return hopper_launch.launch(q, k, v, tq, tk, tv, problem, **hopper_tile(problem, tk is not None))
        from rcm_kernels import attention_jvp_portable

        return attention_jvp_portable.launch(q, k, v, tq, tk, tv, problem, **triton_tile(problem, q.device))


def choose(q: Tensor, tq: Tensor | None, tk: Tensor | None, tv: Tensor | None) -> Literal["hopper", "triton", "eager"]:
    """The backend for a call with these tensors; see `requested_backend`.

    Raises:
        ValueError: The requested backend cannot run it.
    """
    asked = requested_backend()
    if asked == "eager":
        return "eager"
    why_not_hopper = _why_not_hopper(q, tq, tk, tv)
    without_tangents = tq is None and tk is None and tv is None
    if asked == "hopper" and not (without_tangents and q.is_cuda):
        if why_not_hopper:
            raise ValueError(f"attention backend hopper: {why_not_hopper}")
        return "hopper"
    why_not_triton = _why_not_triton(q)
    if asked == "triton":
        if why_not_triton:
            raise ValueError(f"attention backend triton: {why_not_triton}")
        return "triton"
    if not why_not_hopper:
        return "hopper"
    if not why_not_triton:
        return "triton"
    if q.is_cuda and q.dtype in KERNEL_DTYPES and q.shape[-1] not in KERNEL_HEAD_DIMS:
        raise ValueError(f"q: {why_not_triton}")
    return "eager"


def hopper_tile(problem: Problem, full: bool) -> dict[str, Any]:
    """Tuned options of the Hopper kernel."""
    columns = 64 if problem.head_dim <= 64 else 128
    return dict(tile_table()["hopper"][f"{columns}/{'full' if full else 'constant'}"])


def triton_tile(problem: Problem, device: torch.device) -> dict[str, Any]:
    """Tuned options of the portable kernel, by compute capability and head dim."""
    major = torch.cuda.get_device_capability(device)[0] if torch.version.hip is None else 0
    table = tile_table()["triton"]
    columns = 1 << (problem.head_dim - 1).bit_length()
    return dict(table.get(f"{major}/{columns}") or table[f"other/{columns}"])


@cache
def tile_table() -> dict[str, Any]:
    """The committed table of tuned tiles."""
    table: dict[str, Any] = json.loads((Path(__file__).parent / "tiles.json").read_text())
    return table


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


@cache
def has_gluon() -> bool:
    """Whether the installed Triton has what the Hopper kernel is written in."""
    if not has_triton():
        return False
    try:
        return importlib.util.find_spec("triton.experimental.gluon.language.nvidia.hopper") is not None
    except ImportError:
        return False


def _why_not_triton(q: Tensor) -> str | None:
    if not q.is_cuda:
        return f"device {q.device} is not a CUDA device"
    if not has_triton():
        return "Triton is not installed"
    if q.dtype not in KERNEL_DTYPES:
        return f"dtype {q.dtype} is not bfloat16 or float16"
    if q.shape[-1] not in KERNEL_HEAD_DIMS:
        return f"head dim {q.shape[-1]} is not one of {KERNEL_HEAD_DIMS}"
    return None


def _why_not_hopper(q: Tensor, tq: Tensor | None, tk: Tensor | None, tv: Tensor | None) -> str | None:
    reason = _why_not_triton(q)
    if reason:
        return reason
    if q.shape[-1] not in HOPPER_HEAD_DIMS:
        return f"head dim {q.shape[-1]} is not one of {HOPPER_HEAD_DIMS}"
    if tq is None or (tk is None) != (tv is None):
        return "it takes tangents of q, k and v, or of q alone"
    if torch.version.hip is not None or torch.cuda.get_device_capability(q.device) != (9, 0):
        return "the device is not a Hopper GPU (compute capability 9.0)"
    if not has_gluon():
        return "this Triton has no Gluon for Hopper"
    return None


def _known(name: str, argument: str) -> Backend:
    for backend in BACKENDS:
        if name == backend:
            return backend
    raise ValueError(f"{argument}: expected one of {', '.join(BACKENDS)}, got {name!r}")
