"""The table of docs/results/kernels.md: each shape on each backend, errors against fp64, JSON and a plot.

    make -C kernels bench-kernels [ARGS="--out folder --quick"]

Times are medians of 50 launches on the device, each row from a chip at rest, with the copy and matrix-product rates
of the same run beside them. JVP rows count 12 FLOPs a (query, key, column), 8 with constant keys and values, over the
pairs the mask leaves.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from functools import partial
from pathlib import Path

import torch
import triton

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent, HERE.parent / "tests"):
    sys.path.insert(0, str(folder))

from cases import errors, inputs, relative  # noqa: E402
from plot import write_plot  # noqa: E402
from timing import copy_rate, matmul_rate, median_ms  # noqa: E402
from two_pass import TILES, two_pass  # noqa: E402

from rcm_kernels import attention_jvp, use_backend  # noqa: E402
from rcm_kernels.plain import attention_backward, plain_forward  # noqa: E402
from rcm_kernels.problem import Problem, frame_of, visible_pairs  # noqa: E402
from rcm_kernels.reference import Result  # noqa: E402

FRAMES = ("block-causal", 1560)
# name: (shape, tangents, mask, repeats, must, aim); shares of the matrix-product rate, or milliseconds where marked
ROWS = {
    "2304, D 64": ((1, 24, 2304, 2304, 64), "qkv", None, 50, 0.72, 0.85),
    "4096": ((1, 16, 4096, 4096, 128), "qkv", None, 50, 0.90, 0.95),
    "4080": ((1, 16, 4080, 4080, 128), "qkv", None, 50, None, None),
    "4015": ((1, 16, 4015, 4015, 128), "qkv", None, 50, None, None),
    "32760 x 512, constant text": ((1, 12, 32760, 512, 128), "q", None, 50, "0.48 ms", "0.40 ms"),
    "causal 4096": ((1, 16, 4096, 4096, 128), "qkv", "causal", 50, None, None),
    "1024 x 16, D 64, batch 2": ((2, 16, 1024, 1024, 64), "qkv", None, 50, None, None),
    "256, D 64, batch 64": ((64, 16, 256, 256, 64), "qkv", None, 50, None, None),
    "8192 x 40 heads": ((1, 40, 8192, 8192, 128), "qkv", None, 50, 0.87, 0.95),
    "14B, context parallel 8": ((1, 5, 32760, 32760, 128), "qkv", None, 50, None, None),
    "21 frames of 1560": ((1, 12, 32760, 32760, 128), "qkv", FRAMES, 50, 0.75, 0.88),
    "32760": ((1, 12, 32760, 32760, 128), "qkv", None, 50, 0.87, 0.95),
    "31200": ((1, 12, 31200, 31200, 128), "qkv", None, 50, None, None),
}


def measure(name: str, backend: str) -> dict[str, object]:
    """One row on one backend."""
    shape, pattern, mask, repeats, must, aim = ROWS[name]
    args = inputs(*shape, dtype=torch.bfloat16, device="cuda", pattern=pattern)
    flops = (12 if pattern == "qkv" else 8) * shape[0] * shape[1] * shape[4]
    flops *= visible_pairs(*shape[2:4], frame_of(mask))
    with use_backend(backend):
        result = attention_jvp(*args, mask=mask)
        found = errors(result, args, mask=mask)
        ms = median_ms(lambda: attention_jvp(*args, mask=mask), repeats)
    return {
        "row": name,
        "backend": backend,
        "ms": ms,
        "flops_per_s": flops / ms * 1e3,
        "must": must,
        "aim": aim,
        **found,
    }


def measure_two_pass(name: str) -> dict[str, object]:
    """The same row as torch's forward and a tangent-only kernel after it; the fastest of a few tiles."""
    shape, pattern, _, repeats, _, _ = ROWS[name]
    args = inputs(*shape, dtype=torch.bfloat16, device="cuda", pattern=pattern)
    problem = Problem(*shape, shape[-1] ** -0.5, 0)
    forward_ms = median_ms(lambda: plain_forward(*args[:3], problem), repeats)
    times = {}
    for tile in TILES[shape[-1]]:
        try:
            times[tile] = median_ms(partial(two_pass, *args, problem, tile), repeats)
        except triton.runtime.errors.OutOfResources:
            continue
    best = min(times, key=times.__getitem__)
    fused_ms = median_ms(lambda: attention_jvp(*args), repeats)
    _, tangent, _ = two_pass(*args, problem, best)
    error = relative(tangent, attention_jvp(*args).tangent)
    return {
        "row": name,
        "fused_ms": fused_ms,
        "two_pass_ms": times[best],
        "forward_ms": forward_ms,
        "tile": best,
        "fused_over_two_pass": fused_ms / times[best],
        "tangents_differ_by": error,
    }


