"""The portable Triton kernel and the merge kernel in Triton's interpreter, on the CPU, against fp64."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
LIMITS = {"torch.float32": (1e-6, 2e-6, 1e-5), "torch.float16": (1e-3, 1.5e-3, 1e-3)}


def run(suite, timeout):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("interpreter_cases.py")
    done = subprocess.run(
        [sys.executable, str(script), suite], env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def judge(lines):
    for line in lines:
        case, found = line["case"], line["errors"]
        if case[0] == "merge":
            assert max(found.values()) < 2e-5, line
            continue
        limit_out, limit_tangent, limit_lse = LIMITS[case[-1]]
        assert found["out"] < limit_out and found["lse"] < limit_lse, line
        assert found.get("tangent", 0.0) < limit_tangent, line
        assert ("tangent" in found) == (case[1] != ""), line


def test_interpreter():
    lines = run("short", 300)
    judge(lines)
    assert len(lines) == 14  # none was lost


@pytest.mark.long
def test_interpreter_many_shapes():
    judge(run("long", 3000))
