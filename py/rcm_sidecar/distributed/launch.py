"""Starts, joins and watches the processes of a training job.

The sidecar that talks to Node is rank 0 itself and starts the other ranks. torchrun's agent cannot do that: it makes
every rank a child of its own and puts each into a session of its own, out of reach of the guards that end our process
group with Node. So the ranks get torchrun's variables, and nothing else of it. They meet at a store on the loopback
interface, those of several machines at the address that the user has named (see `nodes`).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec
import torch
import torch.distributed as dist
from torch.distributed import HashStore, Store, TCPStore  # type: ignore[attr-defined]

from rcm_sidecar.config import Compute
from rcm_sidecar.distributed import nodes
from rcm_sidecar.distributed.device import device_of
from rcm_sidecar.distributed.flight_recorder import recorded_on_signal
from rcm_sidecar.distributed.job_team import SILENCE, JobTeam
from rcm_sidecar.distributed.mesh import ParallelSizes, build_mesh, parallel_sizes
from rcm_sidecar.distributed.nodes import LostRank, Meeting, OtherNodes
from rcm_sidecar.errors import SidecarError
from rcm_sidecar.link import JobCancelled, JobLink
from rcm_sidecar.protocol import Count, DistillStart, ErrorBody, PretrainStart, TrainingStart

_LAUNCH = Path(__file__).resolve().parents[2] / "launch.py"
_LOOPBACK = "127.0.0.1"
_NOTICE_SECONDS = 5.0
"""How long the main thread has to notice that another process is gone; after that its end is reported without it."""
LEAVE_SECONDS = 10.0
"""How long ranks have to leave by themselves when a job has ended well."""


class RankLine(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """The one line of JSON that a rank gets on stdin; `report` is a descriptor for what ends it."""

    ppid: int
    rank: Count
    host: str
    port: Count
    report: Count
    start: DistillStart | PretrainStart


@dataclass(frozen=True)
class Place:
    """What of a job runs on one machine.

    Attributes:
        node: Number of the machine.
        processes: Ranks on each machine.
        world: Ranks of all machines.
        meeting: Where they meet.
    """

    node: int
    processes: int
    world: int
    meeting: Meeting


class RankLost(SidecarError):
    """A process of the job failed or ended.

    Attributes:
        remote: What it reported, or None when it could not.
    """

    def __init__(self, lost: LostRank) -> None:
        """Name the rank, its host and the reason."""
        rank, host, code, remote = lost.rank, lost.host, lost.code, lost.report
        hint = f"See logs/rank-{rank}.log in the run directory, then go on with `rcm-bridge resume`."
        details = {"rank": rank, "host": host, "exit": code, **({} if remote is None else remote.details)}
        if remote is None:
            how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
            super().__init__("E_SIDECAR_EXIT", f"Rank {rank} on {host} ended {how}.", hint, details)
        else:
            super().__init__(remote.code, f"Rank {rank} on {host}: {remote.message}", remote.hint or hint, details)
        self.remote = remote


class Losses:
    """The first process or machine of a job that is lost.

    Args:
        tell: Called, from a thread, when rank 0 does not notice by itself in time.
    """

    def __init__(self, tell: Callable[[SidecarError], None]) -> None:
        self._tell = tell
        self._first: SidecarError | None = None
        self._noticed = threading.Event()
        self._changed = threading.Condition()
        self._ending = False

    def found(self, error: SidecarError) -> None:
        """Remember it, if it is the first; blocks until somebody has noticed."""
        with self._changed:
            if self._first is not None or self._ending:
                return
            self._first = error
            self._changed.notify_all()
        if not self._noticed.wait(_NOTICE_SECONDS) and not self._ending:
            self._tell(error)

    def first(self, patience_seconds: float) -> SidecarError | None:
        """The first; waits for one, because a broken connection shows before the exit."""
        with self._changed:
            self._changed.wait_for(lambda: self._first is not None, patience_seconds)
            self._noticed.set()
            return self._first

    def close(self) -> None:
        """What ends from now on is no loss."""
        self._ending = True


class Ranks:
    """The ranks of this machine that are children of this process: all of them, but on the first machine rank 0.

    Args:
        start: The job.
        place: This machine's part of it.
        lost: Called, from a thread, with a rank that ended in error.
    """

    def __init__(self, start: TrainingStart, place: Place, lost: Callable[[LostRank], None]) -> None:
        self._lost = lost
        self._logs = Path(start.run_dir) / "logs"
        self._ending = False
        self._start, self._place = start, place
        self._processes: list[subprocess.Popen[bytes]] = []

    def begin(self) -> None:
        """Start them."""
        self._logs.mkdir(parents=True, exist_ok=True)
        for local in range(1 if self._place.node == 0 else 0, self._place.processes):
            self._begin(local)

    def end(self, patience_seconds: float) -> None:
        """Let the ranks end by themselves for a while, then kill them."""
        self._ending = True
        deadline = time.monotonic() + patience_seconds
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        for process in self._processes:
            process.wait()
            if process.stdin is not None:
                process.stdin.close()

    def _begin(self, local: int) -> None:
        read, write = os.pipe()
        place, meeting = self._place, self._place.meeting
        rank = place.node * place.processes + local
        line = RankLine(os.getpid(), rank, meeting.host, meeting.port, write, self._start)  # type: ignore[arg-type]
        with (self._logs / f"rank-{rank}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-u", "-X", "faulthandler", str(_LAUNCH), "--rank"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(write,),
                env={**os.environ, **_variables(place, local)},
            )
        self._processes.append(process)
        os.close(write)
        threading.Thread(target=self._watch, args=(rank, process, os.fdopen(read, "rb")), daemon=True).start()
        assert process.stdin is not None
        # The pipe stays open: its end ends the rank, should nothing else.
        process.stdin.write(msgspec.json.encode(line) + b"\n")
        process.stdin.flush()

    def _watch(self, rank: int, process: subprocess.Popen[bytes], report: IO[bytes]) -> None:
        with report:
            said = report.read()
        code = process.wait()
        if code == 0 or self._ending:
            return
        body = msgspec.json.decode(said, type=ErrorBody) if said else None
        self._lost(LostRank(rank, socket.gethostname(), code, body))


@contextmanager
def leading(start: TrainingStart, compute: Compute, link: JobLink) -> Iterator[JobTeam]:
    """The team of a job as rank 0: starts the other ranks, and ends them whatever happens.

    Raises:
        ConfigError: E_CONFIG_VALUE, sizes that do not divide.
        HostError: E_GPU.
        RankLost: in place of the broken connection that another rank's end shows as here.
    """
    sizes = sizes_of(compute)
    device = device_of(compute.device, 0)
    if sizes.world == 1:
        with _joined(HashStore(), 0, sizes, compute, device, start) as team:
            yield team
        return
    with ExitStack() as stack:
        store, losses = stack.enter_context(_crew(start, compute, sizes, link))
        patience = nodes.NOTICE_SECONDS if compute.nodes > 1 else _NOTICE_SECONDS
        try:
            with _joined(store, 0, sizes, compute, device, start) as team:
                yield team
        except (JobCancelled, SidecarError):
            raise
        except Exception as error:
            lost = losses.first(patience if isinstance(error, (RuntimeError, OSError)) else 0.0)
            if lost is None:
                raise
            raise lost from error


@contextmanager
def _crew(
    start: TrainingStart, compute: Compute, sizes: ParallelSizes, link: JobLink
) -> Iterator[tuple[TCPStore, Losses]]:
    """The other ranks, started and watched; they are ended whatever happens."""
    if compute.nodes > 1:
        with _other_nodes(start, compute, link) as (others, losses):
            place = Place(0, compute.gpus_per_node, sizes.world, others.meeting)
            with _local_ranks(start, place, losses):
                yield others.store, losses
        return
    losses = Losses(link.lost)
    store = nodes.host_meeting(Meeting(_LOOPBACK, 0), sizes.world)
    with _local_ranks(start, Place(0, sizes.world, sizes.world, Meeting(_LOOPBACK, store.port)), losses):
        yield store, losses


@contextmanager
def _local_ranks(start: TrainingStart, place: Place, losses: Losses) -> Iterator[None]:
    ranks = Ranks(start, place, lambda lost: losses.found(RankLost(lost)))
    patience = 0.0
    try:
        ranks.begin()
        yield
        patience = LEAVE_SECONDS
    finally:
        losses.close()
        ranks.end(patience)


@contextmanager
def _other_nodes(start: TrainingStart, compute: Compute, link: JobLink) -> Iterator[tuple[OtherNodes, Losses]]:
    """The other machines, gathered and watched; they are told how the job ended."""
    others = OtherNodes(compute, meeting_of(os.environ))

    def tell(error: SidecarError) -> None:
        others.over(error)
        link.lost(error)

    losses = Losses(tell)
    ended: BaseException | None = None
    try:
        others.gather(start, link)
        others.watch(lambda lost: losses.found(RankLost(lost)), losses.found)
        yield others, losses
    except JobCancelled:
        raise
    except BaseException as error:
        ended = error
        raise
    finally:
        others.over(ended)
        others.wait_until_left()


def meeting_of(variables: Mapping[str, str]) -> Meeting:
    """The rendezvous that Node has put into torchrun's variables."""
    return Meeting(variables["MASTER_ADDR"], int(variables["MASTER_PORT"]))