def measure_primal(name: str) -> dict[str, object]:
    """Forward and backward of the primal: torch's kernels alone, and their backward from our output."""
    shape, _, _, repeats, _, _ = ROWS[name]
    args = inputs(*shape, dtype=torch.bfloat16, device="cuda")
    q, k, v = args[:3]
    grad = torch.randn_like(q)
    problem = Problem(*shape, shape[-1] ** -0.5, 0)
    ours = Result(*attention_jvp(*args))
    torch_out, torch_lse = plain_forward(q, k, v, problem)
    row: dict[str, object] = {"row": name, "forward_ms": median_ms(lambda: plain_forward(q, k, v, problem), repeats)}
    for backend in ("cudnn", "flash"):
        run = partial(attention_backward, grad, q, k, v, scale=problem.scale, backend=backend)
        row[f"{backend}_backward_ms"] = median_ms(partial(run, torch_out, torch_lse), repeats)
        row[f"{backend}_backward_of_ours_ms"] = median_ms(partial(run, ours.out, ours.lse), repeats)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("bench-kernels"), help="folder for kernels.json and kernels.svg"
    )
    parser.add_argument("--quick", action="store_true", help="the rows with targets only, dispatched backend only")
    options = parser.parse_args()
    torch.cuda.init()
    hopper = torch.cuda.get_device_capability() == (9, 0)
    report: dict[str, object] = {
        "schema": 1,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "copy_bytes_per_s": copy_rate(),
        "matmul_flops_per_s": matmul_rate(),
    }
    rate = report["matmul_flops_per_s"]
    print(f"8192^3 bf16 {rate / 1e12:.1f} TFLOP/s, copy {report['copy_bytes_per_s'] / 1e12:.2f} TB/s", flush=True)
    rows = []
    rates = [rate]
    for backend in ("auto",) if options.quick else ("auto", "triton") if hopper else ("auto",):
        for name, row in ROWS.items():
            if options.quick and row[4] is None and not name.startswith("40"):
                continue
            rows.append(found := measure(name, backend))
            print(
                f"{name:28s} {backend:7s} {found['ms']:9.4f} ms {found['flops_per_s'] / 1e12:6.0f} TF/s "
                f"{found['flops_per_s'] / rate:6.3f} M  tangent {found['tangent']:.2e} "
                f"(emulated {found['emulated']:.2e})",
                flush=True,
            )
        rates.append(matmul_rate())
        print(f"8192^3 bf16 again {rates[-1] / 1e12:.1f} TFLOP/s", flush=True)
    report["rows"] = rows
    report["matmul_flops_per_s_all"] = rates
    report["matmul_flops_per_s"] = max(rates)  # shares are of the best product of the run, whatever heated the chip
    if not options.quick:
        report["two_pass"] = [measure_two_pass(name) for name, row in ROWS.items() if row[2] is None]
        for row in report["two_pass"]:
            print(json.dumps(row), flush=True)
        report["primal"] = [measure_primal(name) for name in ("32760", "4096")]
        for row in report["primal"]:
            print(json.dumps(row), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "kernels.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.out / "kernels.svg").write_text(write_plot(report))


if __name__ == "__main__":
    main()
