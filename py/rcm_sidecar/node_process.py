"""A machine of a training job other than the first: joins it, starts the ranks of this machine and ends them with it.

Trains nothing itself, so that it always answers. Node reads what it says: lines of JSON on stdout.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from rcm_sidecar.config import parse_config
from rcm_sidecar.distributed.launch import LEAVE_SECONDS, Losses, Place, RankLost, Ranks
from rcm_sidecar.distributed.nodes import LostRank, Meeting, Membership, Over, hello_of, join_meeting
from rcm_sidecar.error_report import error_body
from rcm_sidecar.errors import HostError
from rcm_sidecar.protocol import Count, ErrorBody, TrainingStart

_POLL_SECONDS = 0.3
_SHARED_SECONDS = 30.0
"""How long a run directory may take to show up here: network file systems remember that a folder was not there."""


class NodeLine(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """The one line of JSON that it gets on stdin."""

    ppid: int
    node: Count
    host: str
    port: Count
    config: dict[str, Any]


def main(line: bytes) -> int:
    """Take part in the job to its end; returns the exit code, which says nothing: the last line does."""
    task = msgspec.json.decode(line, type=NodeLine)
    error: ErrorBody | None
    try:
        error = _take_part(task)
    except Exception as raised:
        error = error_body(raised)
    _say({"type": "over", "error": msgspec.to_builtins(error)})
    sys.stdout.flush()
    # As ranks do: a thread of the store may still wait for a machine that is gone.
    os._exit(0)


def _take_part(task: NodeLine) -> ErrorBody | None:
    """Why the job failed, or None."""
    compute = parse_config(task.config).compute
    meeting = Meeting(task.host, task.port)
    world = compute.nodes * compute.gpus_per_node
    membership = Membership(join_meeting(meeting, world), task.node, hello_of(compute))
    order = membership.order()
    if isinstance(order, Over):
        membership.leave()
        return order.error
    place = Place(task.node, compute.gpus_per_node, world, meeting)
    try:
        _await_run_dir(order.start, membership)
        return _watch(order.start, place, membership)
    except Exception as error:
        membership.report(LostRank(task.node * compute.gpus_per_node, socket.gethostname(), 1, error_body(error)))
        _wait_until_over(membership)
        raise
    finally:
        membership.leave()


def _watch(start: TrainingStart, place: Place, membership: Membership) -> ErrorBody | None:
    """Start the ranks and stay with them until the job is over."""
    losses = Losses(lambda error: None)

    def lost(rank: LostRank) -> None:
        membership.report(rank)
        losses.found(RankLost(rank))

    ranks = Ranks(start, place, lost)
    patience = 0.0
    try:
        ranks.begin()
        _say({"type": "started", "runId": start.run_id, "runDir": start.run_dir, "attempt": start.attempt})
        over = _wait_until_over(membership)
        patience = LEAVE_SECONDS if over.error is None else 0.0
        return over.error
    finally:
        losses.close()
        ranks.end(patience)


def _wait_until_over(membership: Membership) -> Over:
    while (over := membership.ended()) is None:
        time.sleep(_POLL_SECONDS)
    return over


def _await_run_dir(start: TrainingStart, membership: Membership) -> None:
    """Every rank writes its part of a checkpoint into the run directory, so that all machines have to see the same."""
    record = Path(start.run_dir) / "run.json"
    deadline = time.monotonic() + _SHARED_SECONDS
    while membership.ended() is None:
        try:
            if msgspec.json.decode(record.read_bytes())["id"] == start.run_id:
                return
        except (OSError, msgspec.DecodeError, KeyError, TypeError):
            pass
        if time.monotonic() > deadline:
            message = f"The run directory {start.run_dir} of node 0 is not there on this machine."
            hint = "Put --runs-dir (or --run-dir) on a file system that all machines share: each writes checkpoints."
            raise HostError("E_RENDEZVOUS", message, hint)
        time.sleep(_POLL_SECONDS)


def _say(document: dict[str, Any]) -> None:
    sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
    sys.stdout.flush()
