"""Times of whole networks on this machine's GPU: the table of docs/results/network.md.

    make bench-network [ARGS="--case wan2.1-1.3b --pass plain --compile --out FILE"]
    make bench-network ARGS="--check"      precision instead of time: exit status 1 where the kernels are worse

Every row runs with random weights in bf16 (time path and head float32), one sample unless the case says more. A row's
share of M is its FLOPs over its time over the rate of an 8192^3 bf16 product measured in the same run. FLOPs are
counted while the pass runs, those of a recomputation too. Of 14B as many blocks run as fit in the free memory.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("scripts", "py", "kernels", "kernels/bench")]

from network_bench.budget import budget_lines  # noqa: E402
from network_bench.cases import CASES, outline, token_count  # noqa: E402
from network_bench.check import CHECKED, assert_precise, check, check_lines  # noqa: E402
from network_bench.families import breakdown  # noqa: E402
from network_bench.passes import NOT_COMPILED, PASSES, Parts, first_step_seconds, one_process  # noqa: E402
from timing import REST_SECONDS, copy_rate, matmul_rate  # noqa: E402

import rcm_kernels  # noqa: E402, F401  its FLOP formulas must be there before the first counter takes the table

SHARE_OF_MEMORY = 0.92
BUDGET_SECONDS = 12.0


def main() -> None:
    """Run the rows asked for, print a line each and write the JSON file."""
    options = _options()
    device = torch.device("cpu" if options.cpu else "cuda")
    if options.check:
        return _check(device, options)
    report: dict[str, Any] = {"schema": 1, "command": sys.argv[1:], "rows": [], **_machine(device)}
    rates = report["matmul_flops_per_s"] = [] if options.cpu else [matmul_rate()]
    report["copy_bytes_per_s"] = None if options.cpu else copy_rate()
    if rates:
        print(f"{report['device']}: M {rates[0] / 1e12:.1f} TFLOP/s, copy {report['copy_bytes_per_s'] / 1e12:.2f} TB/s")
    with one_process(device):
        for case in options.case:
            for name in getattr(options, "pass"):
                for compiled in (False, True) if options.compile else (False,):
                    row = _guarded(case, name, compiled, device, options)
                    if compiled and "flops" in (eager := report["rows"][-1]):
                        row["flops"] = eager["flops"]
                    report["rows"].append(row)
                    if rates:
                        rates.append(matmul_rate())
                        row["matmul_flops_per_s"] = statistics.mean(rates[-2:])
                    print(_line(row), flush=True)
                    _write(options.out, report)
    print("\n".join(budget_lines(report["rows"])))


def _check(device: torch.device, options: argparse.Namespace) -> None:
    """Precision of two-block networks; ends the process with an AssertionError where the kernels are worse."""
    cases = {"smoke": CASES["smoke"]} if options.case == ["smoke"] else CHECKED
    rows = check(device, cases)
    print("\n".join(line for row in rows for line in check_lines(row)), flush=True)
    _write(options.out, {"schema": 1, "command": sys.argv[1:], "rows": rows, **_machine(device)})
    assert_precise(rows)


def _write(path: Path, report: dict[str, Any]) -> None:
    path.write_text(json.dumps(report, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    real = [name for name in CASES if not name.startswith("smoke")]
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=real)
    parser.add_argument("--pass", nargs="+", choices=list(PASSES), default=list(PASSES))
    parser.add_argument("--compile", action="store_true", help="each row again with the block bodies compiled")
    parser.add_argument("--check", action="store_true", help="precision against float64, nothing else")
    parser.add_argument("--profile", action="store_true", help="add the time by kind of kernel")
    parser.add_argument("--layers", type=int, help="number of blocks, instead of as many as fit")
    parser.add_argument("--repeats", type=int, default=10, help="timed calls of a row, at most")
    parser.add_argument("--out", type=Path, default=Path("bench-network.json"))
    parser.add_argument("--cpu", action="store_true", help="run without a GPU: checks the script, times mean nothing")
    return parser.parse_args()


def _machine(device: torch.device) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def _guarded(case: str, name: str, compiled: bool, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """One row; a row that fails says why and the others go on."""
    row: dict[str, Any] = {"case": case, "pass": name, "compiled": compiled}
    if compiled and name in NOT_COMPILED:
        return {**row, "error": NOT_COMPILED[name]}
    try:
        layers = options.layers
        if layers is None and CASES[case].layers is None and device.type == "cuda" and "14b" in case:
            row["room"] = room = _room(case, name, device)
            layers = room["blocks"]
        row |= _measure(case, name, compiled, layers, device, options)
    except torch.OutOfMemoryError as error:
        row["error"] = f"out of memory: {str(error)[:300]}"
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {str(error)[:600]}"
    _release(device)
    return row


def _measure(
    case: str, name: str, compiled: bool, layers: int | None, device: torch.device, options: argparse.Namespace
) -> dict[str, Any]:
    shape = outline(CASES[case], layers)
    _reset_peak(device)
    torch._dynamo.reset()
    step = PASSES[name](CASES[case], layers, device, compiled)
    row: dict[str, Any] = {
        "layers": len(shape.blocks),
        "tokens": token_count(shape, CASES[case]),
        "batch": CASES[case].batch,
    }
    with FlopCounterMode(display=False) as counter:
        row["first_step_s"] = first_step_seconds(step, device)
    if not compiled:  # a compiled body hides its products from the counter
        row["flops"] = counter.get_total_flops()
    row["weights_gb"] = _allocated(device)
    _reset_peak(device)
    times = _times(step, device, options.repeats)
    row |= {"ms": statistics.median(times), "ms_min": min(times), "ms_max": max(times), "calls": len(times)}
    row["peak_gb"] = _peak(device)
    if isinstance(step, Parts):
        row["parts_ms"] = step.watch.medians_ms()
    if options.profile and device.type == "cuda":
        row["kernels"] = breakdown(step)
    return row


def _times(step: Any, device: torch.device, most: int) -> list[float]:
    """Milliseconds of each of several calls in a row, launches included; the chip at rest before."""
    if device.type != "cuda":
        begin = time.perf_counter()
        step()
        return [1e3 * (time.perf_counter() - begin)]
    begin = time.perf_counter()
    step()
    torch.cuda.synchronize()
    once = time.perf_counter() - begin
    count = max(min(3, most), min(most, int(BUDGET_SECONDS / once)))
    time.sleep(REST_SECONDS)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    marks[0].record()
    for mark in marks[1:]:
        step()
        mark.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) for a, b in zip(marks, marks[1:], strict=False)]


def _room(case: str, name: str, device: torch.device) -> dict[str, Any]:
    """How many of the case's blocks fit in the free memory, from the peaks of one and of two blocks."""
    total = len(outline(CASES[case], None).blocks)
    free, _ = torch.cuda.mem_get_info(device)
    one, two = (_peak_of(case, name, layers, device) for layers in (1, 2))
    fits = min(total, 1 + int((SHARE_OF_MEMORY * free - one) // (two - one)))
    return {"blocks": fits, "of": total, "free_gb": free / 1e9, "one_gb": one / 1e9, "each_gb": (two - one) / 1e9}


def _peak_of(case: str, name: str, layers: int, device: torch.device) -> int:
    """Bytes of two passes through so many blocks, the second of which finds the first one's gradients."""
    _reset_peak(device)
    step = PASSES[name](CASES[case], layers, device, False)
    step()
    step()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    del step
    _release(device)
    return peak


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _reset_peak(device: torch.device) -> None:
    _release(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None


def _allocated(device: torch.device) -> float | None:
    return torch.cuda.memory_allocated() / 1e9 if device.type == "cuda" else None


def _line(row: dict[str, Any]) -> str:
    name = f"{row['case']:18s} {row['pass'] + (', compiled' if row['compiled'] else ''):36s}"
    if "error" in row:
        return f"{name} {row['error']}"
    batch = "" if row["batch"] == 1 else f" x {row['batch']} samples"
    text = f"{name} {row['layers']:2d} blocks{batch} {row['ms']:9.2f} ms ({row['ms_min']:.2f} to {row['ms_max']:.2f})"
    if row["peak_gb"] is not None:
        text += f"  peak {row['peak_gb']:6.2f} GB  first {row['first_step_s']:6.1f} s"
    if "flops" in row and "matmul_flops_per_s" in row:
        share = row["flops"] / row["ms"] * 1e3 / row["matmul_flops_per_s"]
        text += f"  {row['flops'] / 1e12:8.1f} TFLOP  {share:6.1%} of M"
    if room := row.get("room"):
        text += f"\n    {room['blocks']} of {room['of']} blocks fit in {room['free_gb']:.1f} GB that are free: "
        text += f"{room['one_gb']:.1f} GB with one, {room['each_gb']:.2f} GB for each more"
    for part, spent in row.get("parts_ms", {}).items():
        text += f"\n    {part:24s} {spent:9.2f} ms"
    for family, spent in row.get("kernels", {}).get("ms", {}).items():
        text += f"\n    {family:24s} {spent:9.2f} ms in {row['kernels']['launches'][family]} launches"
    return text


if __name__ == "__main__":
    main()
