"""Starts, joins and watches the processes of a training job on this machine.

The sidecar that talks to Node is rank 0 itself and starts the other ranks. torchrun's agent cannot do that: it makes
every rank a child of its own and puts each into a session of its own, out of reach of the guards that end our process
group with Node. So the ranks get torchrun's variables, and nothing else of it. They meet at a store on the loopback
interface.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import IO

import msgspec
import torch
import torch.distributed as dist
from torch.distributed import HashStore, Store, TCPStore  # type: ignore[attr-defined]

from rcm_sidecar.config import Compute
from rcm_sidecar.distributed.device import device_of
from rcm_sidecar.distributed.flight_recorder import recorded_on_signal
from rcm_sidecar.distributed.job_team import SILENCE, JobTeam
from rcm_sidecar.distributed.mesh import ParallelSizes, build_mesh, parallel_sizes
from rcm_sidecar.errors import SidecarError
from rcm_sidecar.link import JobCancelled, JobLink
from rcm_sidecar.protocol import Count, DistillStart, ErrorBody, PretrainStart, TrainingStart

_LAUNCH = Path(__file__).resolve().parents[2] / "launch.py"
_LOOPBACK = "127.0.0.1"
_MEETING = timedelta(minutes=10)
"""How long processes wait for each other at the start: importing torch from a slow disk takes minutes."""
_NOTICE_SECONDS = 5.0
"""How long the main thread has to notice that another process is gone; after that its end is reported without it."""
_LEAVE_SECONDS = 10.0


class RankLine(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """The one line of JSON that a rank gets on stdin; `report` is a descriptor for what ends it."""

    ppid: int
    rank: Count
    port: Count
    report: Count
    start: DistillStart | PretrainStart


class RankLost(SidecarError):
    """A process of the job failed or ended.

    Attributes:
        remote: What it reported, or None when it could not.
    """

    def __init__(self, rank: int, code: int, remote: ErrorBody | None) -> None:
        """Name the rank, this host and the reason; `code` is that of `Popen.returncode`."""
        host = socket.gethostname()
        hint = f"See logs/rank-{rank}.log in the run directory, then go on with `rcm-bridge resume`."
        details = {"rank": rank, "host": host, "exit": code, **({} if remote is None else remote.details)}
        if remote is None:
            how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
            super().__init__("E_SIDECAR_EXIT", f"Rank {rank} on {host} ended {how}.", hint, details)
        else:
            super().__init__(remote.code, f"Rank {rank} on {host}: {remote.message}", remote.hint or hint, details)
        self.remote = remote


class Ranks:
    """Ranks 1 and up of a job, children of this process.

    Args:
        start: The job.
        world: Number of processes, this one included.
        link: Told when this process cannot notice itself that another one is gone.
    """

    def __init__(self, start: TrainingStart, world: int, link: JobLink) -> None:
        self._link = link
        self._logs = Path(start.run_dir) / "logs"
        self._lost: RankLost | None = None
        self._noticed = threading.Event()
        self._changed = threading.Condition()
        self._ending = False
        self.store, port = _open_store(world)
        self._start, self._world, self._port = start, world, port
        self._processes: list[subprocess.Popen[bytes]] = []

    def begin(self) -> None:
        """Start them."""
        self._logs.mkdir(parents=True, exist_ok=True)
        for rank in range(1, self._world):
            self._begin(rank)

    def lost(self, patience_seconds: float) -> RankLost | None:
        """The first rank that ended in error; waits for one, because a broken connection shows before the exit."""
        with self._changed:
            self._changed.wait_for(lambda: self._lost is not None, patience_seconds)
            self._noticed.set()
            return self._lost

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

    def _begin(self, rank: int) -> None:
        read, write = os.pipe()
        line = RankLine(ppid=os.getpid(), rank=rank, port=self._port, report=write, start=self._start)  # type: ignore[arg-type]
        with (self._logs / f"rank-{rank}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-u", "-X", "faulthandler", str(_LAUNCH), "--rank"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(write,),
                env={**os.environ, **_variables(rank, self._world, self._port)},
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
        error = RankLost(rank, code, msgspec.json.decode(said, type=ErrorBody) if said else None)
        with self._changed:
            if self._lost is not None:
                return
            self._lost = error
            self._changed.notify_all()
        if not self._noticed.wait(_NOTICE_SECONDS) and not self._ending:
            self._link.lost(error)


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
    ranks = Ranks(start, sizes.world, link)
    patience = 0.0
    try:
        ranks.begin()
        with _joined(ranks.store, 0, sizes, compute, device, start) as team:
            yield team
        patience = _LEAVE_SECONDS
    except (JobCancelled, SidecarError):
        raise
    except Exception as error:
        lost = ranks.lost(_NOTICE_SECONDS if isinstance(error, (RuntimeError, OSError)) else 0.0)
        if lost is None:
            raise
        raise lost from error
    finally:
        ranks.end(patience)


@contextmanager
def following(line: RankLine, compute: Compute) -> Iterator[JobTeam]:
    """The team of a job as another rank."""
    sizes = sizes_of(compute)
    device = device_of(compute.device, int(os.environ["LOCAL_RANK"]))
    store = TCPStore(_LOOPBACK, line.port, sizes.world, is_master=False, timeout=_MEETING)
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
    if compute.nodes == 1:
        # Neither library listens beyond this machine.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
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


def _open_store(world: int) -> tuple[TCPStore, int]:
    """The store where the processes meet; torch alone would listen on all interfaces."""
    listening = socket.create_server((_LOOPBACK, 0), backlog=world)
    port = listening.getsockname()[1]
    store = TCPStore(
        _LOOPBACK,
        port,
        world,
        is_master=True,
        timeout=_MEETING,
        wait_for_workers=False,
        master_listen_fd=listening.detach(),
    )
    return store, port


def _variables(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun sets for a rank on one machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0",
        "MASTER_ADDR": _LOOPBACK,
        "MASTER_PORT": str(port),
    }
