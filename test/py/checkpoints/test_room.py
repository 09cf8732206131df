"""The disk is looked at before the first step: what does not fit is refused, what will not fit is said."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from training.tiny_run import make_teacher, run, start

from rcm_sidecar.checkpoints.room import check_room
from rcm_sidecar.config import Checkpoints
from rcm_sidecar.errors import HostError
from rcm_sidecar.link import RecordingLink

GB = 10**9


def settings(**others: Any) -> Checkpoints:
    fields = {"every_steps": 10, "keep_last": 3, "keep_every_steps": None, "async_": True, "on_stop": True}
    return Checkpoints(**{**fields, "export": [], **others})


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets how many bytes are free; None is a file system that does not say."""

    def limit(count: int | None) -> None:
        place = SimpleNamespace(f_bavail=count or 0, f_frsize=1, f_blocks=0 if count is None else 10**15)
        monkeypatch.setattr(os, "statvfs", lambda _: place)

    return limit


@pytest.mark.parametrize(
    ("gigabytes", "others", "warning"),
    [
        (8, {}, None),  # three and the one that is being written
        (7, {}, "room for 3 more"),
        (None, {}, None),
        (7, {"every_steps": 50}, None),  # two of 100 steps and one at the end
        (15, {"keep_every_steps": 20}, "keeps 9"),
        (1, {"every_steps": None, "on_stop": False}, None),
        (3, {"every_steps": None}, None),  # the one at the end
    ],
)
def test_all_that_is_kept_has_to_fit(
    gigabytes: int | None, others: dict[str, Any], warning: str | None, free: Any, tmp_path: Path
) -> None:
    free(None if gigabytes is None else gigabytes * GB)
    said = check_room(tmp_path / "checkpoints", 2 * GB, settings(**others), 100)
    assert (said is None) == (warning is None) and (warning or "") in (said or "")


def test_one_that_does_not_fit_is_refused(free: Any, tmp_path: Path) -> None:
    free(GB)
    with pytest.raises(HostError, match=r"takes 2 GB; 1 GB are free") as caught:
        check_room(tmp_path / "checkpoints", 2 * GB, settings(), 100)
    assert caught.value.code == "E_DISK_FULL"


def test_a_run_is_refused_before_its_first_step(free: Any, tmp_path: Path) -> None:
    teacher, link = make_teacher(tmp_path / "teacher"), RecordingLink()
    free(1000)
    with pytest.raises(HostError) as caught:
        run(start(tmp_path / "run", {"teacher.weights": str(teacher)}), link)
    assert caught.value.code == "E_DISK_FULL" and caught.value.hint
    assert link.of_type("progress") == [] and ("training", 0) not in link.of_type("activity")
    assert not (tmp_path / "run" / "checkpoints").exists()
