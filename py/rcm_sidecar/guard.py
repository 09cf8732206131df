"""First thing the sidecar runs: read the start line and make sure that it never outlives Node. Standard library only.

Four guards, because each alone has a hole (measured):

* end of stdin: works everywhere, but its thread cannot run while C code holds the interpreter lock;
* PR_SET_PDEATHSIG with SIGKILL: works with the lock held, Linux only, and not inherited by children of the sidecar;
* the parent's pid is compared once: closes the race between spawn and the call above;
* a tiny watcher process that holds no lock, owns no pipe, and kills the whole process group when Node or the sidecar
  is gone: the only one that also ends processes the job has started.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import select
import signal
import sys
import threading
import time

EXIT_ORPHANED = 86
EXIT_BAD_START = 87

_PR_SET_PDEATHSIG = 1
_MAX_LINE_BYTES = 65536
_PARENT_POLL_SECONDS = 0.2


def begin() -> bytes:
    """Read the start line from stdin, put up the guards and return the line.

    Children of the sidecar get /dev/null as stdin: the pipe to Node belongs to the end-of-input thread alone.
    """
    pipe = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    leave_signals_to_node()
    line = read_line(pipe)
    try:
        ppid = int(json.loads(line)["ppid"])
    except (ValueError, KeyError, TypeError):
        sys.stderr.write("rcm-bridge sidecar: the start line on stdin is missing or not JSON\n")
        os._exit(EXIT_BAD_START)
    die_with_parent(ppid)
    start_group_watcher(ppid, pipe)
    threading.Thread(target=_exit_at_end_of_input, args=(pipe,), name="stdin-eof", daemon=True).start()
    if hasattr(signal, "SIGUSR1"):
        # Python's handler behind the stacks wakes whoever waits at `signal.set_wakeup_fd` (the flight recorder).
        signal.signal(signal.SIGUSR1, lambda number, frame: None)
        faulthandler.register(signal.SIGUSR1, all_threads=True, chain=True)
    return line


def leave_signals_to_node() -> None:
    """Ignore what asks a process to end: Node hears it, too, and decides.

    Slurm signals every process of a job and a terminal its whole group: a rank that died of it would take the
    checkpoint with it that Node asks for. What Node wants to end it kills.
    """
    for asked in (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGHUP", None)):
        if asked is not None:
            signal.signal(asked, signal.SIG_IGN)


def read_line(descriptor: int) -> bytes:
    """Bytes up to the first newline (or the end), without reading beyond it."""
    line = bytearray()
    while len(line) < _MAX_LINE_BYTES:
        byte = os.read(descriptor, 1)
        if byte in (b"", b"\n"):
            break
        line += byte
    return bytes(line)


def die_with_parent(expected_ppid: int) -> None:
    """Linux: SIGKILL when the thread that spawned us dies; exit at once if the parent is already gone.

    SIGKILL, not SIGTERM: a Python handler cannot run while C code holds the interpreter lock (measured).
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != expected_ppid:
        os._exit(EXIT_ORPHANED)


def start_group_watcher(node_pid: int, pipe: int) -> None:
    """Fork a process that kills this process group as soon as Node or the sidecar is gone. Call before any thread.

    Does nothing unless the sidecar leads its process group: otherwise the group holds strangers.
    """
    if not hasattr(os, "fork") or os.getpgrp() != os.getpid():
        return
    sidecar_pid = os.getpid()
    if os.fork() != 0:
        return
    try:
        os.close(pipe)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(ignored, signal.SIG_IGN)
        _wait_for_any(node_pid, sidecar_pid)
        os.killpg(sidecar_pid, signal.SIGKILL)
    finally:
        os._exit(0)


def _wait_for_any(node_pid: int, sidecar_pid: int) -> None:
    """Return when one of the two processes is gone."""
    descriptors: list[int] = []
    try:
        for pid in (node_pid, sidecar_pid):
            descriptors.append(os.pidfd_open(pid))
    except ProcessLookupError:
        return
    except (AttributeError, OSError):
        _poll_for_any(node_pid, sidecar_pid)
        return
    if os.getppid() != sidecar_pid:
        return
    poller = select.poll()
    for descriptor in descriptors:
        poller.register(descriptor, select.POLLIN)
    while not poller.poll():
        pass


def _poll_for_any(node_pid: int, sidecar_pid: int) -> None:
    """The same where there are no process descriptors (macOS, old kernels)."""
    while os.getppid() == sidecar_pid:
        try:
            os.kill(node_pid, 0)
        except ProcessLookupError:
            return
        except PermissionError:
            pass
        time.sleep(_PARENT_POLL_SECONDS)


def _exit_at_end_of_input(pipe: int) -> None:
    """Node closed stdin or died: leave at once, with everything we started."""
    while os.read(pipe, 4096):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(EXIT_ORPHANED)
