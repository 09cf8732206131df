"""The FLOPs of a row of `make bench-network` do not depend on which row of the process it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[3] / "scripts" / "bench-network.py"
# The kernels' CPU form stands in for the kernels: both are the same operators to a FLOP counter.
TWO_ROWS = """
import argparse, json, runpy, sys
import torch
bench = runpy.run_path(sys.argv[1], run_name="bench")
from network_bench.check import computed_by
device, options = torch.device("cpu"), argparse.Namespace(repeats=1, profile=False)
with computed_by("kernels", device):
    rows = [bench["_measure"]("smoke", "plain", False, None, device, options) for _ in range(2)]
print(json.dumps([row["flops"] for row in rows]))
"""


def test_the_first_row_counts_as_much_as_the_second():
    """In a fresh process: a counter knows only the formulas that are registered when it is made."""
    done = subprocess.run([sys.executable, "-c", TWO_ROWS, BENCH], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = json.loads(done.stdout)
    assert first == second > 0
