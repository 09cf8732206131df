"""The elementwise kernels in Triton's interpreter, on the CPU, against fp64: shapes, strides, dtypes, missing parts."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def run(examples, timeout):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("interpreter_elementwise.py")
    done = subprocess.run(
        [sys.executable, str(script), str(examples)], env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count(" holds") == 4


def test_interpreter():
    run(4, 600)


@pytest.mark.long
def test_interpreter_many_inputs():
    run(150, 3000)
