"""Several machines in one job: where they meet, and how each learns that another one is gone.

Rank 0 listens at the address that the user has named (the rendezvous), there alone, and every process of the job meets
at this one store, as with torchrun's static rendezvous. torchrun's dynamic one is not used: it exchanges its state as a
pickle, which whoever reaches the port could replace by code, and listens on all interfaces.

On each other machine a process that trains nothing (see `node_process`) starts the ranks and beats: it is idle, so its
silence means that the machine or its network is gone.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import msgspec
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from rcm_sidecar.config import Compute
from rcm_sidecar.error_report import error_body
from rcm_sidecar.errors import HostError, SidecarError
from rcm_sidecar.link import JobLink
from rcm_sidecar.protocol import Count, DistillStart, ErrorBody, PretrainStart, TrainingStart

MEETING = timedelta(minutes=10)
"""How long processes wait for each other at the start: importing torch from a slow disk takes minutes."""
BEAT_SECONDS = 0.5
SILENT_SECONDS = 6.0
"""A machine that is silent for so long is gone. With what follows, all processes have ended within ten seconds."""
YIELD_SECONDS = 7.0
"""How long a rank with a broken connection waits before it reports that: a machine that is gone is noticed first."""
NOTICE_SECONDS = 8.5
"""How long rank 0 waits, with a broken connection, for the reason."""
_FAREWELL_SECONDS = 3.0
_MOST_STALLED_SECONDS = 2.0
"""A watcher that stood still itself (a suspended job, a laptop's lid) has no right to call others silent."""
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Meeting:
    """Where the processes of a job meet."""

    host: str
    port: int


class NodeHello(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What a machine says of itself: it has to be the same everywhere, but for the host."""

    host: str
    nodes: Count
    gpus_per_node: Count
    torch: str


class LostRank(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A rank that ended in error, as its machine tells it; `code` is that of `Popen.returncode`."""

    rank: Count
    host: str
    code: int
    report: ErrorBody | None


class JobOrder(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """The job that rank 0 was given, for the other machines."""

    start: DistillStart | PretrainStart


class Over(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """The job has ended; `error` is why, where it failed."""

    error: ErrorBody | None


class NodeLost(SidecarError):
    """A machine is gone without a word."""

    def __init__(self, node: int, host: str) -> None:
        """Name it."""
        super().__init__(
            "E_NODE_LOST",
            f"Node {node} on {host} is gone: nothing was heard of it for {SILENT_SECONDS:.0f} seconds.",
            "Look at that machine, then go on with `rcm-bridge resume` on as many as the run has.",
            {"node": node, "host": host},
        )


def hello_of(compute: Compute) -> NodeHello:
    """This machine's."""
    return NodeHello(socket.gethostname(), compute.nodes, compute.gpus_per_node, str(torch.__version__))


def host_meeting(meeting: Meeting, world: int) -> TCPStore:
    """The store, listening at that address and port alone (torch by itself would listen on all interfaces).

    Raises:
        HostError: E_RENDEZVOUS, the address is not this machine's, or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(meeting.host, meeting.port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(address[:2], family=family, backlog=world)
    except OSError as error:
        raise _no_meeting(meeting, error) from error
    port = listening.getsockname()[1]
    return TCPStore(
        meeting.host,
        port,
        world,
        is_master=True,
        timeout=MEETING,
        wait_for_workers=False,
        master_listen_fd=listening.detach(),
    )


def join_meeting(meeting: Meeting, world: int) -> TCPStore:
    """A connection to the store of rank 0; waits for it to be there.

    Raises:
        HostError: E_RENDEZVOUS.
    """
    try:
        return TCPStore(meeting.host, meeting.port, world, is_master=False, timeout=MEETING)
    except RuntimeError as error:
        message = f"Nobody answered at {meeting.host}:{meeting.port} for {MEETING.seconds // 60} minutes."
        hint = (
            "Start the same command with --node-rank 0 on the machine that has this address; a firewall may be closed."
        )
        raise HostError("E_RENDEZVOUS", message, hint) from error


class OtherNodes:
    """Machines 1 and up, as rank 0 sees them.

    Args:
        compute: The job's.
        meeting: An address of this machine.

    Attributes:
        store: For the process group of this machine's rank 0, and for nothing else.
    """

    def __init__(self, compute: Compute, meeting: Meeting) -> None:
        self.meeting = meeting
        self._compute = compute
        self._world = compute.nodes * compute.gpus_per_node
        self.store = host_meeting(meeting, self._world)
        # A connection of its own: the other one is locked as long as a process group waits at it for a rank.
        self._words = join_meeting(meeting, self._world)
        self._hosts: dict[int, str] = {}
        self._ending = threading.Event()

    def gather(self, start: TrainingStart, link: JobLink) -> None:
        """Wait until all are here, compare them and hand the job out.

        Raises:
            JobCancelled: Meanwhile.
            HostError: E_RENDEZVOUS, some did not come, or are not alike.
        """
        mine = hello_of(self._compute)
        self._words.set("node/0/hello", _text(mine))
        link.log("info", f"Waiting at {self.meeting.host}:{self.meeting.port} for {mine.nodes - 1} more machine(s).")
        deadline = time.monotonic() + MEETING.total_seconds()
        for node in range(1, mine.nodes):
            while not self._words.check([f"node/{node}/hello"]):
                link.requests.raise_if_cancelled_now()
                if time.monotonic() > deadline:
                    raise _absent(node, mine.nodes)
                time.sleep(_POLL_SECONDS)
            other = msgspec.json.decode(self._words.get(f"node/{node}/hello"), type=NodeHello)
            _refuse_other(node, mine, other)
            self._hosts[node] = other.host
        self._words.set("order", _text(JobOrder(start)))  # type: ignore[arg-type]

    def watch(self, lost: Callable[[LostRank], None], gone: Callable[[NodeLost], None]) -> None:
        """From now on report ranks and machines that are lost, from a thread."""
        threading.Thread(target=self._watch, args=(lost, gone), name="nodes", daemon=True).start()

    def over(self, error: BaseException | None) -> None:
        """Tell all machines that the job has ended; the first word counts."""
        if self._ending.is_set():
            return
        self._ending.set()
        self._words.set("over", _text(Over(None if error is None else error_body(error))))

    def wait_until_left(self) -> None:
        """Give them a moment to hear it: the store goes with this process."""
        deadline = time.monotonic() + _FAREWELL_SECONDS
        here = [node for node in range(1, self._compute.nodes) if self._words.check([f"node/{node}/hello"])]
        keys = [f"node/{node}/left" for node in here]
        while keys and not self._words.check(keys) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _watch(self, lost: Callable[[LostRank], None], gone: Callable[[NodeLost], None]) -> None:
        store = self._words
        beats = dict.fromkeys(self._hosts, b"")
        clock = _SilenceClock(self._hosts)
        while not self._ending.wait(BEAT_SECONDS):
            clock.tick()
            for node, host in self._hosts.items():
                if store.check([f"node/{node}/lost"]):
                    lost(msgspec.json.decode(store.get(f"node/{node}/lost"), type=LostRank))
                    return
                beat = store.get(f"node/{node}/beat")
                if beat != beats[node]:
                    beats[node] = beat
                    clock.heard(node)
                elif clock.is_silent(node):
                    gone(NodeLost(node, host))
                    return


class Membership:
    """What machine `node` (1 or up) shares with rank 0: beats, and what each tells the other.

    Args:
        store: From `join_meeting`, used by this object alone.
        node: This machine's number.
        hello: This machine's.
    """

    def __init__(self, store: TCPStore, node: int, hello: NodeHello) -> None:
        self._store, self._node = store, node
        self._over: Over | None = None
        self._gone = False
        self._report: LostRank | None = None
        self._left = threading.Event()
        self._clock = _SilenceClock([0])
        if store.add(f"node/{node}/claim", 1) > 1:
            message = f"Another machine of this run has --node-rank {node} already."
            raise HostError("E_RENDEZVOUS", message, "Give each machine a number of its own, from 0.")
        store.set(f"node/{node}/beat", "0")
        store.set(f"node/{node}/hello", _text(hello))
        self._beating = threading.Thread(target=self._beat, name="beat", daemon=True)
        self._beating.start()

    def order(self) -> JobOrder | Over:
        """The job, once all machines are here; or the news that there will be none."""
        while (over := self.ended()) is None:
            if self._order is not None:
                return msgspec.json.decode(self._order, type=JobOrder)
            time.sleep(_POLL_SECONDS)
        return over

    def report(self, lost: LostRank) -> None:
        """Tell rank 0 that a rank of this machine is gone."""
        self._report = lost

    def ended(self) -> Over | None:
        """Whether the job is over; a rank 0 that is gone ends it, too."""
        self._clock.tick()
        if self._over is not None:
            return self._over
        if self._gone or self._clock.is_silent(0):
            return Over(error_body(NodeLost(0, self._leader)))
        return None

    def leave(self) -> None:
        """Say goodbye."""
        self._left.set()
        self._beating.join(1.0)

    _order: bytes | None = None
    _leader = "another machine"

    def _beat(self) -> None:
        store, number = self._store, 0
        try:
            self._leader = msgspec.json.decode(store.get("node/0/hello"), type=NodeHello).host
            while not self._left.wait(BEAT_SECONDS):
                number += 1
                store.set(f"node/{self._node}/beat", str(number))
                self._hear()
                self._clock.heard(0)
            store.set(f"node/{self._node}/left", "1")
        except RuntimeError:
            self._gone = True

    def _hear(self) -> None:
        store = self._store
        if self._report is not None:
            store.set(f"node/{self._node}/lost", _text(self._report))
            self._report = None
        if self._order is None and store.check(["order"]):
            self._order = store.get("order")
        if self._over is None and store.check(["over"]):
            self._over = msgspec.json.decode(store.get("over"), type=Over)


class _SilenceClock:
    """When each machine was heard last, in time that this process was awake."""

    def __init__(self, nodes: object) -> None:
        now = time.monotonic()
        self._heard: dict[int, float] = dict.fromkeys(nodes, now)  # type: ignore[call-overload]
        self._ticked = now

    def tick(self) -> None:
        now = time.monotonic()
        if now - self._ticked > _MOST_STALLED_SECONDS:
            self._heard = dict.fromkeys(self._heard, now)
        self._ticked = now

    def heard(self, node: int) -> None:
        self._heard[node] = time.monotonic()

    def is_silent(self, node: int) -> bool:
        return time.monotonic() - self._heard[node] > SILENT_SECONDS


def interface_to(host: str) -> str | None:
    """Name of the network interface by which this machine reaches `host`; None where that cannot be told."""
    if sys.platform != "linux":
        return None
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))  # sends nothing
        except OSError:
            return None
        own = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), 0x8915, struct.pack("256s", name.encode()))  # SIOCGIFADDR
            except OSError:
                continue
            if socket.inet_ntoa(answer[20:24]) == own:
                return name
    return None


def _text(document: msgspec.Struct) -> str:
    return msgspec.json.encode(document).decode()


def _no_meeting(meeting: Meeting, error: OSError) -> HostError:
    place = f"{meeting.host}:{meeting.port}"
    if error.errno == errno.EADDRINUSE:
        return HostError("E_RENDEZVOUS", f"Port {place} is taken.", "Name another port with --rdzv, on all machines.")
    reason = error.strerror or str(error)
    hint = "--rdzv takes an address of the machine with --node-rank 0, as the others reach it."
    return HostError("E_RENDEZVOUS", f"This machine cannot listen at {place}: {reason}.", hint)


def _absent(node: int, nodes: int) -> HostError:
    message = f"Node {node} of {nodes} did not come within {MEETING.seconds // 60} minutes."
    hint = f"Start the same command there with --node-rank {node}."
    return HostError("E_RENDEZVOUS", message, hint)


def _refuse_other(node: int, mine: NodeHello, other: NodeHello) -> None:
    pairs = (
        ("compute.nodes", mine.nodes, other.nodes),
        ("compute.gpusPerNode", mine.gpus_per_node, other.gpus_per_node),
        ("torch", mine.torch, other.torch),
    )
    for name, wanted, given in pairs:
        if wanted != given:
            message = f"Node {node} on {other.host} has {name} {given}, and node 0 on {mine.host} has {wanted}."
            raise HostError("E_RENDEZVOUS", message, "Start the same command, with the same Python, on all machines.")
