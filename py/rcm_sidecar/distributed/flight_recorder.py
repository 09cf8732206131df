"""What each process of a hanging job said to the others last: torch's flight recorder, as JSON, when SIGUSR1 comes.

Node sends that signal to all processes when the step watchdog notices a hang; the guard prints the Python stacks then.
The thread here is woken through `signal.set_wakeup_fd`, so the main thread may stand in a collective meanwhile. Only a
process whose C code holds the interpreter's lock cannot answer. torch's own dump is a pickle and is not used.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch._C._distributed_c10d as c10d

from rcm_sidecar.files import write_json

# Private in torch 2.11, and there is no public form. A build without NCCL lacks the second.
_RECORDERS: Mapping[str, str] = {"gloo": "_dump_fr_trace_json", "nccl": "_dump_nccl_trace_json"}


def record_name(attempt: int, rank: int, backend: str) -> str:
    """File below the run directory.

    >>> record_name(2, 1, "gloo")
    'diagnostics/flight-recorder-attempt-2-rank-1-gloo.json'
    """
    return f"diagnostics/flight-recorder-attempt-{attempt}-rank-{rank}-{backend}.json"


def write_records(run_dir: Path, attempt: int, rank: int) -> None:
    """Write the last collectives of this process (torch keeps 2,000), a file for each backend that was used.

    `collectives` is what torch writes: `entries` in the order they were asked for, with sizes, times and `retired`, and
    `pg_status` with the last one of each process group. Numbers lowest in one
    process point at it; one stopped between collectives may be the highest, by one: its stack decides.
    """
    for backend, name in _RECORDERS.items():
        dump: Callable[[], bytes] | None = getattr(c10d, name, None)
        collectives = {} if dump is None else json.loads(dump())
        if collectives.get("entries"):
            head = {"schema": 1, "rank": rank, "host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
            path = run_dir / record_name(attempt, rank, backend)
            write_json(path, {**head, "backend": backend, "collectives": collectives})


@contextmanager
def recorded_on_signal(run_dir: Path, attempt: int, rank: int) -> Iterator[None]:
    """Write the records whenever SIGUSR1 comes, whose handler is `guard.begin`'s. Does nothing in other threads."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGUSR1"):
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    thread = threading.Thread(target=_answer, args=(read, run_dir, attempt, rank), name="flight-recorder", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(write)
        thread.join()
        os.close(read)


def _answer(read: int, run_dir: Path, attempt: int, rank: int) -> None:
    """A byte is the number of a signal that has come."""
    while byte := os.read(read, 1):
        if byte[0] == signal.SIGUSR1:
            write_records(run_dir, attempt, rank)
