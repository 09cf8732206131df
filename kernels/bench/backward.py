"""Attention's backward: the default, and the one that repeats its bits, at 31,200 tokens of Wan2.1 1.3B.

    python kernels/bench/backward.py [--out FILE] [--tokens 31200] [--heads 12] [--dim 128]

Times are medians on the device, each row from a chip at rest. "repeats" says whether ten runs gave equal bits.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent, HERE.parent / "tests"):
    sys.path.insert(0, str(folder))

from cases import inputs  # noqa: E402
from timing import matmul_rate, median_ms  # noqa: E402

from rcm_kernels import attention_jvp  # noqa: E402
from rcm_kernels.plain import BackwardBackend, attention_backward, choose_backward, fastest  # noqa: E402

REPEATS = 15
RUNS = 10


def main() -> None:
    """Print a line a row and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=31200)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("backward.json"))
    options = parser.parse_args()
    shape = (1, options.heads, options.tokens, options.tokens, options.dim)
    q, k, v, *_ = inputs(*shape, dtype=torch.bfloat16, device="cuda")
    grad = torch.randn_like(q)
    out, _, lse, _ = attention_jvp(q, k, v)
    chosen: dict[str, tuple[BackwardBackend, bool]] = {"default": (fastest(q, k, 0), False), "flash": ("flash", False)}
    torch.use_deterministic_algorithms(True)
    chosen["deterministic"] = (choose_backward(q, k, 0), True)
    rows = []
    for name, (backend, deterministic) in chosen.items():
        torch.use_deterministic_algorithms(deterministic)

        def run(backend: BackwardBackend = backend) -> tuple[torch.Tensor, ...]:
            return attention_backward(grad, q, k, v, out, lse, scale=options.dim**-0.5, backend=backend)

        first = run()
        same = all(torch.equal(a, b) for _ in range(RUNS) for a, b in zip(run(), first, strict=True))
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        ms = median_ms(run, REPEATS)
        more_gb = (torch.cuda.max_memory_allocated() - held) / 1e9
        rows.append({"row": name, "backend": backend, "ms": ms, "repeats": same, "more_gb": more_gb})
        print(f"{name:14s} {backend:6s} {ms:8.2f} ms  repeats its bits: {same}  {more_gb:.2f} GB more", flush=True)
    report = {
        "schema": 1,
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "shape": shape,
        "matmul_flops_per_s": matmul_rate(),
        "rows": rows,
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
