"""Inputs for the elementwise kernels, and their launches compared with the fp64 reference; for any device."""

from __future__ import annotations

import torch

from rcm_kernels import elementwise_reference as reference

F64 = torch.float64


def randn(generator, *shape, dtype, device="cpu", mean=0.0):
    return (mean + torch.randn(*shape, generator=generator, device=device, dtype=torch.float32)).to(dtype)


def spread(x, width):
    """`x` [B, L, ...] as a view of rows that lie further apart: one part of a packed projection."""
    flat = x.flatten(2)
    wide = torch.full((*flat.shape[:2], width, flat.shape[2]), float("nan"), dtype=x.dtype, device=x.device)
    wide[:, :, width // 2] = flat
    return wide[:, :, width // 2].unflatten(2, x.shape[2:]) if x.ndim > 3 else wide[:, :, width // 2]


def wide(x):
    return None if x is None else x.to(F64) if x.is_floating_point() else x


def relative(actual, expected):
    """Relative Frobenius error; what is not finite is infinitely wrong."""
    error = ((actual.to(F64) - expected).norm() / expected.norm().clamp_min(1e-30)).item()
    return error if error == error else float("inf")


def layer_norm_inputs(batch, length, dim, *, dtype, device="cpu", seed=0, parts="ygfs", tangents="xygfs", width=1):
    """(x, y, g, f, s, tx, ty, tg, tf, ts); `parts` and `tangents` name what is there. Vectors are float32 and strided,
    as those of a block's modulation."""
    generator = torch.Generator(device).manual_seed(seed)
    rows = {name: spread(randn(generator, batch, length, dim, dtype=dtype, device=device, mean=m), width)
            for name, m in (("x", 0.5), ("y", 0.2))}  # fmt: skip
    rates = {name: spread(randn(generator, batch, length, dim, dtype=dtype, device=device, mean=0.3), width)
             for name in "xy"}  # fmt: skip
    table = randn(generator, batch, 6, dim, dtype=torch.float32, device=device)
    vectors = {name: table[:, i : i + 1] for i, name in enumerate("gfs")}
    vector_rates = {name: table[:, i + 3 : i + 4] for i, name in enumerate("gfs")}
    primal = {**rows, **vectors}
    tangent = {**rates, **vector_rates}
    given = [primal[name] if name == "x" or name in parts else None for name in "xygfs"]
    moving = [tangent[name] if name in tangents and (name == "x" or name in parts) else None for name in "xygfs"]
    return (*given, *moving)


def layer_norm_errors(run, args, *, norm=True, one=True):
    """Relative errors of r, z, dr, dz and the statistics of `run` (like the reference) against fp64."""
    got = run(*args, norm, one, 1e-6)
    expected = reference.layer_norm(*(wide(a) for a in args), norm, one, 1e-6)
    return pairwise(("r", "z", "tr", "tz", "stats"), got, expected)


def layer_norm_backward_errors(run, args, seed=1, *, norm=True, one=True):
    """Likewise of the gradients; r and the statistics are those of the reference on the rounded inputs."""
    x, y, g, f, s = args[:5]
    generator = torch.Generator(x.device).manual_seed(seed)
    r, _, _, _, stats = reference.layer_norm(*args[:5], *(None,) * 5, norm, one, 1e-6)
    r = x if r is None else r
    grads = [randn(generator, *x.shape, dtype=x.dtype, device=x.device, mean=0.1) for _ in range(2)]
    grad_r, grad_z = (grads[0] if y is not None else None), (grads[1] if norm else None)
    given = (grad_r, grad_z, r, stats, y, g, f)
    exact = reference.layer_norm_backward(*(wide(a) for a in given), one)
    exact = [None if (want is None) else value for want, value in zip((x, g, g, f, s), exact, strict=True)]
    return pairwise(("x", "y", "g", "f", "s"), run(*given, one, s is not None), exact)


def rms_inputs(batch, length, heads, dim, *, dtype, device="cpu", seed=0, full=True, table=True, tangent=True, width=1):
    """(x, tx, weight, table)."""
    generator = torch.Generator(device).manual_seed(seed)
    x, tx = (
        spread(randn(generator, batch, length, heads, dim, dtype=dtype, device=device, mean=0.4), width)
        for _ in range(2)
    )
    weight = randn(generator, heads * dim if full else dim, dtype=dtype, device=device, mean=1.0)
    angles = torch.rand(length, dim // 2, generator=generator, device=device) * 6
    turns = torch.stack([angles.cos(), angles.sin()], -1)
    return x, tx if tangent else None, weight, turns if table else None


def rms_errors(run, args, interleaved):
    got = run(*args, interleaved, 1e-6)
    expected = reference.rms_norm(*(wide(a) for a in args), interleaved, 1e-6)
    return pairwise(("y", "ty", "rstd"), got, expected)


def rms_backward_errors(run, args, interleaved, seed=1):
    x, _, weight, table = args
    generator = torch.Generator(x.device).manual_seed(seed)
    grad = randn(generator, *x.shape, dtype=x.dtype, device=x.device, mean=0.1)
    rstd = reference.rms_norm(x, None, weight, table, interleaved, 1e-6)[2]
    given = (grad, x, rstd, weight, table)
    return pairwise(("x", "weight"), run(*given, interleaved),
                    reference.rms_norm_backward(*(wide(a) for a in given), interleaved))  # fmt: skip


def activation_errors(run, x, tx, kind):
    return pairwise(("y", "ty"), run(x, tx, kind), reference.activation(wide(x), wide(tx), kind))


def pairwise(names, got, expected):
    """Errors by name; a result that one side has and the other has not is infinitely wrong."""
    found = {}
    for name, one, other in zip(names, got, expected, strict=True):
        if (one is None) != (other is None):
            found[name] = float("inf")
        elif one is not None:
            found[name] = relative(one, other)
    return found
