"""Each elementwise kernel at the sizes of one block: time, rate against this device's copy, error against fp64.

    python kernels/bench/elementwise.py [--out FILE] [--block wan2.1-1.3b-dual ...] [--tune norm-backward ...]

The rate counts every element read and written once (vectors and tables not); 1.00 is the copy rate of the same run.
The sum over one Wan2.1 1.3B block, dual without gradient, is the figure of docs/results/network.md.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent, HERE.parent / "tests"):
    sys.path.insert(0, str(folder))

import elementwise_cases as cases  # noqa: E402
import launches  # noqa: E402
from timing import copy_rate, median_ms  # noqa: E402

from rcm_kernels import elementwise_operators as operators  # noqa: E402
from rcm_kernels import gelu_jvp, row_plan  # noqa: E402

BF16 = torch.bfloat16
CHECKED_ROWS = 64


def norm_row(length, dim, parts, norm, dual=True, save=False):
    args = cases.layer_norm_inputs(
        1, length, dim, dtype=BF16, device="cuda", parts=parts, tangents="xygfs" if dual else ""
    )
    short = tuple(a if a is None or a.shape[1] == 1 else a[:, :CHECKED_ROWS].contiguous() for a in args)
    moved = (1 + ("y" in parts)) * (1 + dual) + (("y" in parts) + norm) * (1 + dual)
    return (
        lambda: operators.layer_norm(*args, norm, True, 1e-6, save),
        moved * 2 * length * dim,
        lambda: cases.layer_norm_errors(launches.layer_norm, short, norm=norm),
    )


def norm_backward_row(length, dim, parts):
    args = cases.layer_norm_inputs(1, length, dim, dtype=BF16, device="cuda", parts=parts, tangents="")
    x, y, g, f, _ = args[:5]
    stats = torch.rand(1, length, 2, device="cuda") + 0.5
    grad_r = torch.randn_like(x) if y is not None else None
    wanted = [True, g is not None, g is not None, True, True]
    short = tuple(a if a is None or a.shape[1] == 1 else a[:, :CHECKED_ROWS].contiguous() for a in args)
    moved = 2 + 1 + (y is not None) + 2 * (g is not None)  # dz and r, dx, dr, then y and dy
    return (
        lambda: operators.layer_norm_backward(grad_r, x, x, stats, y, g, f, True, wanted),
        moved * 2 * length * dim,
        lambda: cases.layer_norm_backward_errors(launches.layer_norm_backward, short),
    )


def rms_row(length, heads, dim, interleaved, table=True, dual=True):
    args = cases.rms_inputs(
        1, length, heads, dim, dtype=BF16, device="cuda", full=interleaved or not table, table=table, tangent=dual
    )
    x, tx, weight, turns = args
    short = (x[:, :CHECKED_ROWS], None if tx is None else tx[:, :CHECKED_ROWS], weight,
             None if turns is None else turns[:CHECKED_ROWS])  # fmt: skip
    return (
        lambda: operators.rms_norm(x, tx, weight, turns, interleaved, 1e-6, False),
        (2 + 2 * dual) * 2 * x.numel(),
        lambda: cases.rms_errors(launches.rms_norm, short, interleaved),
    )


def rms_backward_row(length, heads, dim, interleaved, table=True):
    args = cases.rms_inputs(
        1, length, heads, dim, dtype=BF16, device="cuda", full=interleaved or not table, table=table
    )
    x, grad, weight, turns = args
    rstd = torch.rand(1, length, *(() if weight.numel() == heads * dim else (heads,)), device="cuda")
    short = (x[:, :CHECKED_ROWS], None, weight, None if turns is None else turns[:CHECKED_ROWS])
    return (
        lambda: operators.rms_norm_backward(grad, x, rstd, weight, turns, interleaved, [True, True]),
        3 * 2 * x.numel(),
        lambda: cases.rms_backward_errors(launches.rms_norm_backward, short, interleaved),
    )


def activation_row(length, dim, kind, dual=True):
    generator = torch.Generator("cuda").manual_seed(0)
    x, tx = (cases.randn(generator, 1, length, dim, dtype=BF16, device="cuda") for _ in range(2))
    short = (x[:, :CHECKED_ROWS].contiguous(), tx[:, :CHECKED_ROWS].contiguous() if dual else None)
    return (
        lambda: operators.activation(x, tx if dual else None, kind, False),
        (2 + 2 * dual) * 2 * x.numel(),
        lambda: cases.activation_errors(launches.activation, *short, kind),
    )


def activation_backward_row(length, dim, kind):
    x, grad = (torch.randn(1, length, dim, device="cuda").to(BF16) for _ in range(2))
    short = (x[:, :CHECKED_ROWS].contiguous(), grad[:, :CHECKED_ROWS].contiguous())
    return (
        lambda: operators.activation_backward(grad, x, kind),
        3 * 2 * x.numel(),
        lambda: {"ty": cases.activation_errors(launches.activation, *short, kind)["ty"]},
    )


def wan_block(length, heads, dim, hidden, dual=True):
    """(name, times in a block, row) of the forward kernels of a Wan block."""
    width = heads * dim
    return [
        ("norm1, modulated", 1, lambda: norm_row(length, width, "fs", True, dual)),
        ("rms norm + rope", 2, lambda: rms_row(length, heads, dim, True, dual=dual)),
        ("gate + residual + norm3", 1, lambda: norm_row(length, width, "ygfs", True, dual)),
        ("rms norm", 1, lambda: rms_row(length, 1, width, True, table=False, dual=dual)),
        ("residual + norm2, modulated", 1, lambda: norm_row(length, width, "yfs", True, dual)),
        ("gelu tanh", 1, lambda: activation_row(length, hidden, "gelu_tanh", dual)),
        ("gate + residual", 1, lambda: norm_row(length, width, "yg", False, dual)),
    ]


def wan_block_backward(length, heads, dim, hidden):
    width = heads * dim
    return [
        ("norm1, modulated", 1, lambda: norm_backward_row(length, width, "fs")),
        ("rms norm + rope", 2, lambda: rms_backward_row(length, heads, dim, True)),
        ("gate + residual + norm3", 1, lambda: norm_backward_row(length, width, "ygfs")),
        ("rms norm", 1, lambda: rms_backward_row(length, 1, width, True, table=False)),
        ("residual + norm2, modulated", 1, lambda: norm_backward_row(length, width, "yfs")),
        ("gelu tanh", 1, lambda: activation_backward_row(length, hidden, "gelu_tanh")),
    ]


def cosmos_block(length, heads, dim, hidden, dual=True):
    width = heads * dim
    return [
        ("norm, modulated", 1, lambda: norm_row(length, width, "fs", True, dual)),
        ("rms norm + rope, halves", 2, lambda: rms_row(length, heads, dim, False, dual=dual)),
        ("gate + residual + norm", 2, lambda: norm_row(length, width, "ygfs", True, dual)),
        ("gelu erf", 1, lambda: activation_row(length, hidden, "gelu_erf", dual)),
        ("gate + residual", 1, lambda: norm_row(length, width, "yg", False, dual)),
    ]


# Wan at 31,200 tokens, Cosmos at 4,080.
BLOCKS = {
    "wan2.1-1.3b-dual": ("Wan2.1 1.3B, dual", lambda: wan_block(31200, 12, 128, 8960)),
    "wan2.1-1.3b-plain": ("Wan2.1 1.3B, plain", lambda: wan_block(31200, 12, 128, 8960, dual=False)),
    "wan2.1-1.3b-backward": ("Wan2.1 1.3B, backward", lambda: wan_block_backward(31200, 12, 128, 8960)),
    "wan2.1-14b-dual": ("Wan2.1 14B, dual", lambda: wan_block(31200, 40, 128, 13824)),
    "wan2.1-14b-backward": ("Wan2.1 14B, backward", lambda: wan_block_backward(31200, 40, 128, 13824)),
    "cosmos-2b-dual": ("Cosmos-Predict2 2B, dual", lambda: cosmos_block(4080, 16, 128, 8192)),
    "cosmos-2b-plain": ("Cosmos-Predict2 2B, plain", lambda: cosmos_block(4080, 16, 128, 8192, dual=False)),
}


def measure(copy, names):
    """These blocks: rows and sums."""
    found = {}
    for title, rows_of in (BLOCKS[name] for name in names):
        rows, total = [], 0.0
        for name, times, prepare in rows_of():
            run, moved, errors = prepare()
            ms = median_ms(run)
            row = {"kernel": name, "times": times, "ms": ms, "bytes": moved, "of_copy": moved / ms * 1e3 / copy,
                   "errors": errors()}  # fmt: skip
            rows.append(row)
            total += times * ms
            worst = max(row["errors"].items(), key=lambda item: item[1])
            print(f"  {name:32s} x{times} {ms:8.4f} ms {moved / ms / 1e9:7.2f} TB/s {row['of_copy']:6.2f} of copy  "
                  f"worst error {worst[0]} {worst[1]:.1e}", flush=True)  # fmt: skip
            del run, errors
            torch.cuda.empty_cache()
        print(f"{title}: {total:.3f} ms a block\n", flush=True)
        found[title] = {"rows": rows, "ms": total}
    return found


LENGTHS = {1536: 31200, 2048: 4080, 5120: 31200}
PROGRAMS = (132, 264, 528, 1056)


def tune_norm(copy):
    for dim, length in LENGTHS.items():
        todo = {
            "gate norm": norm_row(length, dim, "ygfs", True),
            "norm": norm_row(length, dim, "fs", True),
            "gate": norm_row(length, dim, "yg", False),
            "gate norm plain": norm_row(length, dim, "ygfs", True, dual=False),
        }
        for warps in (1, 2, 4, 8):
            row_plan.FORWARD_WARPS["norm", dim] = warps
            print(f"D {dim} warps {warps}: {_shares(todo, copy)}", flush=True)


def tune_rms(copy):
    for dim, length in LENGTHS.items():
        todo = {
            "rms rope": rms_row(length, dim // 128, 128, dim != 2048),
            "rms rope plain": rms_row(length, dim // 128, 128, dim != 2048, dual=False),
            "rms": rms_row(length, 1, dim, True, table=False),
        }
        for warps in (1, 2, 4, 8):
            row_plan.FORWARD_WARPS["rms", dim] = warps
            print(f"D {dim} warps {warps}: {_shares(todo, copy)}", flush=True)


def tune_norm_backward(copy):
    for dim, length in LENGTHS.items():
        todo = {
            "gate norm backward": norm_backward_row(length, dim, "ygfs"),
            "norm backward": norm_backward_row(length, dim, "fs"),
        }
        _tune_backward("norm", dim, todo, (4, 8) if dim < 5000 else (8, 16), copy)


def tune_rms_backward(copy):
    for dim, length in LENGTHS.items():
        todo = {"rms rope backward": rms_backward_row(length, dim // 128, 128, dim != 2048)}
        _tune_backward("rms", dim, todo, (2, 4, 8), copy)


def _tune_backward(kind, dim, todo, many_warps, copy):
    for warps, stages in itertools.product(many_warps, (1, 2, 3)):
        row_plan.STAGES = stages
        for programs in PROGRAMS:
            row_plan.BACKWARD[kind, dim] = (warps, programs)
            try:
                text = _shares(todo, copy)
            except Exception as error:  # more shared memory than there is
                print(f"D {dim} warps {warps} stages {stages}: {type(error).__name__}", flush=True)
                break
            print(f"D {dim} warps {warps} stages {stages} programs {programs}: {text}", flush=True)


def tune_activation(copy):
    todo = {"gelu tanh": activation_row(31200, 8960, "gelu_tanh"), "gelu erf": activation_row(31200, 8960, "gelu_erf")}
    for block, warps in ((1024, 4), (2048, 4), (2048, 8), (4096, 4), (4096, 8), (8192, 8)):
        gelu_jvp.BLOCK, gelu_jvp.WARPS = block, warps
        print(f"activation block {block} warps {warps}: {_shares(todo, copy)}", flush=True)


TUNES = {
    "norm": tune_norm,
    "rms": tune_rms,
    "norm-backward": tune_norm_backward,
    "rms-backward": tune_rms_backward,
    "activation": tune_activation,
}


def _shares(todo, copy):
    return "  ".join(f"{name} {moved / quick_ms(run) * 1e3 / copy:.2f}" for name, (run, moved, _) in todo.items())


def quick_ms(run):
    """Without the rest before and with fewer launches: good to a few percent, enough to choose among many."""
    return median_ms(run, repeats=15, warmup=2, rest_seconds=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench-elementwise.json"))
    parser.add_argument("--block", nargs="+", choices=BLOCKS, default=list(BLOCKS), help="which blocks, all by default")
    parser.add_argument("--tune", nargs="+", choices=TUNES, help="instead try numbers of warps, programs and stages")
    options = parser.parse_args()
    copy = copy_rate()
    print(f"{torch.cuda.get_device_name()}: copy {copy / 1e12:.2f} TB/s\n", flush=True)
    for part in options.tune or ():
        print(f"{part}:", flush=True)
        TUNES[part](copy)
    if options.tune:
        return
    report = {
        "schema": 1,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "copy_bytes_per_s": copy,
        "blocks": measure(copy, options.block),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
