"""Two graphs never live at once: when a term's forward begins, nothing of the graphs before it is held any more."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training.tiny_run import tiny_config

from rcm_sidecar.training.setup import set_up_distillation


class Saved:
    """A tensor a graph saved for backward; it lives as long as the graph holds it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@contextmanager
def watched() -> Iterator[weakref.WeakSet[Saved]]:
    """All that graphs hold of what is saved inside. Nothing is collected: reference counts have to do."""
    alive: weakref.WeakSet[Saved] = weakref.WeakSet()

    def pack(tensor: Tensor) -> Saved:
        saved = Saved(tensor.detach())
        alive.add(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        yield alive


@pytest.mark.parametrize("mode", ["none", "asymmetric"])
@pytest.mark.parametrize("method", ["rcm", "scm", "dcm", "dmd"])
def test_no_graph_is_left_when_the_next_forward_begins(method: str, mode: str, tiny_teacher: Path) -> None:
    changes: dict[str, Any] = {
        "teacher.weights": str(tiny_teacher),
        "method": method,
        "compute.activationCheckpointing": mode,
        "losses.scm.tangentWarmupUpdates": 0,
        "schedule.microBatchSize": 4,
    }
    trainer = set_up_distillation(tiny_config(changes), check=False).trainer
    plan = trainer._plan
    held: list[tuple[str, int, int]] = []
    with watched() as alive:

        def counting(term: Any) -> Any:
            def loss(chosen: slice) -> Any:
                before = len(alive)
                result = term.loss(chosen)
                held.append((term.name, before, len(alive)))
                return result

            return dataclasses.replace(term, loss=loss)

        def counted(step: int, updates: Any) -> Any:
            work = plan(step, updates)
            return dataclasses.replace(work, terms=tuple(counting(term) for term in work.terms))

        trainer._plan = counted
        for _ in range(6):
            trainer.run_step()
    assert {name for name, *_ in held} == {
        "rcm": {"scm", "dmd", "critic"}, "scm": {"scm"}, "dcm": {"dcm"}, "dmd": {"dmd", "critic"}
    }[method]  # fmt: skip
    assert len(held) >= 12, "two micro-batches a step"
    assert all(after > 0 for _, _, after in held), "the hooks saw no graph"
    assert [entry for entry in held if entry[1]] == []


def test_the_count_sees_a_graph_that_is_kept() -> None:
    weight = torch.ones(3, requires_grad=True)
    with watched() as alive:
        first = (weight * weight).sum()
        assert len(alive) > 0
        second = weight.exp().sum()
        both = len(alive)
        first.backward()
        del first
        assert 0 < len(alive) < both
        second.backward()
        assert len(alive) == 0
