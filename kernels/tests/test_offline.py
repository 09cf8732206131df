"""What ptxas makes of the kernels, pinned: a change that ruins one fails here, on a machine without a GPU.

The numbers are those of Triton 3.6.0. `matrix` counts the matrix instructions of two loops (two consumers, or the whole
and the edge loop); `waits` those that wait for them: more of them means ptxas has serialised the products. A few bytes
of stack may be spilled once a tile. Inside a loop nothing is, with three exceptions, whose accesses are pinned: Hopper
at D = 64 split (2), portable on sm_90a at D = 128 (5; Hopper has its own kernel for it) and on sm_80 at D = 128 (22).
By default every architecture is compiled at D = 128, the head dim of both model families; the rest is long.
"""

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

# case: (registers at most, stack bytes at most, matrix instructions, waits, spill accesses in the loops at most)
FAST = {
    "hopper 128 full": (168, 24, 72, 6, 0),
    "hopper 128 full split": (168, 48, 72, 6, 0),
    "hopper 128 full masked": (168, 72, 72, 6, 0),
    "hopper 128 constant": (168, 40, 48, 6, 0),
    "hopper 64 full split": (168, 72, 72, 6, 2),
    "portable sm_90a 128": (255, 64, 72, 11, 5),
    "portable sm_80 128": (255, 224, 192, 0, 22),
    "portable sm_100 128": (176, 0, 122, 0, 0),
}
REST = {
    "hopper 128 full fp16": (168, 24, 72, 6, 0),
    "hopper 64 constant": (168, 40, 48, 6, 0),
    "portable sm_90a 64": (208, 0, 48, 11, 0),
    "portable sm_90a 128 q": (255, 24, 48, 7, 0),
    "portable sm_80 64": (255, 0, 192, 0, 0),
    "portable sm_100 64": (168, 0, 88, 0, 0),
}


def compile_cases(cases, cache, timeout):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    script = Path(__file__).with_name("offline.py")

    def compiled(some):
        done = subprocess.run(
            [sys.executable, str(script), *some], env=environment, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.splitlines()

    halves = [half for half in (cases[::2], cases[1::2]) if half]
    with ThreadPoolExecutor(len(halves)) as side_by_side:
        return {line["case"]: line for lines in side_by_side.map(compiled, halves) for line in map(json.loads, lines)}


def judge(found, pins):
    assert set(found) == set(pins)
    for case, (registers, stack, matrix, waits, loop_spills) in pins.items():
        line = found[case]
        assert line["matrix"] == matrix and line["waits"] == waits, line
        assert line["registers"] <= registers and line["stack"] <= stack, line
        assert line["loop_spills"] <= loop_spills, line
        assert line["shared"] <= (167936 if "sm_80" in case else 232448), line


@pytest.fixture(autouse=True)
def pinned_triton():
    import importlib.metadata

    version = importlib.metadata.version("triton")
    if version != "3.6.0":
        pytest.skip(f"the pins are those of Triton 3.6.0, this is {version}")


def test_compiled_kernels(tmp_path):
    judge(compile_cases(list(FAST), tmp_path, 600), FAST)


def test_host_side_binds_and_compiles(tmp_path):
    """`launch` of both kernels with the launch itself left out: arguments, tensor maps and plans fit together."""
    done = compile_cases(["launches"], tmp_path, 600)["launches"]["done"]
    assert [name for name, _ in done] == ["hopper", "portable"] * 2


def test_no_length_recompiles_anything(tmp_path):
    assert compile_cases(["variants"], tmp_path, 600) == {"variants": {"case": "variants", "hopper": 1, "portable": 1}}


@pytest.mark.long
def test_compiled_kernels_rest(tmp_path):
    judge(compile_cases(list(REST), tmp_path, 1200), REST)
