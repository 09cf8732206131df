"""Rank 0 starts the other ranks as processes of their own, and names the one that fails."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from training.tiny_run import start

from rcm_sidecar.config import parse_config
from rcm_sidecar.distributed import launch
from rcm_sidecar.distributed.flight_recorder import record_name, write_records
from rcm_sidecar.error_report import error_body
from rcm_sidecar.link import RecordingLink

FAKE_RANK = """
import os, signal, sys, time
sys.path[:0] = {paths!r}
import torch
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
    def fail():
        {fail}
    {behaviour}

rank_process.follow_training = follow
sys.exit(rank_process.main(line))
"""


@pytest.fixture
def ranks(tmp_path, monkeypatch):
    """A function that starts a job of processes, all but the first with a behaviour of their own, in a line of code."""

    def prepare(behaviour, processes=2, fail="pass"):
        script = tmp_path / "rank.py"
        paths = [str(Path(launch.__file__).parents[2]), *sys.path]
        script.write_text(textwrap.dedent(FAKE_RANK).format(paths=paths, behaviour=behaviour, fail=fail))
        monkeypatch.setattr(launch, "_LAUNCH", script)
        job = start(tmp_path, {"compute.gpusPerNode": processes})
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


def test_a_hanging_rank_shows_its_stack_and_its_last_collectives_and_an_error_here_ends_it(ranks, tmp_path):
    job, compute = ranks("print(os.getpid(), flush=True); time.sleep(600)")
    record = tmp_path / record_name(1, 1, "gloo")
    with pytest.raises(ZeroDivisionError):
        with launch.leading(job, compute, RecordingLink()) as team:
            team.tell("begin")
            wait_until(lambda: len(log_of(tmp_path).split()) >= 5)
            pid = int(log_of(tmp_path).split()[4])
            os.kill(pid, signal.SIGUSR1)
            wait_until(record.exists)
            write_records(tmp_path, 1, 0)
            raise ZeroDivisionError
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert "in misbehave" in log_of(tmp_path)
    for rank in (0, 1):
        document = json.loads((tmp_path / record_name(1, rank, "gloo")).read_text())
        # This process has those of jobs before this one, too; what was under way when a rank was lost may never retire.
        entries = document["collectives"]["entries"][-2:]
        assert document["rank"] == rank and document["host"] == socket.gethostname()
        assert [entry["profiling_name"] for entry in entries] == ["gloo:broadcast", "gloo:broadcast"]
        assert all(entry["retired"] for entry in entries)
    assert sorted(path.name for path in record.parent.iterdir()) == [
        Path(record_name(1, rank, "gloo")).name for rank in (0, 1)
    ]


def wait_until(done):
    deadline = time.monotonic() + 30
    while not done() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert done()


@pytest.mark.long
@pytest.mark.parametrize(
    ("behaviour", "message", "frame"),
    [
        ("raise MemoryError", "MemoryError", "misbehave"),
        ("raise RuntimeError('CUDA error: an illegal memory access')", "illegal memory access", "misbehave"),
        ("torch.empty(2**50)", "can't allocate memory", "misbehave"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "ended by signal SIGKILL", None),
    ],
)
def test_the_rank_that_failed_is_named_not_those_whose_connection_it_broke(behaviour, message, frame, ranks, tmp_path):
    """Rank 1 fails while ranks 0, 2 and 3 wait for it in a collective; they are gone within ten seconds."""
    others = "[team.sum(torch.ones(2)) for _ in range(10**6)]"
    job, compute = ranks(
        f"print(os.getpid(), flush=True); {others} if team.rank != 1 else (time.sleep(0.5), fail())",
        processes=4,
        fail=behaviour,
    )
    with pytest.raises(launch.RankLost, match=rf"Rank 1 on .*{message}") as caught:
        with launch.leading(job, compute, RecordingLink()) as team:
            team.tell("begin")
            while True:
                begun = time.monotonic()
                team.sum(torch.ones(2))
    assert time.monotonic() - begun < 10
    body = error_body(caught.value)
    assert (body.details["rank"], body.details["host"]) == (1, socket.gethostname())
    if frame:
        assert frame in [found.function for found in body.chain[0].frames]
    for rank in (1, 2, 3):
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "logs" / f"rank-{rank}.log").read_text().split()[4]), 0)