@contextmanager
def following(line: RankLine, compute: Compute) -> Iterator[JobTeam]:
    """The team of a job as another rank."""
    sizes = sizes_of(compute)
    device = device_of(compute.device, int(os.environ["LOCAL_RANK"]))
    store = nodes.join_meeting(Meeting(line.host, line.port), sizes.world)
    with _joined(store, line.rank, sizes, compute, device, line.start) as team:
        yield team


def sizes_of(compute: Compute) -> ParallelSizes:
    """The parallel axes of a config.

    Raises:
        ConfigError: E_CONFIG_VALUE, too few processes or sizes that do not divide.
    """
    world = compute.gpus_per_node * compute.nodes
    return parallel_sizes(world, shard=compute.parallel.shard, context=compute.parallel.context)


def needs_mesh(sizes: ParallelSizes, compute: Compute, device: torch.device) -> bool:
    """Whether networks are sharded at all.

    One process on a GPU, or with bf16 products, is a mesh of one: FSDP2 keeps the float32 weights that train and casts
    them. One process on the CPU in float32 needs neither, and sharding would cost the digits 7 % of a step (measured).
    """
    return sizes.world > 1 or device.type == "cuda" or compute.precision.compute == "bf16"


@contextmanager
def _joined(
    store: Store, rank: int, sizes: ParallelSizes, compute: Compute, device: torch.device, start: TrainingStart
) -> Iterator[JobTeam]:
    if not needs_mesh(sizes, compute, device):
        yield JobTeam(rank, sizes, device)
        return
    # Neither library listens on other interfaces than that of the rendezvous, which of one machine is the loopback.
    loopback = "lo" if sys.platform == "linux" else "lo0"
    interface = loopback if compute.nodes == 1 else nodes.interface_to(os.environ["MASTER_ADDR"])
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
    # torch would pickle its flight recorder where a collective exceeds its time; see `flight_recorder`.
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "0")
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=sizes.world,
        timeout=SILENCE,
        device_id=device if device.type == "cuda" else None,
    )
    failed = True
    try:
        with recorded_on_signal(Path(start.run_dir), start.attempt, rank):
            yield JobTeam(rank, sizes, device, build_mesh(device.type, sizes))
        if sizes.world > 1:
            dist.barrier()
        failed = False
    finally:
        # NCCL would wait for what is under way with processes that are gone; this one is ended soon. A rank that failed
        # leaves its connections to the system: were they closed now, the others could report that before its own error.
        if not failed or (backend == "gloo" and rank == 0):
            dist.destroy_process_group()


def _variables(place: Place, local: int) -> dict[str, str]:
    """What torchrun sets for a rank."""
    return {
        "RANK": str(place.node * place.processes + local),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(place.world),
        "LOCAL_WORLD_SIZE": str(place.processes),
        "GROUP_RANK": str(place.node),
        "GROUP_WORLD_SIZE": str(place.world // place.processes),
        "MASTER_ADDR": place.meeting.host,
        "MASTER_PORT": str(place.meeting.port),
    }
