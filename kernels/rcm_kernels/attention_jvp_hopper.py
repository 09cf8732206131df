"""Attention with a tangent on Hopper, in Gluon: one TMA producer warp and two 64-row consumer warpgroups.

Gluon has no interpreter, so this file is tested by offline compilation (registers, spills, matrix instructions) and on
the chip. Its maths is that of `attention_jvp_portable.py`; the spec is jvp-kernels.md sections 1.2, 4.1 to 4.3. One
step of a consumer, for its 64 rows and BN keys:

    S = Q K^T, tS = Q tK^T + tQ K^T      asynchronous; the softmax of S runs under the tS products
    O += P V,  T += P tV                 asynchronous; H = P * (tS - c) runs under them
    T += H V

c is the row's mean of tS over the first BN keys: any row constant cancels in T - mu O, and taking it off keeps the
rounding of H small. mu sums the rounded H, the values the tensor cores see.

What made it fast, each measured (docs/results/kernels.md):
* LAZY: O and T are rescaled only when some row of a warp grew by more than 2^LAZY over its reference m. Exact, since
  everything is relative to m, whatever m is. The decision is a vote inside one warp.
* Packed rounding of H: the plain casts take the unit that computes exp2, one value at a time.
* Row sums stay spread over a row's four lanes until the end.
* QREG: the first 64 columns of Q are read from shared memory once for S and Q tK^T.
* TURNS: the consumers issue their score products in turn, so that one's softmax runs under the other's products.
* A persistent grid; when the tiles do not fill the last wave, that wave's tiles are split over their keys and `merge`
  combines the parts.
"""

# mypy: ignore-errors
from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from rcm_kernels.hopper_pieces import (
    GROWN,
    LN2,
    LOG2E,
    key_end,
    lane_sum,
    round_scores,
    scale_rows,
    work_item,
    work_items,
)


