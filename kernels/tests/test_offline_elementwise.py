"""What ptxas makes of the elementwise kernels, pinned: registers, no spills, rows in accesses of 16 bytes.

The numbers are those of Triton 3.6.0 with the plans of `row_plan.py`: few warps with many registers each were measured
faster than many warps, and a register count that grows without a change of plan is a kernel that slows down.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_offline import pinned_triton  # noqa: F401

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

# case: registers at most, on sm_80, sm_90a and sm_100
FAST = {
    "norm 1536": 128,
    "gate norm 1536": 128,
    "gate norm plain save 1536": 64,
    "gate norm backward 1536": 164,
    "gate norm backward 5120": 255,
    "rms rope 12x128": 96,
    "rms rope halves 16x128": 80,
    "rms rope backward 12x128": 120,
    "gelu tanh": 48,
}
REST = {
    **FAST,
    "norm 2048": 88,
    "norm 5120": 128,
    **{f"norm plain {dim}": most for dim, most in ((1536, 64), (2048, 44), (5120, 64))},
    "gate norm 2048": 90,
    "gate norm 5120": 128,
    **{f"add norm {dim}": most for dim, most in ((1536, 128), (2048, 88), (5120, 128))},
    **{f"gate {dim}": most for dim, most in ((1536, 128), (2048, 88), (5120, 128))},
    **{f"gate norm plain save {dim}": 64 for dim in (2048, 5120)},
    **{f"norm backward {dim}": most for dim, most in ((1536, 128), (2048, 128), (5120, 180))},
    "gate norm backward 2048": 164,
    "norm fp32 1536": 128,
    "rms rope 12x128 plain": 64,
    "rms rope 40x128": 160,
    "rms rope halves 40x128": 160,
    "rms 1536": 128,
    "rms 5120": 168,
    "rms 16x128": 64,
    "rms rope backward 40x128": 255,
    "rms rope halves backward 16x128": 64,
    "rms backward 1536": 80,
    "gelu tanh plain": 32,
    "gelu tanh backward": 40,
    "gelu erf": 48,
    "silu": 40,
}
NARROW = {"rms rope halves backward 16x128"}  # eight warps on 2048 elements: four at a time, faster than fewer warps
SCALARS = 2  # mean and rstd of a row, or the weight's sums


def judge(pins, capability, cache, timeout):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    script = Path(__file__).with_name("offline_elementwise.py")
    done = subprocess.run(
        [sys.executable, str(script), str(capability), *pins],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {line["case"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert set(found) == set(pins)
    for case, registers in pins.items():
        line = found[case]
        assert line["registers"] <= registers, line
        assert line["stack"] == 0, line
        for kind in ("loads", "stores") if case not in NARROW else ():
            assert line[kind]["128"] >= 2, line
            assert sum(line[kind].values()) - line[kind]["128"] <= SCALARS, line


def test_compiled_kernels(tmp_path):
    judge(FAST, 90, tmp_path, 300)


@pytest.mark.long
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_compiled_kernels_rest(capability, tmp_path):
    judge(REST, capability, tmp_path, 900)
