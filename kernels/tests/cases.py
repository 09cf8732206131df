"""Inputs and error measures shared by the tests and the benchmark."""

from __future__ import annotations

import torch
from torch import Tensor

from rcm_kernels.problem import frame_of
from rcm_kernels.reference import Result, emulated, fp64_rows


def normal(shape, dtype, device, seed, layout="bhld"):
    """N(0, 1) of shape [B, H, L, D]; layout "blhd" is the transposed view of a contiguous [B, L, H, D], "packed" one
    third of a packed projection."""
    generator = torch.Generator(device).manual_seed(seed)
    batch, heads, length, dim = shape
    if layout == "bhld":
        return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)
    width = 3 if layout == "packed" else 1
    flat = torch.randn(batch, length, width, heads, dim, generator=generator, device=device, dtype=torch.float32)
    return flat.to(dtype)[:, :, width // 2].transpose(1, 2)


def inputs(batch, heads, queries, keys, dim, *, dtype, device="cpu", pattern="qkv", layout="bhld", seed=0, scale=1.0):
    """(q, k, v, tq, tk, tv); tangents outside `pattern` are None."""
    q_shape, k_shape = (batch, heads, queries, dim), (batch, heads, keys, dim)
    shapes = (q_shape, k_shape, k_shape)
    primal = [normal(s, dtype, device, seed + i, layout) * scale for i, s in enumerate(shapes)]
    tangent = [
        normal(s, dtype, device, seed + 10 + i, layout) if name in pattern else None
        for i, (s, name) in enumerate(zip(shapes, "qkv", strict=True))
    ]
    return (*primal, *tangent)


FAMILIES = ("iid", "doubled", "tripled", "keys share a mean", "means in k v tk", "tq x10, means in k v")


def family(name, batch, heads, length, dim, *, dtype, device, seed=0):
    """The input families of jvp-kernels.md section 4.6."""
    q, k, v, tq, tk, tv = inputs(batch, heads, length, length, dim, dtype=torch.float32, device=device, seed=seed)
    generator = torch.Generator(device).manual_seed(seed + 77)
    mean = torch.randn(3, 1, heads, 1, dim, generator=generator, device=device)
    if name == "doubled":
        q, k = 2 * q, 2 * k
    elif name == "tripled":
        q, k = 3 * q, 3 * k
    elif name == "keys share a mean":
        k = k + mean[0]
    elif name == "means in k v tk":
        k, v, tk = k + mean[0], v + mean[1], tk + mean[2]
    elif name == "tq x10, means in k v":
        k, v, tq, tk, tv = k + mean[0], v + mean[1], 10 * tq, None, None
    return tuple(None if x is None else x.to(dtype) for x in (q, k, v, tq, tk, tv))


def sampled_rows(queries, device, count=48):
    """The first, some random and the last query rows, in order."""
    if queries <= 3 * count:
        return torch.arange(queries, device=device)
    generator = torch.Generator().manual_seed(queries)
    middle = torch.randint(count, queries - count, (count,), generator=generator).unique()
    rows = torch.cat([torch.arange(count), middle, torch.arange(queries - count, queries)])
    return rows.to(device)


def relative(actual: Tensor, expected: Tensor) -> float:
    """Relative Frobenius error of the worst (batch, head); NaN is infinite."""
    difference = (actual.double() - expected.double()).flatten(2).norm(dim=-1)
    size = expected.double().flatten(2).norm(dim=-1).clamp_min(1e-30)
    worst = (difference / size).max().item()
    return worst if worst == worst else float("inf")


def errors(result, args, *, scale=None, mask=None, heads=None) -> dict[str, float]:
    """Errors of out, tangent, lse (absolute) and mu (against the rms of tS) on sampled rows against fp64, and the
    tangent error of the emulation with the kernels' roundings."""
    q = args[0]
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    frame = frame_of(mask)
    rows = sampled_rows(q.shape[2], q.device)
    worst: dict[str, float] = {}
    for b, h in sorted({(0, 0), (q.shape[0] - 1, q.shape[1] - 1)} if heads is None else heads):
        one = [None if x is None else x[b : b + 1, h : h + 1] for x in args]
        expected = fp64_rows(*one, rows, scale=factor, frame=frame)
        got = Result(*(None if x is None else x[b : b + 1, h : h + 1][:, :, rows] for x in result))
        found = {"out": relative(got.out, expected.out), "lse": (got.lse - expected.lse).abs().max().item()}
        if expected.tangent is not None:
            found["tangent"] = relative(got.tangent, expected.tangent)
            size = max(expected.mu.double().square().mean().sqrt().item(), 1e-6)
            found["mu"] = (got.mu - expected.mu).double().square().mean().sqrt().item() / size
            copy = emulated(*one, rows, scale=factor, frame=frame)
            found["emulated"] = relative(copy.tangent, expected.tangent)
        for key, value in found.items():
            worst[key] = max(worst.get(key, 0.0), value if value == value else float("inf"))
    return worst
