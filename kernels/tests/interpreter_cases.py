"""Run by test_interpreter.py with TRITON_INTERPRET=1: the portable kernel and the merge kernel on the CPU.

python interpreter_cases.py <suite>      prints one JSON line a case: {"case", "errors"}
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
from cases import errors, inputs  # noqa: E402

from rcm_kernels import attention_jvp_portable as portable  # noqa: E402
from rcm_kernels.plan import ROWS, plan_tiles  # noqa: E402
from rcm_kernels.problem import Problem, frame_of  # noqa: E402
from rcm_kernels.reference import Result, eager  # noqa: E402
from rcm_kernels.split_merge import merge_split_tiles  # noqa: E402

SHORT = [
    ((1, 1, 1, 1, 32), "qkv", None, "bhld"),
    ((1, 2, 33, 17, 32), "qkv", None, "blhd"),
    ((2, 1, 16, 40, 32), "q", None, "packed"),
    ((1, 1, 40, 48, 32), "qkv", "causal", "bhld"),
    ((1, 2, 50, 33, 32), "qkv", ("block-causal", 12), "blhd"),
    ((1, 1, 20, 40, 32), "v", None, "bhld"),
    ((1, 1, 20, 40, 32), "k", ("block-causal", 7), "bhld"),
    ((1, 1, 20, 20, 32), "", "causal", "bhld"),
    ((1, 1, 20, 24, 96), "qkv", None, "bhld"),
]
LONG = [
    ((1, 2, queries, keys, dim), pattern, mask, layout)
    for queries, keys in ((7, 63), (64, 65), (129, 200))
    for dim in (64, 128)
    for pattern in ("q", "k", "v", "qk", "qv", "kv", "qkv", "")
    for mask, layout in ((None, "blhd"), ("causal", "bhld"), (("block-causal", 30), "packed"))
]


def portable_cases(cases, dtype):
    for shape, pattern, mask, layout in cases:
        args = inputs(*shape, dtype=dtype, pattern=pattern, layout=layout)
        problem = Problem(*shape, shape[-1] ** -0.5, frame_of(mask))
        result = portable.launch(*args, problem, block_rows=16, block_keys=16, stages=1, warps=4)
        found = errors(result, args, mask=mask)
        print(json.dumps({"case": [list(shape), pattern, str(mask), layout, str(dtype)], "errors": found}), flush=True)


def merge_cases():
    """Partial results by the eager backend, dealt out as the plan says, against the whole result."""
    for shape, processors in (((1, 2, 300, 500, 64), 4), ((2, 1, 130, 333, 32), 5), ((1, 1, 128, 64, 64), 3)):
        args = inputs(*shape, dtype=torch.float32, layout="blhd")
        problem = Problem(*shape, shape[-1] ** -0.5, 0)
        columns, block_keys = 64, 32
        plan = plan_tiles(problem, processors, block_keys, columns, True, True)
        whole = eager(*args, scale=problem.scale)
        result = Result(*(x.clone() for x in whole))
        parts = Result(*(torch.full((plan.slots, ROWS, n), float("nan")) for n in (columns, columns, 1, 1)))
        q, k, v, tq, tk, tv = args
        for rest in range(plan.tiles - plan.whole):
            bh, tile = divmod(plan.whole + rest, plan.tiles_per_head)
            at = (slice(bh // shape[1], bh // shape[1] + 1), slice(bh % shape[1], bh % shape[1] + 1))
            rows = (*at, slice(tile * ROWS, min(tile * ROWS + ROWS, shape[2])))
            first, last = rest * plan.steps // plan.stretch, (rest * plan.steps + plan.steps - 1) // plan.stretch
            for program in range(first, last + 1):
                begin = max(program * plan.stretch - rest * plan.steps, 0) * block_keys
                end = min((min((program + 1) * plan.stretch, plan.units) - rest * plan.steps) * block_keys, shape[3])
                keys = (*at, slice(begin, end))
                part = eager(q[rows], k[keys], v[keys], tq[rows], tk[keys], tv[keys], scale=problem.scale)
                for slot, x in zip(parts, part, strict=True):
                    flat = x.flatten(0, 2) if x.ndim == 4 else x.flatten()[:, None]
                    slot[program + rest, : flat.shape[0], : flat.shape[1]] = flat
            if last > first:
                for x in result:
                    x[rows] = float("nan")
        merge_split_tiles(tuple(x.flatten() for x in parts), result, plan, columns)
        found = {name: (a - b).abs().max().item() for name, a, b in zip(result._fields, result, whole, strict=True)}
        print(json.dumps({"case": ["merge", list(shape), plan.slots], "errors": found}), flush=True)


if __name__ == "__main__":
    suite = sys.argv[1]
    if suite == "short":
        portable_cases(SHORT, torch.float32)
        portable_cases(SHORT[1:2] + SHORT[4:5], torch.float16)
        merge_cases()
    else:
        portable_cases(LONG, torch.float32)
        portable_cases(LONG, torch.float16)
