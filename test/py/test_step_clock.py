"""The stopwatch of a step's parts, on a clock that the test turns."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rcm_sidecar.step_clock import (
    NETWORK_PARTS,
    Part,
    StepClock,
    StepProfile,
    current_clock,
    region,
    region_of,
    timed,
)


class Time:
    """Seconds that pass only where the test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def passes(self, milliseconds: float) -> None:
        self.seconds += milliseconds / 1000


@pytest.fixture
def now() -> Time:
    return Time()


@pytest.fixture
def clock(now: Time) -> Iterator[StepClock]:
    clock = StepClock(torch.device("cpu"), now)
    with clock.running():
        yield clock


def test_an_inner_region_takes_over_from_the_outer_one(clock: StepClock, now: Time) -> None:
    now.passes(1)
    with region("backward"):
        now.passes(10)
        with region("recomputation"):
            now.passes(100)
            with region("communication"):
                now.passes(1000)
            now.passes(200)
        now.passes(20)
    with region("communication"):
        now.passes(5)
    lap = clock.lap()
    assert lap.parts == pytest.approx({"other": 1, "backward": 30, "recomputation": 300, "communication": 1005})
    assert lap.outside_networks == pytest.approx(6)  # communication inside a network's call is not outside


def test_steps_follow_each_other_without_a_gap_and_a_pause_belongs_to_none(clock: StepClock, now: Time) -> None:
    now.passes(3)
    assert clock.lap().parts == pytest.approx({"other": 3})
    now.passes(4)  # what the loop does between two steps
    with region("pause"):
        now.passes(1e6)
        with region("checkpoint"):
            now.passes(7)
    lap = clock.lap()
    assert lap.parts == pytest.approx({"other": 4, "checkpoint": 7}) and lap.outside_networks == pytest.approx(11)


def test_a_region_ends_with_an_error(clock: StepClock, now: Time) -> None:
    with pytest.raises(KeyError), region("teacher"):
        now.passes(2)
        raise KeyError
    now.passes(1)
    assert clock.lap().parts == pytest.approx({"teacher": 2, "other": 1})


def test_what_runs_on_another_thread_needs_the_clock_of_its_forward(clock: StepClock, now: Time) -> None:
    """As autograd's threads, which do not have the context."""

    def backward() -> None:
        with region("optimizer"):
            now.passes(1)
        with region_of(clock, "recomputation"):
            now.passes(2)

    with region("backward"):
        thread = threading.Thread(target=backward)
        thread.start()
        thread.join()
    assert clock.lap().parts == pytest.approx({"backward": 1, "recomputation": 2, "other": 0})


def test_without_a_profile_nothing_is_wrapped() -> None:
    def call(x: int) -> int:
        return x

    assert current_clock() is None and timed("teacher", call) is call
    assert region("teacher") is region("backward") is region_of(None, "critic")


def test_calls_are_timed(clock: StepClock, now: Time) -> None:
    def call(x: int, *, y: int) -> int:
        now.passes(x * y)
        return x + y

    assert timed("teacher", call)(2, y=3) == 5
    assert clock.lap().parts["teacher"] == pytest.approx(6)


TREES = st.recursive(
    st.integers(0, 50).map(float),
    lambda inner: st.tuples(st.sampled_from(("teacher", "rollout", "communication", "optimizer")), st.lists(inner)),
    max_leaves=20,
)


@given(st.lists(TREES))
def test_the_parts_add_up_to_the_step(trees: list) -> None:
    now = Time()
    clock = StepClock(torch.device("cpu"), now)
    inside_networks = 0.0

    def walk(tree: float | tuple[Part, list], inside: bool) -> None:
        nonlocal inside_networks
        if isinstance(tree, float):
            now.passes(tree)
            inside_networks += tree if inside else 0
            return
        with region(tree[0]):
            for child in tree[1]:
                walk(child, inside or tree[0] in NETWORK_PARTS)

    with clock.running():
        for tree in trees:
            walk(tree, False)
    lap = clock.lap()
    assert sum(lap.parts.values()) == pytest.approx(1000 * now.seconds)
    assert lap.outside_networks == pytest.approx(1000 * now.seconds - inside_networks, abs=1e-6)


def test_a_profile_is_the_mean_of_a_phase_without_its_first_step(clock: StepClock, now: Time) -> None:
    profile = StepProfile()

    def step(phase: str, teacher: float, checkpoint: float) -> None:
        with region("teacher"):
            now.passes(teacher)
        with region("checkpoint"):
            now.passes(checkpoint)
        profile.add(phase, clock.lap())

    step("student", 1e6, 0)
    assert profile.take("student") == {}
    step("critic", 1e6, 0)
    step("student", 30, 0)
    step("critic", 5, 0)
    step("student", 50, 20)
    assert profile.take("student") == pytest.approx(
        {
            "profile/steps": 2,
            "profile/step_ms": 50,
            "profile/teacher_ms": 40,
            "profile/teacher_share": 0.8,
            "profile/checkpoint_ms": 10,
            "profile/checkpoint_share": 0.2,
            "profile/other_ms": 0,
            "profile/other_share": 0,
            "profile/outside_networks": 0.2,
        }
    )
    assert profile.take("student") == {} and profile.take("critic")["profile/step_ms"] == pytest.approx(5)
