"""Numbers that a thread draws during the step before: the same run, and nothing drawn for steps that do not come."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training.test_resume import stop_at
from training.tiny_run import comparable, run, start

from rcm_sidecar.methods import scm
from rcm_sidecar.training import setup
from rcm_sidecar.training.draws import DrawnAhead, Draws, Numbers
from rcm_sidecar.training.randomness import normal

STEPS = 8


class Watched(DrawnAhead):
    """Draws ahead on the CPU, too, and writes down what it is asked."""

    made: list[Watched]

    def __init__(self, threaded: bool = False) -> None:
        super().__init__(threaded=True)
        self.begun: list[Any] = []
        self.taken: list[Any] = []
        self.late: list[Any] = []
        Watched.made.append(self)

    def begin(self, key: Any, drawing: Callable[[], dict[str, Numbers]]) -> None:
        def elsewhere() -> dict[str, Numbers]:
            assert threading.current_thread() is not threading.main_thread()
            return drawing()

        self.begun.append(key)
        super().begin(key, elsewhere)

    def take(self, key: Any, drawing: Callable[[], dict[str, Numbers]]) -> dict[str, Numbers]:
        def here() -> dict[str, Numbers]:
            self.late.append(key)
            return drawing()

        self.taken.append(key)
        return super().take(key, here)


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Watched]]:
    """From the call on runs draw ahead; returns what they were asked."""
    Watched.made = []

    def switch_on() -> list[Watched]:
        monkeypatch.setattr(setup, "DrawnAhead", Watched)
        return Watched.made

    return switch_on


@pytest.mark.parametrize(("method", "rollout_times"), [("rcm", "random"), ("rcm", [1.4, 1.0]), ("dcm", "random")])
def test_the_same_run_over_all_phases(
    method: str, rollout_times: Any, tiny_teacher: Path, tmp_path: Path, ahead: Any
) -> None:
    settings = {
        "teacher.weights": str(tiny_teacher),
        "schedule.steps": STEPS,
        "method": method,
        "losses.dmd.rolloutTimes": rollout_times,
        "losses.dmd.rolloutSteps": 3,
    }
    _, without = run(start(tmp_path / "without", settings))
    made = ahead()
    _, drawn = run(start(tmp_path / "ahead", settings))
    assert comparable(drawn) == comparable(without)
    (asked,) = made
    assert asked.begun == asked.taken[1:]  # each step but the first was foretold, and none after the last
    assert asked.late == asked.taken[:1] and len(asked.taken) == STEPS
    phases = {phase for _, phase, _ in asked.taken}
    assert phases == ({"student", "critic"} if method == "rcm" else {"student"})


def test_a_step_that_was_skipped_is_as_foretold(
    tiny_teacher: Path, tmp_path: Path, ahead: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its counters move on as if it had been taken."""
    real, calls = scm.tangent, [0]

    def overflow(*arguments: object, **options: object) -> torch.Tensor:
        calls[0] += 1
        g = real(*arguments, **options)  # type: ignore[arg-type]
        return g * float("nan") if calls[0] == 2 else g

    monkeypatch.setattr(scm, "tangent", overflow)
    settings = {"teacher.weights": str(tiny_teacher), "schedule.steps": STEPS}
    _, without = run(start(tmp_path / "without", settings))
    made, calls[0] = ahead(), 0
    _, drawn = run(start(tmp_path / "ahead", settings))
    assert repr(comparable(drawn)) == repr(comparable(without))  # NaN is not NaN
    assert made[0].late == made[0].taken[:1]


def test_a_resumed_run_is_the_same_run(tiny_teacher: Path, tmp_path: Path, ahead: Any) -> None:
    settings = {"teacher.weights": str(tiny_teacher), "schedule.steps": STEPS}
    _, whole = run(start(tmp_path / "whole", settings))
    made = ahead()
    end, first = run(start(tmp_path / "parts", settings), stop_at(5, checkpoint=True))
    folder = tmp_path / "parts" / str(end.checkpoint)
    _, second = run(start(tmp_path / "parts", settings, resume_from=folder, attempt=2))
    assert comparable(first) + comparable(second) == comparable(whole)
    assert [len(asked.late) for asked in made] == [1, 1]
    assert made[1].taken[0] == made[0].begun[-1]  # drawn twice, once for nothing


def test_numbers_of_another_step_are_not_taken() -> None:
    drawn = DrawnAhead(threaded=True)
    numbers = [{"scm": Numbers(torch.tensor(float(index)), torch.zeros(1))} for index in range(2)]
    drawn.begin((1, "student", 1), lambda: numbers[0])
    assert drawn.take((1, "critic", 1), lambda: numbers[1]) is numbers[1]
    assert drawn.take((1, "student", 1), lambda: numbers[1]) is numbers[1]  # and they are gone


def test_an_error_of_the_thread_is_raised_where_the_numbers_are_needed() -> None:
    def fail() -> dict[str, Numbers]:
        raise MemoryError

    drawn = DrawnAhead(threaded=True)
    drawn.begin(1, fail)
    with pytest.raises(MemoryError):
        drawn.take(1, dict)


def test_a_process_has_its_samples_of_the_whole_batch() -> None:
    draws = Draws(1, 2, 6, slice(2, 4), (3, 1, 5, 7))
    assert torch.equal(draws.noise("scm/noise"), normal(1, 2, "scm/noise", (6, 3, 1, 5, 7))[2:4])


@pytest.mark.gpu
def test_pinned_numbers_reach_the_gpu() -> None:
    draws = Draws(1, 2, 6, slice(2, 4), (3, 1, 5, 7))
    pinned = Numbers(draws.noise("scm/noise"), draws.uniform("dcm/time")).pinned()
    assert pinned.noise.is_pinned() and pinned.times.is_pinned()
    assert torch.equal(pinned.to(torch.empty(0, device="cuda")).noise.cpu(), draws.noise("scm/noise"))
