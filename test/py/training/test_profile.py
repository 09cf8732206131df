"""`compute.profile`: every part of real steps is there, the parts add up to wall time, and no bit changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training.tiny_run import comparable, run, start

from rcm_sidecar.link import RecordingLink
from rcm_sidecar.protocol import PretrainStart

TEACHER_AND_STUDENT = {"teacher", "dual_forward", "recomputation", "backward", "optimizer"}
EVERY_STEP = {"inputs", "data_wait", "other"}


def profiles(link: RecordingLink) -> dict[str, list[dict[str, float]]]:
    """Profiles by phase, by part without prefix and unit; the first step of each phase has none."""
    by_phase: dict[str, list[dict[str, float]]] = {}
    for _, phase, values in link.metric_values():
        found = {name.removeprefix("profile/"): value for name, value in values.items() if name.startswith("profile/")}
        by_phase.setdefault(phase, []).append(found)
    for first, *others in by_phase.values():
        assert first == {} and all(others)
    return {phase: found[1:] for phase, found in by_phase.items()}


def parts_of(found: list[dict[str, float]]) -> set[str]:
    """Parts that took time in any step."""
    took = {name for one in found for name, value in one.items() if value > 0}
    return {name.removesuffix("_share") for name in took if name.endswith("_share")}


def check_sums(found: list[dict[str, float]]) -> None:
    for one in found:
        shares = {name: value for name, value in one.items() if name.endswith("_share")}
        assert sum(shares.values()) == pytest.approx(1)
        parts = {name: value for name, value in one.items() if name.endswith("_ms") and name != "step_ms"}
        assert sum(parts.values()) == pytest.approx(one["step_ms"])
        for name, value in parts.items():
            assert value == pytest.approx(shares[name.replace("_ms", "_share")] * one["step_ms"])
        assert 0 < one["outside_networks"] < 1


def without_profile(link: RecordingLink) -> list[Any]:
    return [
        (step, phase, {name: value for name, value in values.items() if not name.startswith("profile/")})
        for step, phase, values in comparable(link)
    ]


def test_rcm_has_all_parts_of_both_phases_and_the_bits_of_a_run_without(tiny_teacher: Path, tmp_path: Path) -> None:
    changes = {
        "teacher.weights": str(tiny_teacher),
        "compute.activationCheckpointing": "block",
        "schedule.studentEvery": 2,
        "checkpoints.everySteps": 4,
        "health.checksumEverySteps": 4,
        "evaluation.previews.everySteps": 4,
    }
    _, plain = run(start(tmp_path / "plain", changes))
    _, link = run(start(tmp_path / "profiled", {**changes, "compute.profile": True}))
    assert without_profile(link) == comparable(plain)
    found = profiles(link)
    assert found.keys() == {"student", "critic"}
    # What the loop does after a step (previews, checkpoints) counts to the step that follows.
    assert parts_of(found["student"]) | parts_of(found["critic"]) == (
        TEACHER_AND_STUDENT | EVERY_STEP | {"rollout", "critic", "checkpoint", "checksum", "sampling"}
    )
    assert parts_of(found["critic"]) >= {"rollout", "critic", "recomputation", "backward", "optimizer"}
    assert not parts_of(found["critic"]) & {"teacher", "dual_forward"}
    for phase in found.values():
        check_sums(phase)


@pytest.mark.parametrize("method", ["scm", "dcm"])
def test_the_parts_add_up_to_the_time_that_passed(method: str, tiny_teacher: Path, tmp_path: Path) -> None:
    changes = {
        "teacher.weights": str(tiny_teacher),
        "compute.profile": True,
        "method": method,
        "schedule.batchSize": 64,
    }
    _, link = run(start(tmp_path, changes))
    found = profiles(link)["student"]
    forward = {"dual_forward"} if method == "scm" else {"forward"}
    assert parts_of(found) == {"teacher", "backward", "optimizer"} | EVERY_STEP | forward
    first, *_, last = link.of_type("metric")
    passed = 1000 * (last["time"] - first["time"])
    assert sum(one["step_ms"] for one in found) == pytest.approx(passed, rel=0.02, abs=10)


def test_means_are_over_the_steps_since_the_last_line(tiny_teacher: Path, tmp_path: Path) -> None:
    changes = {
        "teacher.weights": str(tiny_teacher),
        "compute.profile": True,
        "method": "scm",
        "logging.everySteps": 5,
        "checkpoints.everySteps": 6,
    }
    _, link = run(start(tmp_path, changes))
    found = profiles(link)["student"]
    assert [one["steps"] for one in found] == [4, 5]  # lines of steps 5 and 10
    assert ["checkpoint_ms" in one for one in found] == [False, True]  # of a step that has no line of its own


def test_pretraining_has_a_profile(tmp_path: Path) -> None:
    _, link = run(start(tmp_path, {"compute.profile": True}, job=PretrainStart))
    found = profiles(link)["teacher"]
    assert parts_of(found) == {"forward", "backward", "optimizer"} | EVERY_STEP
    check_sums(found)


@pytest.mark.parametrize(
    ("shard", "context", "kind"),
    [
        (2, 1, "auto"),
        pytest.param(1, 2, "ulysses", marks=pytest.mark.long),
        pytest.param(1, 2, "ring", marks=pytest.mark.long),
    ],
)
def test_two_processes_communicate(shard: int, context: int, kind: str, tiny_teacher: Path, tmp_path: Path) -> None:
    """Weights and gradients are exchanged inside calls of networks, so that is not outside of them."""
    changes = {
        "teacher.weights": str(tiny_teacher),
        "compute.profile": True,
        "compute.gpusPerNode": 2,
        "compute.parallel.shard": shard,
        "compute.parallel.context": context,
        "compute.parallel.contextKind": kind,
        "compute.activationCheckpointing": "block",
        "method": "scm",
        "schedule.steps": 5,
    }
    _, link = run(start(tmp_path, changes))
    found = profiles(link)["student"]
    assert parts_of(found) == TEACHER_AND_STUDENT | EVERY_STEP | {"communication"}
    check_sums(found)
    outside = [sum(value for name, value in one.items() if name in OUTSIDE) for one in found]
    for one, without_communication in zip(found, outside, strict=True):
        own_collective = one["outside_networks"] - without_communication
        assert 0 < own_collective < one["communication_share"]


OUTSIDE = {f"{part}_share" for part in ("optimizer", "inputs", "data_wait", "other")}
