"""Phases and counters: the digits numbers, every method, head start, rollout lengths and times."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rcm_sidecar.methods.rcm import MethodSchedule, next_phase, rollout_length, rollout_times, updates_after

DIGITS = {"student_every": 3, "tangent_warmup_updates": 150}


def play(schedule, steps):
    student = critic = 0
    phases = []
    for _ in range(steps):
        phase = next_phase(schedule, student, critic)
        phases.append(phase)
        student, critic = student + (phase.name == "student"), critic + (phase.name == "critic")
    return phases, student, critic


def test_digits_numbers_come_out():
    phases, student, critic = play(MethodSchedule("rcm", **DIGITS), 1050)
    assert (student, critic) == (450, 600)
    assert [phase.losses for phase in phases[:150]] == [("scm",)] * 150
    assert [phase.warmup_ratio for phase in phases[:150]] == [i / 150 for i in range(150)]
    assert phases[150].losses == ("scm", "dmd")  # the first DMD update meets a critic that is still the teacher
    assert {phase.warmup_ratio for phase in phases[150:]} == {1.0}
    assert [phase.name for phase in phases[150:156]] == ["student", "critic", "critic"] * 2


@pytest.mark.parametrize("method,steps,critic", [("scm", 450, 0), ("dcm", 450, 0), ("dmd", 1350, 900)])
def test_equal_student_updates_of_the_other_methods(method, steps, critic):
    phases, student, made = play(MethodSchedule(method, **DIGITS), steps)
    assert (student, made) == (450, critic)
    assert {phase.losses for phase in phases if phase.name == "student"} == {(method,)}
    ratios = [phase.warmup_ratio for phase in phases]
    assert ratios == ([min(1.0, i / 150) for i in range(450)] if method == "scm" else [1.0] * steps)


def test_wan_numbers_come_out():
    schedule = MethodSchedule("rcm", student_every=5, tangent_warmup_updates=1000)
    assert updates_after(schedule, 100_000) == (20_800, 79_200)


def test_head_start_comes_before_the_first_dmd_update():
    schedule = MethodSchedule("rcm", student_every=3, tangent_warmup_updates=2, critic_head_start_steps=4)
    names = "".join(phase.name[0] for phase in play(schedule, 12)[0])
    assert names == "ss" + "cccc" + "sccscc"


@given(
    st.sampled_from(["rcm", "scm", "dmd", "dcm"]),
    st.integers(1, 6),
    st.integers(0, 9),
    st.integers(0, 7),
    st.integers(0, 60),
)
def test_totals_equal_the_steps_played(method, every, warmup, head_start, steps):
    schedule = MethodSchedule(method, every, warmup, head_start)
    phases, student, critic = play(schedule, steps)
    assert updates_after(schedule, steps) == (student, critic)
    assert all(phase.losses == ("critic",) for phase in phases if phase.name == "critic")


@pytest.mark.parametrize("options", [{"method": "sid"}, {"student_every": 0}, {"tangent_warmup_updates": -1}])
def test_impossible_schedules_are_refused(options):
    with pytest.raises(ValueError):
        MethodSchedule(**{"method": "rcm", **options})


def test_rollout_lengths_take_turns():
    assert [rollout_length(i, 4) for i in range(6)] == [1, 2, 3, 4, 1, 2]


def test_rollout_times_fall_from_half_pi():
    draws = torch.tensor([[1.0, 0.2], [1.3, 0.1], [0.4, 1.5]], dtype=torch.float64)
    times = rollout_times(4, 2, draws)
    assert times.tolist() == [[math.pi / 2] * 2, [1.0, 0.2], [1.0, 0.1], [0.4, 0.1]]
    assert rollout_times(2, 2, draws).shape == (2, 2)
    assert rollout_times(1, 3, torch.empty(0, 3)).tolist() == [[math.pi / 2] * 3]
    assert rollout_times(3, 2, [1.5, 1.4, 1.0])[:, 1].tolist() == [math.pi / 2, 1.5, 1.4]
    with pytest.raises(ValueError, match="needs 3 times"):
        rollout_times(4, 2, [1.5, 1.4])
