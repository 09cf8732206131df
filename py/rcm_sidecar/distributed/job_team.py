"""The processes of a job as the trainer sees them: this one's place, and the few things they say to each other.

Every method is called by all processes together. With one process nothing is sent, so the trainer has no second form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

from rcm_sidecar.distributed.mesh import Mesh, ParallelSizes, own_samples
from rcm_sidecar.link import Cancel, JobCancelled

Result = TypeVar("Result")


@dataclass(frozen=True)
class JobTeam:
    """All processes of a job.

    Attributes:
        rank: This process's number; 0 leads: it reports, and takes requests.
        sizes: Of the parallel axes.
        device: Where this process computes.
        mesh: Its process groups; None for one process that needs none (see `launch.needs_mesh`).
    """

    rank: int
    sizes: ParallelSizes
    device: torch.device
    mesh: Mesh | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the process that reports and writes."""
        return self.rank == 0

    @property
    def single(self) -> bool:
        """Whether there are no others."""
        return self.sizes.world == 1

    def own(self, batch_size: int) -> slice:
        """The samples of a step's whole batch that are this process's, see `mesh.own_samples`."""
        return own_samples(self.sizes, self.rank, batch_size)

    def sum(self, values: Tensor) -> list[float]:
        """Sums over all processes of float64 `values` [n]: one collective, one read-back. Overwrites `values`."""
        if not self.single:
            dist.all_reduce(values)
        summed: list[float] = values.tolist()
        return summed

    def tell(self, value: Any) -> Any:
        """What the leading process passes, on every process; plain values only. What others pass is not looked at."""
        if self.single:
            return value
        data = msgspec.msgpack.encode(value) if self.leads else b""
        length = torch.tensor([len(data)], device=self.device)
        dist.broadcast(length, src=0)
        content = self._bytes(data, int(length))
        dist.broadcast(content, src=0)
        return msgspec.msgpack.decode(bytes(content.tolist()))

    def gather(self, value: Any) -> list[Any]:
        """What every process passes, by rank; plain values only."""
        if self.single:
            return [value]
        data = msgspec.msgpack.encode(value)
        lengths = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.sizes.world)]
        dist.all_gather(lengths, torch.tensor([len(data)], device=self.device))
        longest = max(int(length) for length in lengths)
        contents = [self._bytes(b"", longest) for _ in lengths]
        dist.all_gather(contents, self._bytes(data, longest))
        pairs = zip(contents, lengths, strict=True)
        return [msgspec.msgpack.decode(bytes(content.tolist()[: int(length)])) for content, length in pairs]

    def alone(self, work: Callable[[], Result], answer: Callable[[Any], object] = lambda order: None) -> Result | None:
        """The leading process works while the others wait; returns its result there and None elsewhere.

        Args:
            work: What it does. It may ask the others to take part in something: `tell` with a mapping, an order.
            answer: What the others do with each order.

        Raises:
            JobCancelled: on all processes, when the work was cancelled, so that all go on in the same place.
        """
        done: Result | None = None
        cancel: Cancel | None = None
        if self.leads:
            try:
                done = work()
            except JobCancelled as cancelled:
                cancel = cancelled.cancel
        while isinstance(checkpoint := self.tell(None if cancel is None else cancel.checkpoint), dict):
            answer(checkpoint)
        if checkpoint is not None:
            raise JobCancelled(Cancel(checkpoint))
        return done

    def _bytes(self, data: bytes, length: int) -> Tensor:
        return torch.tensor(list(data.ljust(length, b"\0")), dtype=torch.uint8, device=self.device)


ALONE = JobTeam(0, ParallelSizes(1, 1, 1), torch.device("cpu"))
"""One process on the CPU, without process groups."""
