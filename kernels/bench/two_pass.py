"""The rival of the fused pass: torch's own attention forward, then a kernel that makes the tangent from its O and LSE.

The tangent kernel needs no online softmax and one accumulator instead of two, but it computes the scores again: 5
products after the forward's 2, against 6 of the fused pass (3 + 2 against 4 with constant keys and values). Only the
benchmark uses it, to show that the fused pass is the faster of the two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcm_kernels.attention_jvp_portable import LOG2E, _rows, describe
from rcm_kernels.plain import plain_forward
from rcm_kernels.problem import Problem

# (rows, keys, stages, warps) tried for each shape; the fastest counts.
TILES = {
    64: ((128, 64, 2, 8), (128, 64, 3, 8), (128, 128, 2, 8), (64, 64, 3, 4)),
    128: ((128, 64, 2, 8), (128, 32, 3, 8), (64, 64, 2, 4)),
}


@triton.jit(do_not_specialize=["H", "Lq", "Lk", "tiles_per_head"])
def tangent_kernel(dq, dk, dv, dtq, dtk, dtv, d_out, d_tangent, LSE, scale, H, Lq, Lk, tiles_per_head,
                   D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CONSTANT: tl.constexpr):  # fmt: skip
    """One program per BM query rows of one head; without CONSTANT keys and values have tangents too."""
    index = tl.program_id(0)
    bh = index // tiles_per_head
    row0 = index % tiles_per_head * BM
    b = bh // H
    h = bh % H
    q = _rows(dq, b, h, row0, BM, D)
    tq = _rows(dtq, b, h, row0, BM, D)
    rows = row0 + tl.arange(0, BM)
    lse = tl.load(LSE + bh.to(tl.int64) * Lq + rows, mask=rows < Lq, other=0.0) * LOG2E
    mu = tl.zeros([BM], tl.float32)
    t = tl.zeros([BM, D], tl.float32)
    for n in tl.range(0, Lk, BN):
        k = _rows(dk, b, h, n, BN, D)
        s = tl.dot(q, k.T)
        ts = tl.dot(tq, k.T)
        if not CONSTANT:
            ts = tl.dot(q, _rows(dtk, b, h, n, BN, D).T, ts)
        s = tl.where((n + tl.arange(0, BN) < Lk)[None, :], s * (scale * LOG2E), -float("inf"))
        p = tl.math.exp2(s - lse[:, None])
        v = _rows(dv, b, h, n, BN, D)
        if not CONSTANT:
            t = tl.dot(p.to(v.dtype), _rows(dtv, b, h, n, BN, D), t)
        low = (p * (ts * scale)).to(v.dtype)
        mu += tl.sum(low.to(tl.float32), 1)
        t = tl.dot(low, v, t)
    out = _rows(d_out, b, h, row0, BM, D).to(tl.float32)
    d_tangent.store([b, h, row0, 0], (t - mu[:, None] * out).to(q.dtype).reshape(1, 1, BM, D))


def two_pass(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor,
    tk: Tensor | None,
    tv: Tensor | None,
    problem: Problem,
    tile: tuple[int, int, int, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """(out, tangent, lse) of an unmasked call; `tk` and `tv` are both given or both None.

    Args:
        q: [B, H, Lq, D], bf16 or fp16 on a GPU; the others as in `attention_jvp`.
        k: See `q`.
        v: See `q`.
        tq: See `q`.
        tk: See `q`.
        tv: See `q`.
        problem: Of the call.
        tile: One of `TILES`.
    """
    rows, keys, stages, warps = tile
    out, lse = plain_forward(q, k, v, problem)
    tangent = torch.empty_like(q)
    tiles_per_head = triton.cdiv(problem.queries, rows)
    dim = problem.head_dim
    dq, dk, dv = (describe(x, n, dim) for x, n in ((q, rows), (k, keys), (v, keys)))
    tangent_kernel[(tiles_per_head * problem.batch * problem.heads,)](
        dq,
        dk,
        dv,
        describe(tq, rows, dim),
        dk if tk is None else describe(tk, keys, dim),
        dv if tv is None else describe(tv, keys, dim),
        describe(out, rows, dim),
        describe(tangent, rows, dim),
        lse,
        problem.scale,
        problem.heads,
        problem.queries,
        problem.keys,
        tiles_per_head,
        D=dim,
        BM=rows,
        BN=keys,
        CONSTANT=tk is None,
        num_stages=stages,
        num_warps=warps,
    )
    return out, tangent, lse
