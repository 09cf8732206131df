"""Compare options of the Hopper kernel, in interleaved rounds so that a warming chip favours none of them.

    python kernels/bench/tune.py [shape name ...]

What wins goes by hand into rcm_kernels/tiles.json.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent, HERE.parent / "tests"):
    sys.path.insert(0, str(folder))

from cases import errors, inputs  # noqa: E402
from timing import matmul_rate, median_ms  # noqa: E402

from rcm_kernels import hopper_launch as hopper  # noqa: E402
from rcm_kernels.problem import Problem, visible_pairs  # noqa: E402

BASE = {"block_keys": 64, "stages": 2, "lazy": 8, "share_q": False, "turns": False, "release": 0}
LONG = [
    {"lazy": lazy, "share_q": share, "turns": turns, "release": release}
    for lazy, share, turns, release in itertools.product((8,), (False, True), (False, True), (0, 1, 2))
]
SHAPES = {
    "32760": (
        (1, 12, 32760, 32760, 128),
        "qkv",
        0,
        6,
        LONG + [{"lazy": 0, "turns": True}, {"turns": True, "split": False}],
    ),
    "4096": ((1, 16, 4096, 4096, 128), "qkv", 0, 40, LONG + [{"lazy": 0, "turns": True}]),
    "8192": (
        (1, 40, 8192, 8192, 128),
        "qkv",
        0,
        12,
        [
            {"turns": True},
            {"share_q": True, "release": 1},
            {"turns": True, "share_q": True, "release": 1},
            {"turns": True, "split": False},
            {"turns": True, "release": 2},
        ],
    ),
    "2304": (
        (1, 24, 2304, 2304, 64),
        "qkv",
        0,
        50,
        [
            {"block_keys": 128, "lazy": lazy, "share_q": share, "turns": turns, "release": release}
            for lazy, share, turns, release in itertools.product((0, 8), (False, True), (False, True), (0, 1))
        ]
        + [{"block_keys": 128, "lazy": 0, "split": False}, {"block_keys": 128, "lazy": 0, "release": 2}],
    ),
    "cross": (
        (1, 12, 32760, 512, 128),
        "q",
        0,
        50,
        [
            {"stages": 3, "lazy": lazy, "turns": turns, "release": release}
            for lazy, turns, release in itertools.product((0, 8), (False, True), (0, 2))
        ]
        + [{"stages": 3, "split": True}, {"stages": 3, "split": False}],
    ),
    "frames": (
        (1, 12, 32760, 32760, 128),
        "qkv",
        1560,
        8,
        [{"turns": True}, {"share_q": True, "release": 1}, {"turns": True, "release": 2}, {"lazy": 0}],
    ),
    "causal": (
        (1, 16, 4096, 4096, 128),
        "qkv",
        1,
        40,
        [{"turns": True}, {"share_q": True, "release": 1}, {"turns": True, "release": 2}, {"lazy": 0}],
    ),
}


def compare(name: str, rounds: int = 3) -> None:
    """Print each option's time, rate and tangent error on one shape."""
    shape, pattern, frame, repeats, options = SHAPES[name]
    args = inputs(*shape, dtype=torch.bfloat16, device="cuda", pattern=pattern)
    problem = Problem(*shape, shape[-1] ** -0.5, frame)
    mask = ("block-causal", frame) if frame else None
    flops = (12 if pattern == "qkv" else 8) * shape[0] * shape[1] * shape[4] * visible_pairs(*shape[2:4], frame)
    runs = [lambda o=o: hopper.launch(*args, problem, **{**BASE, **o}) for o in options]
    found = [errors(run(), args, mask=mask)["tangent"] for run in runs]
    times: list[list[float]] = [[] for _ in runs]
    for i in range(rounds):
        order = range(len(runs)) if i % 2 == 0 else reversed(range(len(runs)))
        for j in order:
            times[j].append(median_ms(runs[j], repeats, warmup=1))
    for option, error, each in sorted(zip(options, found, times, strict=True), key=lambda x: statistics.median(x[2])):
        ms = statistics.median(each)
        spread = f"[{min(each):.4f} {max(each):.4f}]"
        print(f"{name:8s} {ms:8.4f} ms {flops / ms / 1e9:6.0f} TF/s {spread} {error:.2e} {option}")


if __name__ == "__main__":
    for shape_name in sys.argv[1:] or SHAPES:
        print(f"8192^3 bf16 {matmul_rate() / 1e12:.1f} TFLOP/s", flush=True)
        compare(shape_name)
