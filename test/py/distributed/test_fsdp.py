"""Networks sharded over two gloo processes give the gradients and updates of one process (design.md section 2)."""

from __future__ import annotations

import itertools

import pytest
from distributed import two_ranks
from distributed.spawn import run_on_ranks


def test_steps_and_precision(tmp_path):
    run_on_ranks(
        two_ranks.RANKS,
        tmp_path,
        two_ranks,
        ("step_equals_one_process", "wan", False, "scm"),
        ("step_equals_one_process", "wan", True, "dmd"),
        ("step_equals_one_process", "cosmos", True, "scm"),
        ("step_equals_one_process", "cosmos", False, "dmd"),
        ("step_equals_one_process", "wan", False, "scm", True),
        ("step_equals_one_process", "cosmos", True, "scm", True, "selective"),
        ("step_equals_one_process", "wan", False, "scm", False, "selective"),
        ("offloaded_updates_equal", "wan", False),
        ("bf16_parameters", "wan"),
        ("casting_the_inputs_fails", "wan"),
    )


@pytest.mark.long
def test_every_combination(tmp_path):
    steps = itertools.product(two_ranks.FAMILIES, (False, True), two_ranks.STEPS)
    run_on_ranks(
        two_ranks.RANKS,
        tmp_path,
        two_ranks,
        *(("step_equals_one_process", *combination) for combination in steps),
        *((name, family) for name in ("bf16_parameters", "casting_the_inputs_fails") for family in two_ranks.FAMILIES),
    )
