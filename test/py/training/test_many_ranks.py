"""The trainer on several gloo processes takes the steps that one process takes (design.md sections 2 and 3)."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from distributed.spawn import run_on_ranks
from training import trainer_ranks

METHODS = ("rcm", "scm", "dmd", "dcm")
# (shard, context, contextKind): what is left over replicates.
TWO = ((2, 1, "auto"), (1, 1, "auto"), (1, 2, "ulysses"), (1, 2, "ring"))
FOUR = ((4, 1, "auto"), (2, 1, "auto"), (2, 2, "ulysses"), (1, 2, "ring"))


def equal(teacher: Path, method: str, lora: bool, layout: tuple[int, int, str]) -> tuple[object, ...]:
    return ("equals_one_process", str(teacher), method, lora, *layout)


def test_two_processes_take_the_steps_of_one(tiny_teacher: Path, tmp_path: Path) -> None:
    run_on_ranks(
        2,
        tmp_path,
        trainer_ranks,
        ("talk",),
        ("every_rank_finds_the_bad_sample", str(tiny_teacher)),
        ("replicas_are_summed_once_a_step", str(tiny_teacher)),
        ("pretraining_equals_one_process",),
        equal(tiny_teacher, "rcm", False, (2, 1, "auto")),
        equal(tiny_teacher, "rcm", True, (1, 2, "auto")),
    )


@pytest.mark.long
@pytest.mark.parametrize(("ranks", "layouts"), [(2, TWO), (4, FOUR)])
def test_every_method_and_layout(ranks: int, layouts: tuple, tiny_teacher: Path, tmp_path: Path) -> None:
    combinations = itertools.product(METHODS, (False, True), layouts)
    run_on_ranks(ranks, tmp_path, trainer_ranks, *(equal(tiny_teacher, *combination) for combination in combinations))
