"""The processes of a job as everything else sees them: this one's place, and the few things they say to each other.

Every method is called by all processes together. With one process nothing is sent, so callers have no second form.
What is said is msgpack of plain values in tensors; an error travels as its code, words and frames, never as an object.
"""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

from rcm_sidecar.distributed.mesh import Mesh, ParallelSizes, own_samples
from rcm_sidecar.error_report import error_body
from rcm_sidecar.errors import SidecarError, error_of_kind
from rcm_sidecar.link import Cancel, JobCancelled
from rcm_sidecar.protocol import ErrorBody

Result = TypeVar("Result")

SILENCE = timedelta(days=30)
"""A run may be paused for days; processes that are gone are noticed by their exit, those that hang by the watchdog."""


@dataclass(frozen=True)
class JobTeam:
    """All processes of a job.

    Attributes:
        rank: This process's number; 0 leads: it reports, and takes requests.
        sizes: Of the parallel axes.
        device: Where this process computes.
        mesh: Its process groups; None for one process that needs none (see `launch.needs_mesh`).
        group: What they talk through; None is the default group.
    """

    rank: int
    sizes: ParallelSizes
    device: torch.device
    mesh: Mesh | None = None
    group: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the process that reports and writes."""
        return self.rank == 0

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.sizes.world

    @property
    def single(self) -> bool:
        """Whether there are no others."""
        return self.size == 1

    def own(self, batch_size: int) -> slice:
        """The samples of a step's whole batch that are this process's, see `mesh.own_samples`."""
        return own_samples(self.sizes, self.rank, batch_size)

    def for_a_thread(self) -> JobTeam:
        """The same processes with a group of their own: two threads that share one would mix up their messages."""
        return self if self.single else dataclasses.replace(self, group=dist.new_group(backend="gloo", timeout=SILENCE))

    def sum(self, values: Tensor) -> list[float]:
        """Sums over all processes of float64 `values` [n]: one collective, one read-back. Overwrites `values`."""
        if not self.single:
            dist.all_reduce(values, group=self.group)
        summed: list[float] = values.tolist()
        return summed

    def tell(self, value: Any) -> Any:
        """What the leading process passes, on every process; plain values only. What others pass is not looked at."""
        if self.single:
            return value
        data = msgspec.msgpack.encode(value) if self.leads else b""
        length = torch.tensor([len(data)], device=self._speaking_device)
        dist.broadcast(length, src=0, group=self.group)
        content = self._tensor(data, int(length))
        dist.broadcast(content, src=0, group=self.group)
        return msgspec.msgpack.decode(_bytes(content))

    def gather(self, value: Any) -> list[Any]:
        """What every process passes, by rank; plain values only."""
        if self.single:
            return [value]
        data = msgspec.msgpack.encode(value)
        lengths = [torch.zeros(1, dtype=torch.int64, device=self._speaking_device) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(data)], device=self._speaking_device), group=self.group)
        longest = max(int(length) for length in lengths)
        contents = [self._tensor(b"", longest) for _ in lengths]
        dist.all_gather(contents, self._tensor(data, longest), group=self.group)
        pairs = zip(contents, lengths, strict=True)
        return [msgspec.msgpack.decode(_bytes(content)[: int(length)]) for content, length in pairs]

    def together(self, work: Callable[[], Result]) -> list[Result]:
        """Do the work on every process.

        Returns:
            The result of each process, plain values.

        Raises:
            Exception: That of the first process whose work failed. There it is the exception itself, elsewhere one of
                its kind that names the rank and host and has its frames as `remote` (see `errors.error_of_kind`).
        """
        outcome, error = self._attempt(work)
        return [cast(Result, value) for value in self._results(self.gather(outcome), error)]

    def first(self, work: Callable[[], Result]) -> Result:
        """The leading process works while the others wait; its result, a plain value, or its error on all."""
        outcome, error = self._attempt(work) if self.leads else (None, None)
        return cast(Result, self._results([self.tell(outcome)], error)[0])

    def alone(self, work: Callable[[], Result], answer: Callable[[Any], object] = lambda order: None) -> Result | None:
        """The leading process works while the others wait; returns its result there and None elsewhere.

        Args:
            work: What it does. It may ask the others to take part in something, see `order`.
            answer: What the others do with each order.

        Raises:
            JobCancelled: on all processes, when the work was cancelled, so that all go on in the same place.
            Exception: Any other of the work, on the leading process alone: the others can be in the middle of an order,
                out of step, and are ended with the job.
        """
        done: list[Result] = []
        outcome, error = self._attempt(lambda: done.append(work())) if self.leads else (None, None)
        if error is not None and not isinstance(error, JobCancelled):
            raise error
        while "order" in (told := self.tell(outcome)):
            answer(told["order"])
        self._results([told], error)
        return done[0] if done else None

    def order(self, order: Any) -> None:
        """Within the work of `alone`: have the others answer this, plain values."""
        self.tell({"order": order})

    def _attempt(self, work: Callable[[], Any]) -> tuple[dict[str, Any], Exception | None]:
        """What the work came to as plain values, and the exception itself."""
        try:
            return {"value": work()}, None
        except JobCancelled as cancelled:
            return {"cancel": cancelled.cancel.checkpoint}, cancelled
        except Exception as error:
            body = {} if self.single else msgspec.to_builtins(error_body(error))
            return {"error": body, "kind": type(error).__name__, "host": socket.gethostname()}, error

    def _results(self, outcomes: list[dict[str, Any]], own: Exception | None) -> list[Any]:
        """The values of outcomes by rank, or the error of the first that failed."""
        for rank, outcome in enumerate(outcomes):
            if "value" in outcome:
                continue
            if rank == self.rank and own is not None:
                raise own
            if "cancel" in outcome:
                raise JobCancelled(Cancel(outcome["cancel"])) from own
            raise _error_of(rank, outcome) from own
        return [outcome["value"] for outcome in outcomes]

    @property
    def _speaking_device(self) -> torch.device:
        """Where messages lie; NCCL carries GPU memory only."""
        return self.device if dist.get_backend(self.group) == "nccl" else torch.device("cpu")

    def _tensor(self, data: bytes, length: int) -> Tensor:
        padded = bytearray(data.ljust(max(1, length), b"\0"))
        return torch.frombuffer(padded, dtype=torch.uint8).to(self._speaking_device)


def _bytes(content: Tensor) -> bytes:
    data: bytes = content.cpu().numpy().tobytes()
    return data


def _error_of(rank: int, outcome: dict[str, Any]) -> SidecarError:
    """Another process's error, for this one to raise."""
    body = msgspec.convert(outcome["error"], ErrorBody)
    details = {**body.details, "rank": rank, "host": outcome["host"]}
    error = error_of_kind(
        outcome["kind"], body.code, f"Rank {rank} on {outcome['host']}: {body.message}", body.hint, details
    )
    error.remote = body
    return error


ALONE = JobTeam(0, ParallelSizes(1, 1, 1), torch.device("cpu"))
"""One process on the CPU, without process groups."""
