"""Machine 0 as the others hear it."""

from __future__ import annotations

import socket
import threading
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
from torch.distributed import DistStoreError

from rcm_sidecar.distributed.nodes import Meeting, OtherNodes, join_meeting

WAIT = timedelta(seconds=6)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_end_is_told_while_this_process_waits_for_a_rank_that_will_not_come() -> None:
    meeting = Meeting("127.0.0.1", free_port())
    others = OtherNodes(SimpleNamespace(nodes=2, gpus_per_node=1), meeting)
    hears = join_meeting(meeting, 2)
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        with pytest.raises(DistStoreError):
            others.store.wait(["a rank"], WAIT)  # as a process group does

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait()
    time.sleep(0.2)
    others.over(None)
    assert thread.is_alive() and hears.check(["over"])
    thread.join()