@gluon.jit
def _producer(
    descs,
    bufs,
    bars,
    plan,
    BN: gl.constexpr,
    D: gl.constexpr,
    NS: gl.constexpr,
    HAS_TK: gl.constexpr,
    CAUSAL: gl.constexpr,
    SPLIT: gl.constexpr,
):
    dq, dtq, dk, dtk, dv, dtv = descs
    q_s, tq_s, k_s, v_s, tv_s = bufs
    qr, kr, vr, ke, ve, turn = bars
    CB: gl.constexpr = D // 64
    PARTS: gl.constexpr = 2 if HAS_TK else 1
    QB: gl.constexpr = 64 * 64 * 2
    it = 0
    for item in range(0, work_items(plan, SPLIT)):
        row0, b, h, first, end, slot = work_item(item, plan, BN, CAUSAL, SPLIT)
        for n in range(first, end, BN):
            i = it % NS
            ph = (it // NS) & 1
            mbarrier.wait(ke.index(i), ph ^ 1)
            mbarrier.expect(kr.index(i), PARTS * BN * D * 2)
            for cb in gl.static_range(CB):
                tma.async_copy_global_to_shared(dk, [b, h, n, cb * 64], kr.index(i), k_s.index((i * CB + cb) * PARTS))
                if HAS_TK:
                    tma.async_copy_global_to_shared(
                        dtk, [b, h, n, cb * 64], kr.index(i), k_s.index((i * CB + cb) * PARTS + 1)
                    )
            if n == first:
                if it > 0:  # Q is free when both consumers have released the last K of the tile before
                    mbarrier.wait(ke.index((it - 1) % NS), ((it - 1) // NS) & 1)
                for w in gl.static_range(2):
                    mbarrier.expect(qr.index(w), 2 * CB * QB)
                    for cb in gl.static_range(CB):
                        tma.async_copy_global_to_shared(
                            dq, [b, h, row0 + w * 64, cb * 64], qr.index(w), q_s.index(w * CB + cb)
                        )
                        tma.async_copy_global_to_shared(
                            dtq, [b, h, row0 + w * 64, cb * 64], qr.index(w), tq_s.index(w * CB + cb)
                        )
            mbarrier.wait(ve.index(i), ph ^ 1)
            mbarrier.expect(vr.index(i), PARTS * BN * D * 2)
            tma.async_copy_global_to_shared(dv, [b, h, n, 0], vr.index(i), v_s.index(i))
            if HAS_TK:
                tma.async_copy_global_to_shared(dtv, [b, h, n, 0], vr.index(i), tv_s.index(i))
            it += 1


@gluon.jit
def _consumer(
    descs,
    bufs,
    bars,
    outs,
    plan,
    sm_scale,
    W: gl.constexpr,
    BN: gl.constexpr,
    D: gl.constexpr,
    NS: gl.constexpr,
    HAS_TK: gl.constexpr,
    CAUSAL: gl.constexpr,
    SPLIT: gl.constexpr,
    LAZY: gl.constexpr,
    QREG: gl.constexpr,
    TURNS: gl.constexpr,
    RELEASE: gl.constexpr,
    DT: gl.constexpr,
):
    q_s, tq_s, k_s, v_s, tv_s, o_s = bufs
    qr, kr, vr, ke, ve, turn = bars
    dO, dT = descs
    LSE, MU, part_o, part_t, part_lse, part_mu = outs
    H, Lq, Lk, tiles_per_head, tiles, heads, frame, whole, units, stretch, steps = plan
    CB: gl.constexpr = D // 64
    PARTS: gl.constexpr = 2 if HAS_TK else 1
    OUTS: gl.constexpr = 1 if D == 128 and HAS_TK else 2
    SL: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BN, 16])
    OL: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, D, 16])
    PL: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=OL, k_width=2)
    QL: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=SL, k_width=2)
    SR: gl.constexpr = gl.SliceLayout(1, SL)
    OR: gl.constexpr = gl.SliceLayout(1, OL)
    zs = gl.zeros([64, BN], gl.float32, layout=SL)
    zl = lane_sum(zs, BN)
    LR: gl.constexpr = gl.SliceLayout(1, zl.type.layout)
    sc = sm_scale * LOG2E
    cols = gl.arange(0, BN, layout=gl.SliceLayout(0, SL))
    rows = W * 64 + gl.arange(0, 64, layout=SR)
    it = 0
    qi = 0
    for item in range(0, work_items(plan, SPLIT)):
        row0, b, h, first, end, slot = work_item(item, plan, BN, CAUSAL, SPLIT)
        free = key_end(row0 + W * 64, Lq, Lk, frame, CAUSAL)  # up to here no row of this warpgroup is masked
        mbarrier.wait(qr.index(W), qi & 1)
        m = gl.full([64], -float("inf"), gl.float32, layout=SR)
        c = gl.full([64], 0.0, gl.float32, layout=SR)
        l = zl
        mu = zl
        o = gl.zeros([64, D], gl.float32, layout=OL)
        t = gl.zeros([64, D], gl.float32, layout=OL)
        for n in range(first, end, BN):
            i = it % NS
            ph = (it // NS) & 1
            if HAS_TK and QREG:
                q0 = q_s.index(W * CB).load(QL)
            mbarrier.wait(kr.index(i), ph)
            if TURNS:
                mbarrier.wait(turn.index(W), it & 1)
            s_t = zs
            ts_t = zs
            if HAS_TK and QREG:
                s_t = warpgroup_mma(q0, k_s.index(i * CB * 2).permute((1, 0)), s_t, use_acc=False, is_async=True)
                ts_t = warpgroup_mma(q0, k_s.index(i * CB * 2 + 1).permute((1, 0)), ts_t, use_acc=False, is_async=True)
                for cb in gl.static_range(1, CB):
                    s_t = warpgroup_mma(
                        q_s.index(W * CB + cb), k_s.index((i * CB + cb) * 2).permute((1, 0)), s_t, is_async=True
                    )
                for cb in gl.static_range(1, CB):
                    ts_t = warpgroup_mma(
                        q_s.index(W * CB + cb), k_s.index((i * CB + cb) * 2 + 1).permute((1, 0)), ts_t, is_async=True
                    )
                for cb in gl.static_range(CB):
                    ts_t = warpgroup_mma(
                        tq_s.index(W * CB + cb), k_s.index((i * CB + cb) * 2).permute((1, 0)), ts_t, is_async=True
                    )
                s = warpgroup_mma_wait(num_outstanding=2 * CB - 1, deps=(s_t,))
            else:
                for cb in gl.static_range(CB):
                    s_t = warpgroup_mma(
                        q_s.index(W * CB + cb),
                        k_s.index((i * CB + cb) * PARTS).permute((1, 0)),
                        s_t,
                        use_acc=cb > 0,
                        is_async=True,
                    )
                for cb in gl.static_range(CB):
                    ts_t = warpgroup_mma(
                        tq_s.index(W * CB + cb),
                        k_s.index((i * CB + cb) * PARTS).permute((1, 0)),
                        ts_t,
                        use_acc=cb > 0,
                        is_async=True,
                    )
                if HAS_TK:
                    for cb in gl.static_range(CB):
                        ts_t = warpgroup_mma(
                            q_s.index(W * CB + cb),
                            k_s.index((i * CB + cb) * 2 + 1).permute((1, 0)),
                            ts_t,
                            is_async=True,
                        )
                s = warpgroup_mma_wait(num_outstanding=PARTS * CB, deps=(s_t,))
            if TURNS:
                mbarrier.arrive(turn.index(1 - W), count=1)
            if n + BN > free:
                if CAUSAL:
                    lim = key_end(row0 + rows, Lq, Lk, frame, CAUSAL)
                    s = gl.where((n + cols)[None, :] < lim[:, None], s, -float("inf"))
                else:
                    s = gl.where((n + cols < end)[None, :], s, -float("inf"))
            top = gl.max(s, 1) * sc
            if LAZY > 0:
                grown = gl.inline_asm_elementwise(
                    GROWN, "=r,=r,f,f,f,f", [top, m + LAZY], dtype=gl.int32, is_pure=False, pack=2
                )
                mn = gl.where(grown != 0, gl.maximum(m, top), m)
            else:
                mn = gl.maximum(m, top)
            p = gl.exp2(s * sc - mn[:, None])
            a = gl.exp2(m - mn)
            m = mn
            al = gl.convert_layout(a, LR)[:, None]
            l = l * al + lane_sum(p, BN)
            ao = gl.convert_layout(a, OR)
            if LAZY > 0:
                go = gl.convert_layout(grown, OR)
                o = scale_rows(o, ao, go)
                t = scale_rows(t, ao, go)
            else:
                o = o * ao[:, None]
                t = t * ao[:, None]
            pb = gl.convert_layout(p.to(DT), PL)
            mbarrier.wait(vr.index(i), ph)
            o_t = warpgroup_mma(pb, v_s.index(i), o, is_async=True)
            t_t = t
            if HAS_TK:
                t_t = warpgroup_mma(pb, tv_s.index(i), t, is_async=True)
            ts = warpgroup_mma_wait(num_outstanding=PARTS, deps=(ts_t,))
            if RELEASE == 0:
                mbarrier.arrive(ke.index(i), count=1)
            if n == first:
                c = gl.sum(ts, 1) * (sm_scale / gl.minimum(Lk - first, BN).to(gl.float32))
            hb, hr = round_scores(p * (ts * sm_scale - c[:, None]), DT)
            t_t = warpgroup_mma(gl.convert_layout(hb, PL), v_s.index(i), t_t, is_async=True)
            if RELEASE == 1:
                mbarrier.arrive(ke.index(i), count=1)
            mu = mu * al + lane_sum(hr, BN)
            o, t = warpgroup_mma_wait(num_outstanding=0, deps=(o_t, t_t))
            mbarrier.arrive(ve.index(i), count=1)
            if RELEASE == 2:
                mbarrier.arrive(ke.index(i), count=1)
            it += 1
        lr = gl.convert_layout(gl.sum(l, 1), SR)
        mr = gl.convert_layout(gl.sum(mu, 1), SR) / lr
        ilo = gl.convert_layout(1.0 / lr, OR)
        muo = gl.convert_layout(mr, OR)
        o = o * ilo[:, None]
        t = t * ilo[:, None] - muo[:, None] * o
        if SPLIT:
            partial = (slot >= 0) & (end - first < Lk)
        else:
            partial: gl.constexpr = False
        if partial:
            lines = slot * 128 + rows
            gl.store(part_lse + lines, (m + gl.log2(lr)) * LN2)
            gl.store(part_mu + lines, mr + c)
            cells = (slot * 128 + W * 64 + gl.arange(0, 64, layout=OR))[:, None] * D
            cells += gl.arange(0, D, layout=gl.SliceLayout(0, OL))[None, :]
            gl.store(part_o + cells, o)
            gl.store(part_t + cells, t)
        else:
            stage = o_s.index(W * OUTS)
            tma.store_wait(0)
            stage.store(o.to(DT).reshape([1, 1, 64, D]))
            fence_async_shared()
            tma.async_copy_shared_to_global(dO, [b, h, row0 + W * 64, 0], stage)
            at = (b * H + h).to(gl.int64) * Lq + row0 + rows
            ok = row0 + rows < Lq
            gl.store(LSE + at, (m + gl.log2(lr)) * LN2, mask=ok)
            gl.store(MU + at, mr + c, mask=ok)
            if OUTS == 1:
                tma.store_wait(0)
            stage = o_s.index(W * OUTS + OUTS - 1)
            stage.store(t.to(DT).reshape([1, 1, 64, D]))
            fence_async_shared()
            tma.async_copy_shared_to_global(dT, [b, h, row0 + W * 64, 0], stage)
        qi += 1
    tma.store_wait(0)


@gluon.jit(
    do_not_specialize=[
        "H",
        "Lq",
        "Lk",
        "tiles_per_head",
        "tiles",
        "heads",
        "frame",
        "whole",
        "units",
        "stretch",
        "steps",
    ]
)
def attention_jvp_kernel(
    dq,
    dtq,
    dk,
    dtk,
    dv,
    dtv,
    dO,
    dT,
    LSE,
    MU,
    part_o,
    part_t,
    part_lse,
    part_mu,
    sm_scale,
    H,
    Lq,
    Lk,
    tiles_per_head,
    tiles,
    heads,
    frame,
    whole,
    units,
    stretch,
    steps,
    D: gl.constexpr,
    BN: gl.constexpr,
    NS: gl.constexpr,
    HAS_TK: gl.constexpr,
    CAUSAL: gl.constexpr,
    SPLIT: gl.constexpr,
    LAZY: gl.constexpr,
    QREG: gl.constexpr,
    TURNS: gl.constexpr,
    RELEASE: gl.constexpr,
    CR: gl.constexpr,
    PR: gl.constexpr,
):
    """The whole kernel; see the module's text. `D` is a multiple of 64, `NS` the number of key stages."""
    DT: gl.constexpr = dq.dtype
    CB: gl.constexpr = D // 64
    PARTS: gl.constexpr = 2 if HAS_TK else 1
    q_s = gl.allocate_shared_memory(DT, [2 * CB, 1, 1, 64, 64], dq.layout)
    tq_s = gl.allocate_shared_memory(DT, [2 * CB, 1, 1, 64, 64], dq.layout)
    k_s = gl.allocate_shared_memory(DT, [NS * CB * PARTS, 1, 1, BN, 64], dk.layout)
    v_s = gl.allocate_shared_memory(DT, [NS, 1, 1, BN, D], dv.layout)
    tv_s = v_s
    if HAS_TK:
        tv_s = gl.allocate_shared_memory(DT, [NS, 1, 1, BN, D], dv.layout)
    # O and tO each have a staging buffer where there is room: only D = 128 with three tangents has none to spare.
    OUTS: gl.constexpr = 1 if D == 128 and HAS_TK else 2
    o_s = gl.allocate_shared_memory(DT, [2 * OUTS, 1, 1, 64, D], dO.layout)
    qr = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    turn = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    kr = gl.allocate_shared_memory(gl.int64, [NS, 1], mbarrier.MBarrierLayout())
    vr = gl.allocate_shared_memory(gl.int64, [NS, 1], mbarrier.MBarrierLayout())
    ke = gl.allocate_shared_memory(gl.int64, [NS, 1], mbarrier.MBarrierLayout())
    ve = gl.allocate_shared_memory(gl.int64, [NS, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(qr.index(i), count=1)
        mbarrier.init(turn.index(i), count=1)
    for i in gl.static_range(NS):
        mbarrier.init(kr.index(i), count=1)
        mbarrier.init(vr.index(i), count=1)
        mbarrier.init(ke.index(i), count=2)
        mbarrier.init(ve.index(i), count=2)
    fence_async_shared()
    if TURNS:
        mbarrier.arrive(turn.index(0), count=1)
    KL: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    bars = (qr, kr, vr, ke, ve, turn)
    loads = (q_s, tq_s, k_s, v_s, tv_s)
    views = (
        q_s._reinterpret(DT, [2 * CB, 64, 64], KL),
        tq_s._reinterpret(DT, [2 * CB, 64, 64], KL),
        k_s._reinterpret(DT, [NS * CB * PARTS, BN, 64], KL),
        v_s._reinterpret(DT, [NS, BN, D], KL),
        tv_s._reinterpret(DT, [NS, BN, D], KL),
        o_s,
    )
    plan = (H, Lq, Lk, tiles_per_head, tiles, heads, frame, whole, units, stretch, steps)
    outs = (LSE, MU, part_o, part_t, part_lse, part_mu)
    gl.warp_specialize(
        [
            (
                _consumer,
                (
                    (dO, dT),
                    views,
                    bars,
                    outs,
                    plan,
                    sm_scale,
                    0,
                    BN,
                    D,
                    NS,
                    HAS_TK,
                    CAUSAL,
                    SPLIT,
                    LAZY,
                    QREG,
                    TURNS,
                    RELEASE,
                    DT,
                ),
            ),
            (
                _consumer,
                (
                    (dO, dT),
                    views,
                    bars,
                    outs,
                    plan,
                    sm_scale,
                    1,
                    BN,
                    D,
                    NS,
                    HAS_TK,
                    CAUSAL,
                    SPLIT,
                    LAZY,
                    QREG,
                    TURNS,
                    RELEASE,
                    DT,
                ),
            ),
            (_producer, ((dq, dtq, dk, dtk, dv, dtv), loads, bars, plan, BN, D, NS, HAS_TK, CAUSAL, SPLIT)),
        ],
        [4, 1],
        [CR, PR],
    )
