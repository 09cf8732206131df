"""The host side of the Hopper kernel: tensor maps, the plan of tiles, the launch, the merge of split tiles."""

# mypy: ignore-errors
from __future__ import annotations

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from rcm_kernels.attention_jvp_hopper import attention_jvp_kernel
from rcm_kernels.attention_jvp_portable import row_strides
from rcm_kernels.plan import ROWS, multiprocessors, plan_tiles
from rcm_kernels.problem import Problem
from rcm_kernels.reference import Result
from rcm_kernels.split_merge import merge_split_tiles

CONSUMER_REGISTERS = 240
PRODUCER_REGISTERS = 24
LAUNCH_REGISTERS = 168  # a thread, before the warpgroups take and give their shares
BOX_LAYOUT = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor,
    tk: Tensor | None,
    tv: Tensor | None,
    problem: Problem,
    *,
    block_keys: int,
    stages: int,
    lazy: int,
    share_q: bool,
    turns: bool,
    release: int,
    split: bool | None = None,
) -> Result:
    """Run the kernel on checked arguments; `tk` and `tv` are both given or both None.

    Args:
        q: [B, H, Lq, D], D one of 64, 96, 128.
        k: [B, H, Lk, D].
        v: [B, H, Lk, D].
        tq: Tangent of `q`; likewise `tk`, `tv`.
        tk: See `tq`.
        tv: See `tq`.
        problem: Of these arguments.
        block_keys: Keys a step.
        stages: Steps whose keys and values are in shared memory.
        lazy: 0, or log2 of how much a row may grow before it is rescaled. At most 8; 0 for float16, whose range ends at
            2^16.
        share_q: Read half of Q once for two products (all of it at D = 64).
        turns: The consumers take turns.
        release: When K is handed back: 0 after the score products, 1 after the last product is issued, 2 at the end.
        split: Split the tiles of the last wave; None decides by the time it would save.
    """
    out, tangent = torch.empty_like(q), torch.empty_like(q)
    lse = torch.empty(q.shape[:3], device=q.device, dtype=torch.float32)
    mu = torch.empty_like(lse)
    columns = 64 if problem.head_dim <= 64 else 128
    full = tk is not None
    masked = problem.frame > 0
    plan = plan_tiles(problem, multiprocessors(q.device.index or 0), block_keys, columns, full, split)
    slots = torch.empty(plan.slots * ROWS * (2 * columns + 2), device=q.device, dtype=torch.float32)
    part_o, part_t, part_lse, part_mu = slots.split([plan.slots * ROWS * n for n in (columns, columns, 1, 1)])
    dk, dv = describe(k, block_keys, 64), describe(v, block_keys, columns)
    attention_jvp_kernel[(plan.programs,)](
        describe(q, 64, 64),
        describe(tq, 64, 64),
        dk,
        describe(tk, block_keys, 64) if full else dk,
        dv,
        describe(tv, block_keys, columns) if full else dv,
        describe(out, 64, columns),
        describe(tangent, 64, columns),
        lse,
        mu,
        part_o,
        part_t,
        part_lse,
        part_mu,
        problem.scale,
        problem.heads,
        problem.queries,
        problem.keys,
        plan.tiles_per_head,
        plan.tiles,
        problem.batch * problem.heads,
        max(problem.frame, 1),
        plan.whole,
        plan.units,
        plan.stretch,
        plan.steps,
        D=columns,
        BN=block_keys,
        NS=stages,
        HAS_TK=full,
        CAUSAL=masked,
        SPLIT=plan.slots > 0,
        LAZY=lazy if q.dtype == torch.bfloat16 else 0,
        QREG=share_q,
        TURNS=turns,
        RELEASE=release,
        CR=CONSUMER_REGISTERS,
        PR=PRODUCER_REGISTERS,
        num_warps=4,
        maxnreg=LAUNCH_REGISTERS,
    )
    result = Result(out, tangent, lse, mu)
    if plan.slots:
        merge_split_tiles((part_o, part_t, part_lse, part_mu), result, plan, columns)
    return result


def describe(x: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """How boxes of [rows, columns] of a [B, H, L, D] tensor travel to and from shared memory."""
    return TensorDescriptor(x, list(x.shape), row_strides(x), [1, 1, rows, columns], BOX_LAYOUT)
