"""Networks sharded over two gloo processes give the gradients and updates of one process (design.md section 2)."""

from __future__ import annotations

import itertools
import time

import pytest
import torch.multiprocessing as mp
from distributed import two_ranks

LIMIT_SECONDS = 120


def run_on_two_ranks(folder, *scenarios):
    """Run the scenarios of `two_ranks`, both processes ended in any case; a failure there fails here."""
    context = mp.start_processes(
        two_ranks.run, args=(str(folder), scenarios), nprocs=two_ranks.RANKS, join=False, start_method="spawn"
    )
    deadline = time.monotonic() + LIMIT_SECONDS
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < deadline, "the two processes did not end"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
            process.join()


def test_steps_and_precision(tmp_path):
    run_on_two_ranks(
        tmp_path,
        ("step_equals_one_process", "wan", False, "scm"),
        ("step_equals_one_process", "wan", True, "dmd"),
        ("step_equals_one_process", "cosmos", True, "scm"),
        ("step_equals_one_process", "cosmos", False, "dmd"),
        ("bf16_parameters", "wan"),
        ("casting_the_inputs_fails", "wan"),
    )


@pytest.mark.long
def test_every_combination(tmp_path):
    steps = itertools.product(two_ranks.FAMILIES, (False, True), two_ranks.STEPS)
    run_on_two_ranks(
        tmp_path,
        *(("step_equals_one_process", *combination) for combination in steps),
        *((name, family) for name in ("bf16_parameters", "casting_the_inputs_fails") for family in two_ranks.FAMILIES),
    )
