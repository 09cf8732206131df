"""Small parts of the Hopper kernel: packed rounding, lazy rescaling, sums by lane, and which work a program does."""

# mypy: ignore-errors
from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

LOG2E = gl.constexpr(1.4426950408889634)
LN2 = gl.constexpr(0.6931471805599453)

ROUND_BF16 = gl.constexpr("cvt.rn.bf16x2.f32 $0, $4, $3; shl.b32 $1, $0, 16; and.b32 $2, $0, 0xffff0000;")
ROUND_FP16 = gl.constexpr(
    "{ .reg .b16 a, b; cvt.rn.f16x2.f32 $0, $4, $3; mov.b32 {a, b}, $0; cvt.f32.f16 $1, a; cvt.f32.f16 $2, b; }"
)
# Warp-uniform vote: does any row of this warp exceed its limit?
GROWN = gl.constexpr("""{
 .reg .pred a, b;
 setp.gt.f32 a, $2, $4;
 setp.gt.or.f32 a, $3, $5, a;
 vote.sync.any.pred b, a, 0xffffffff;
 selp.b32 $0, 1, 0, b;
 selp.b32 $1, 1, 0, b;
}""")
_N = 32
SCALE = gl.constexpr(
    "{ .reg .pred a; setp.eq.s32 a, $"
    + str(3 * _N)
    + ", 0;\n @a bra L${:uid};\n"
    + "".join(f" mul.f32 ${i}, ${i}, ${2 * _N + i};\n" for i in range(_N))
    + "L${:uid}: }"
)
SCALE_OPERANDS = gl.constexpr(",".join(["=f"] * _N + [str(i) for i in range(_N)] + ["f"] * _N + ["r"] * _N))
SCALE_PACK = gl.constexpr(_N)


@gluon.jit
def scale_rows(x, a, grown):
    """X * a by rows, skipped by warps in which no row has grown."""
    a2, x2 = gl.broadcast(a[:, None], x)
    g2, x3 = gl.broadcast(grown[:, None], x)
    return gl.inline_asm_elementwise(
        SCALE, SCALE_OPERANDS, [x, a2, g2], dtype=gl.float32, is_pure=False, pack=SCALE_PACK
    )


@gluon.jit
def round_scores(h, DT: gl.constexpr):
    """(h rounded to DT, the same in fp32): one packed conversion for two values; the plain casts take the slow unit."""
    if DT == gl.bfloat16:
        return gl.inline_asm_elementwise(
            ROUND_BF16, "=r,=f,=f,f,f", [h], dtype=(gl.bfloat16, gl.float32), is_pure=True, pack=2
        )
    else:
        return gl.inline_asm_elementwise(
            ROUND_FP16, "=r,=f,=f,f,f", [h], dtype=(gl.float16, gl.float32), is_pure=True, pack=2
        )


@gluon.jit
def lane_sum(x, BN: gl.constexpr):
    """[64, BN] -> [64, 4]: what each of a row's four lanes holds; no shuffles."""
    return gl.sum(gl.sum(gl.reshape(x, [64, BN // 8, 4, 2]), 3), 1)


@gluon.jit
def key_end(row, Lq, Lk, frame, CAUSAL: gl.constexpr):
    """How many keys the rows up to `row` see."""
    end = Lk
    if CAUSAL:
        end = gl.minimum(Lk, (gl.minimum(row, Lq - 1) // frame + 1) * frame)
    return end


@gluon.jit
def work_item(item, plan, BN: gl.constexpr, CAUSAL: gl.constexpr, SPLIT: gl.constexpr):
    """A program's `item`-th piece of work -> (first row, batch, head, first key, key end, slot).

    Without SPLIT, or among the first `whole` tiles, a piece is a tile with all its keys and slot is -1. The tiles after
    them are one line of `units` steps, cut into equal stretches of `stretch` steps, one a program; a piece is what a
    stretch and a tile share, and slot is where its partial result goes.
    """
    H, Lq, Lk, tiles_per_head, tiles, heads, frame, whole, units, stretch, steps = plan
    program = gl.program_id(0)
    index = program + item * gl.num_programs(0)
    first = program * 0
    slot = first - 1
    end = Lk
    if SPLIT:
        if index >= whole:
            rest = program * stretch // steps + item - whole // gl.num_programs(0)
            index = whole + rest
            first = gl.maximum(program * stretch - rest * steps, 0) * BN
            end = gl.minimum((gl.minimum(program * stretch + stretch, units) - rest * steps) * BN, Lk)
            slot = program + rest
    tile = index % tiles_per_head
    bh = index // tiles_per_head
    if CAUSAL:  # the tiles with the most keys first
        tile = tiles_per_head - 1 - index // heads
        bh = index % heads
        end = key_end(tile * 128 + 127, Lq, Lk, frame, CAUSAL)
    return tile * 128, bh // H, bh % H, first, end, slot


@gluon.jit
def work_items(plan, SPLIT: gl.constexpr):
    """How many pieces of work this program has."""
    H, Lq, Lk, tiles_per_head, tiles, heads, frame, whole, units, stretch, steps = plan
    program = gl.program_id(0)
    programs = gl.num_programs(0)
    count = (tiles - program + programs - 1) // programs
    if SPLIT:
        count = whole // programs
        start = program * stretch
        if start < units:
            count += (gl.minimum(start + stretch, units) - 1) // steps - start // steps + 1
    return count
