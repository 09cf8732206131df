"""State of an update that rests in main memory and visits the device a bucket at a time (`compute.offload: optimizer`).

torch's own CPUOffloadPolicy moves parameters and gradients as well and updates on the CPU; here only what nothing but
the update needs leaves the device, and the update's arithmetic stays there, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from rcm_sidecar.distributed.tensors import local

BUCKET_ELEMENTS = 1 << 24
"""Elements of a visit, 64 MB of float32; a larger tensor visits alone."""

SLOTS = 3
"""Buckets on the device at once: one arrives, one is worked on, one goes back."""


def rest(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor like `tensor`, sharded like it, in main memory (pinned beside a GPU); its values are not set."""
    contiguous = torch.contiguous_format
    return torch.empty_like(
        tensor.detach(), dtype=dtype, device="cpu", memory_format=contiguous, pin_memory=tensor.is_cuda
    )


class Visitors:
    """Rows of tensors in main memory, of which a few at a time are on the device.

    Copies run beside the caller's work. The memory they take there is SLOTS times the largest bucket.

    Args:
        rows: A row belongs to one parameter; all tensors of all rows have one dtype.
        device: Where they visit.
    """

    def __init__(self, rows: Sequence[tuple[Tensor, ...]], device: torch.device) -> None:
        self._rows = [tuple(local(tensor) for tensor in row) for row in rows]
        self._buckets = list(_buckets([sum(tensor.numel() for tensor in row) for row in self._rows]))
        self._lanes = _CudaLanes(device) if device.type == "cuda" else _NoLanes()
        self._device = device
        self._slots: list[Tensor] = []

    def visits(self) -> Iterator[tuple[slice, list[tuple[Tensor, ...]]]]:
        """(which rows, their copies on the device) until all have been there; what is written into copies goes back.

        The copies of a bucket are valid until the next one is asked for.
        """
        self._make_slots()
        self._lanes.begin()
        for number, bucket in enumerate(self._buckets):
            slot = number % SLOTS
            copies = self._copies(slot, bucket)
            pairs = [pair for row in zip(copies, self._rows[bucket], strict=True) for pair in zip(*row, strict=True)]
            with self._lanes.arriving(slot):
                for copy, resting in pairs:
                    copy.copy_(resting, non_blocking=True)
            yield bucket, copies
            with self._lanes.leaving(slot):
                for copy, resting in pairs:
                    resting.copy_(copy, non_blocking=True)

    def settle(self) -> None:
        """Wait until everything is back in main memory; before anyone reads it there."""
        self._lanes.settle()

    def _make_slots(self) -> None:
        if self._slots:
            return
        largest = max(sum(t.numel() for row in self._rows[bucket] for t in row) for bucket in self._buckets)
        dtype = self._rows[0][0].dtype
        self._slots = [torch.empty(largest, dtype=dtype, device=self._device) for _ in self._buckets[:SLOTS]]

    def _copies(self, slot: int, bucket: slice) -> list[tuple[Tensor, ...]]:
        """Places in a slot, one after the other, for the rows of a bucket."""
        start, copies = 0, []
        for row in self._rows[bucket]:
            places = []
            for tensor in row:
                places.append(self._slots[slot][start : start + tensor.numel()].view(tensor.shape))
                start += tensor.numel()
            copies.append(tuple(places))
        return copies


def _buckets(sizes: Sequence[int]) -> Iterator[slice]:
    """Consecutive rows that have at most BUCKET_ELEMENTS together; a larger one is alone."""
    first, filled = 0, 0
    for index, size in enumerate(sizes):
        if index > first and filled + size > BUCKET_ELEMENTS:
            yield slice(first, index)
            first, filled = index, 0
        filled += size
    yield slice(first, len(sizes))


class _NoLanes:
    """On a CPU a copy is done when it returns."""

    def begin(self) -> None: ...

    def settle(self) -> None: ...

    def arriving(self, slot: int) -> AbstractContextManager[None]:
        return nullcontext()

    leaving = arriving


class _CudaLanes:
    """A stream for what arrives and one for what goes back, in order with the stream of the caller's work."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._in, self._out = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self._gone: dict[int, torch.cuda.Event] = {}

    def begin(self) -> None:
        """What an earlier round took back must be there before it is fetched again; new slots must be free."""
        self._in.wait_stream(self._out)
        self._in.wait_stream(torch.cuda.current_stream(self._device))
        self._gone.clear()

    @contextmanager
    def arriving(self, slot: int) -> Iterator[None]:
        if slot in self._gone:
            self._in.wait_event(self._gone[slot])
        with torch.cuda.stream(self._in):
            yield
        torch.cuda.current_stream(self._device).wait_stream(self._in)

    @contextmanager
    def leaving(self, slot: int) -> Iterator[None]:
        self._out.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._out):
            yield
            self._gone[slot] = self._out.record_event()

    def settle(self) -> None:
        self._out.synchronize()
