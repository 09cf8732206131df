"""The student update of Wan2.1 1.3B, budget and measured beside each other."""

from __future__ import annotations

from typing import Any

# Milliseconds at 772.6 TFLOP/s, from single pieces measured on an H200: jvp-kernels.md section 0.1.
BUDGET_RATE = 772.6e12
BUDGET_MS = {
    "teacher, with and without text": 940,
    "dual forward": 1150,
    "attention backward": 910,
    "linear backward": 235,
    "elementwise backward": 60,
    "recomputation and the rest of backward": 150,
    "optimizer": 10,
}


def budget_lines(rows: list[dict[str, Any]]) -> list[str]:
    """A line a part, from the rows `update`, `plain` and `dual` of a profiled run; none where one is missing.

    Teacher, dual forward, backward and optimizer are timed in the update. Backward is split by kind of kernel: products
    and elementwise kernels of the backward proper are those of the update less those of four forwards (two of the
    teacher, the dual one, the recomputation); what then remains is the recomputation, sums and copies.
    """
    found = {row["pass"]: row for row in rows if row["case"] == "wan2.1-1.3b" and not row["compiled"]}
    if not all("kernels" in found.get(name, {}) for name in ("update", "plain", "dual")):
        return []
    update = found["update"]
    parts = update["parts_ms"]

    def backward(family: str) -> float:
        ms = {name: found[name]["kernels"]["ms"].get(family, 0.0) for name in ("update", "plain", "dual")}
        return float(ms["update"] - 3 * ms["plain"] - ms["dual"])

    measured = {
        "teacher, with and without text": parts["teacher"],
        "dual forward": parts["dual forward"],
        "attention backward": update["kernels"]["ms"].get("attention backward", 0.0),
        "linear backward": backward("matrix products"),
        "elementwise backward": backward("fused elementwise"),
        "optimizer": parts["optimizer"],
    }
    inside = ("attention backward", "linear backward", "elementwise backward")
    measured["recomputation and the rest of backward"] = parts["backward"] - sum(measured[name] for name in inside)
    rate = update["matmul_flops_per_s"]
    lines = [f"student update: budget at {BUDGET_RATE / 1e12:.1f} TFLOP/s, measured as it would be at that rate"]
    for name, budget in [*BUDGET_MS.items(), ("total", sum(BUDGET_MS.values()))]:
        ms = update["ms"] if name == "total" else measured[name]
        lines.append(f"    {name:42s} {budget:7.0f} ms {ms * rate / BUDGET_RATE:9.1f} ms  ({ms:.1f} in this run)")
    return lines
