"""Time of the parts of a pass, between events on the device's queue: the pass itself is not slowed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Collects (begin, end) marks by part, over any number of passes."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: dict[str, list[list[tuple[object, object]]]] = {}

    def start_pass(self) -> None:
        """What follows belongs to a new pass."""
        for passes in self._marks.values():
            passes.append([])

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """The time inside belongs to `name`, as often as it is entered."""
        begin = self._mark()
        yield
        self._marks.setdefault(name, [[]])[-1].append((begin, self._mark()))

    def medians_ms(self) -> dict[str, float]:
        """Milliseconds of each part, the median over all passes; to be called with the device at rest."""
        return {
            name: statistics.median(sum(self._between(*pair) for pair in one) for one in passes)
            for name, passes in self._marks.items()
        }

    def _mark(self) -> object:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, begin: object, end: object) -> float:
        if isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
            return begin.elapsed_time(end)
        assert isinstance(begin, float) and isinstance(end, float)
        return 1e3 * (end - begin)
