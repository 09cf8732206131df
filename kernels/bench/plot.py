"""A bar chart as SVG: each row's share of the matrix-product rate, by backend."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape

WIDTH, LEFT, BAR, GAP = 860, 220, 13, 12
COLOURS = {"auto": "#2f6f9f", "triton": "#b9c7d1"}


def write_plot(report: dict[str, Any]) -> str:
    """SVG text; must and aim are drawn as marks where they are shares."""
    rate = report["matmul_flops_per_s"]
    names = list(dict.fromkeys(row["row"] for row in report["rows"]))
    backends = [b for b in COLOURS if any(row["backend"] == b for row in report["rows"])]
    step = BAR * len(backends) + GAP
    height = 60 + step * len(names)
    span = WIDTH - LEFT - 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="18">share of the 8192^3 bf16 matrix-product rate of the same run '
        f"({rate / 1e12:.0f} TFLOP/s, {escape(report['device'])})</text>",
    ]
    for tick in (0, 0.25, 0.5, 0.75, 1.0):
        x = LEFT + span * tick
        parts.append(f'<line x1="{x:.0f}" x2="{x:.0f}" y1="28" y2="{height - 28}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.0f}" y="{height - 12}" text-anchor="middle">{tick:g}</text>')
    for i, name in enumerate(names):
        y = 34 + i * step
        parts.append(f'<text x="{LEFT - 8}" y="{y + BAR - 2}" text-anchor="end">{escape(name)}</text>')
        for row in (r for r in report["rows"] if r["row"] == name):
            share = row["flops_per_s"] / rate
            top = y + BAR * backends.index(row["backend"])
            parts.append(
                f'<rect x="{LEFT}" y="{top}" width="{span * share:.1f}" height="{BAR - 2}" '
                f'fill="{COLOURS[row["backend"]]}"/>'
                f'<text x="{LEFT + span * share + 4:.1f}" y="{top + BAR - 3}" font-size="10">{share:.2f}</text>'
            )
            for mark in (row["must"], row["aim"]):
                if isinstance(mark, float) and row["backend"] == "auto":
                    x = LEFT + span * mark
                    parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + BAR - 2}" stroke="#c0392b"/>')
    legend = {"auto": "as dispatched", "triton": "portable Triton"}
    for i, backend in enumerate(backends):
        x = 8 + 100 * i
        parts.append(f'<rect x="{x}" y="8" width="10" height="10" fill="{COLOURS[backend]}"/>')
        parts.append(f'<text x="{x + 14}" y="17" font-size="10">{legend[backend]}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
