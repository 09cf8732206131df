"""Rank 0 starts the other ranks as processes of their own, and names the one that fails."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from pathlib import Path

import pytest
from training.tiny_run import start

from rcm_sidecar.config import parse_config
from rcm_sidecar.distributed import launch
from rcm_sidecar.error_report import error_body
from rcm_sidecar.link import RecordingLink

FAKE_RANK = """
import os, signal, sys
sys.path[:0] = {paths!r}
from rcm_sidecar import guard
line = guard.begin()
from rcm_sidecar import rank_process
from rcm_sidecar.config import parse_config
from rcm_sidecar.distributed.launch import following

def follow(task):
    with following(task, parse_config(task.start.config).compute) as team:
        print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], flush=True)
        assert team.tell(None) == "begin"
        misbehave(team)

def misbehave(team):
    {behaviour}

rank_process.follow_training = follow
sys.exit(rank_process.main(line))
"""


@pytest.fixture
def ranks(tmp_path, monkeypatch):
    """A function that starts a job of two processes, the second with a behaviour of its own, in one line of code."""

    def prepare(behaviour):
        script = tmp_path / "rank.py"
        paths = [str(Path(launch.__file__).parents[2]), *sys.path]
        script.write_text(textwrap.dedent(FAKE_RANK).format(paths=paths, behaviour=behaviour))
        monkeypatch.setattr(launch, "_LAUNCH", script)
        job = start(tmp_path, {"compute.gpusPerNode": 2})
        return job, parse_config(job.config).compute

    return prepare


def log_of(folder):
    return (folder / "logs" / "rank-1.log").read_text()


def test_an_error_of_a_rank_arrives_with_its_host_and_frames(ranks, tmp_path):
    job, compute = ranks("raise ValueError('no space for tensors')")
    with pytest.raises(launch.RankLost, match=r"Rank 1 on .*: no space for tensors") as caught:
        with launch.leading(job, compute, RecordingLink()) as team:
            team.tell("begin")
            team.tell("the other one is gone")
    body = error_body(caught.value)
    assert body.chain[0].type == "ValueError" and body.chain[0].frames[-1].function == "misbehave"
    assert "rank 1 of 2" in log_of(tmp_path)
    assert body.details["rank"] == 1 and body.code == "E_TRAINING"
    assert "no space for tensors" in body.traceback and "no space for tensors" in log_of(tmp_path)


@pytest.mark.long  # test/e2e/many-processes.test.ts kills one, too
def test_a_rank_that_is_killed_is_a_lost_process(ranks):
    job, compute = ranks("os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(launch.RankLost, match=r"Rank 1 on .* ended by signal SIGKILL") as caught:
        with launch.leading(job, compute, RecordingLink()) as team:
            team.tell("begin")
            team.tell("the other one is gone")
    assert caught.value.code == "E_SIDECAR_EXIT" and "logs/rank-1.log" in str(caught.value.hint)


def test_the_link_is_told_when_this_process_does_not_notice(ranks, monkeypatch):
    monkeypatch.setattr(launch, "_NOTICE_SECONDS", 0.2)
    job, compute = ranks("raise ValueError('gone')")
    link = RecordingLink()
    with pytest.raises(launch.RankLost):
        with launch.leading(job, compute, link) as team:
            team.tell("begin")
            deadline = time.monotonic() + 30
            while not link.of_type("lost") and time.monotonic() < deadline:
                time.sleep(0.05)
            team.tell("the other one is gone")
    assert [type(error) for error in link.of_type("lost")] == [launch.RankLost]


def test_an_error_here_ends_the_ranks(ranks, tmp_path):
    job, compute = ranks("print(os.getpid(), flush=True); signal.pause()")
    with pytest.raises(ZeroDivisionError):
        with launch.leading(job, compute, RecordingLink()) as team:
            team.tell("begin")
            deadline = time.monotonic() + 30
            while len(log_of(tmp_path).split()) < 5 and time.monotonic() < deadline:
                time.sleep(0.05)
            raise ZeroDivisionError
    pid = int(log_of(tmp_path).split()[4])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
