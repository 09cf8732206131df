"""The trainer on several gloo processes takes the steps that one process takes (design.md sections 2 and 3)."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from distributed.spawn import run_on_ranks
from training import trainer_ranks

METHODS = ("rcm", "scm", "dmd", "dcm")
# (shard, context, contextKind): what is left over replicates, so that (1, 1) is copies without shards and (2, 1) on
# four processes HSDP. Ulysses on four processes has a network with heads for it in test_context.py.
TWO = ((2, 1, "auto"), (1, 1, "auto"), (1, 2, "ulysses"), (1, 2, "ring"))
FOUR = (
    (4, 1, "auto"),
    (2, 1, "auto"),
    (1, 1, "auto"),
    (1, 2, "ulysses"),
    (1, 2, "ring"),
    (2, 2, "ulysses"),
    (2, 2, "ring"),
    (1, 4, "ring"),
)


def equal(family: str, teacher: Path, method: str, lora: bool, layout: tuple[int, int, str]) -> tuple[object, ...]:
    return ("equals_one_process", family, str(teacher), method, lora, *layout)


def test_two_processes_take_the_steps_of_one(tiny_teacher: Path, cosmos_teacher: Path, tmp_path: Path) -> None:
    run_on_ranks(
        2,
        tmp_path,
        trainer_ranks,
        ("talk",),
        ("every_rank_finds_the_bad_sample", str(tiny_teacher)),
        ("replicas_are_summed_once_a_step", str(tiny_teacher)),
        ("pretraining_equals_one_process",),
        equal("wan", tiny_teacher, "rcm", False, (2, 1, "auto")),
        equal("wan", tiny_teacher, "rcm", True, (1, 2, "ring")),
        equal("wan", tiny_teacher, "scm", True, (1, 1, "auto")),
        equal("cosmos", cosmos_teacher, "dmd", False, (1, 2, "ulysses")),
        equal("cosmos", cosmos_teacher, "dcm", True, (2, 1, "auto")),
    )


@pytest.mark.long
@pytest.mark.parametrize(("ranks", "layouts"), [(2, TWO), (4, FOUR)])
def test_every_family_method_and_layout(
    ranks: int, layouts: tuple, tiny_teacher: Path, cosmos_teacher: Path, tmp_path: Path
) -> None:
    families = (("wan", tiny_teacher), ("cosmos", cosmos_teacher))
    combinations = itertools.product(families, METHODS, (False, True), layouts)
    cases = (equal(*family, *combination) for family, *combination in combinations)
    run_on_ranks(ranks, tmp_path, trainer_ranks, *cases, limit_seconds=1800)
