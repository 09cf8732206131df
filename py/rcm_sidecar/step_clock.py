"""Where the time of training steps goes (`compute.profile`): a stopwatch that runs for one part of the step at a time.

A region takes over from the region around it and hands back when it ends, so no moment counts twice; what no region
covers is `other`, so the parts of a step add up to it. On a GPU moments are CUDA events on the stream that computes,
read when the step has ended; on a CPU they are read from the clock at once.

Networks and their collectives cannot be handed a clock, so the one that runs is a variable of the context. Backward
passes run on autograd's threads, which do not have that context: what is timed there keeps the clock of its forward.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch

Part: TypeAlias = Literal[
    "teacher",
    "dual_forward",
    "forward",
    "rollout",
    "critic",
    "recomputation",
    "backward",
    "communication",
    "optimizer",
    "inputs",
    "data_wait",
    "checkpoint",
    "checksum",
    "sampling",
    "other",
    "pause",
]
"""docs/profile.md says what each includes. `pause` is waiting for a person and belongs to no step."""

NETWORK_PARTS = frozenset[Part](
    ("teacher", "dual_forward", "forward", "rollout", "critic", "recomputation", "backward")
)
"""Calls of networks, forward and backward; communication inside one is a part of its own and of the call."""

_NOTHING = nullcontext()


@dataclass(frozen=True)
class Lap:
    """The time of one step.

    Attributes:
        parts: Milliseconds by part; those that did not occur are absent. They add up to the step.
        outside_networks: Milliseconds outside calls of networks.
    """

    parts: Mapping[Part, float]
    outside_networks: float


class StepClock:
    """The stopwatch of one process.

    Args:
        device: Where training runs.
        now: For tests: the clock in seconds.
    """

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        self._on_gpu = device.type == "cuda"
        self._now: Callable[[], Any] = _event if self._on_gpu else now
        self._active: list[tuple[Part, bool]] = [("other", False)]
        self._marks: list[tuple[Any, Part, bool]] = []
        """(moment, the part that runs from then on, whether that is inside a network's call)"""

    @property
    def part(self) -> Part:
        """What runs now."""
        return self._active[-1][0]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within the context `region` and `timed` use this clock; the first step begins."""
        token = _current.set(self)
        self._marks.clear()
        self._mark()
        try:
            yield
        finally:
            _current.reset(token)

    @contextmanager
    def region(self, part: Part) -> Iterator[None]:
        """Time inside belongs to `part`, but for the regions in it."""
        self._active.append((part, self._active[-1][1] or part in NETWORK_PARTS))
        self._mark()
        try:
            yield
        finally:
            self._active.pop()
            self._mark()

    def lap(self) -> Lap:
        """End a step, and begin the next in the same moment. Waits for the GPU."""
        self._mark()
        marks, self._marks = self._marks, self._marks[-1:]
        if self._on_gpu:
            marks[-1][0].synchronize()
        parts: dict[Part, float] = {}
        outside = 0.0
        for (begin, part, inside), (end, _, _) in zip(marks, marks[1:], strict=False):
            passed = begin.elapsed_time(end) if self._on_gpu else 1000 * (end - begin)
            parts[part] = parts.get(part, 0.0) + passed
            outside += 0.0 if inside or part == "pause" else passed
        parts.pop("pause", None)
        return Lap(parts, outside)

    def _mark(self) -> None:
        self._marks.append((self._now(), *self._active[-1]))


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


_current: ContextVar[StepClock | None] = ContextVar("step_clock", default=None)


def current_clock() -> StepClock | None:
    """The clock that runs, for what will be timed on another thread; None without a profile."""
    return _current.get()


def region(part: Part) -> AbstractContextManager[None]:
    """Time inside belongs to `part`; nothing without a profile."""
    return region_of(_current.get(), part)


def region_of(clock: StepClock | None, part: Part) -> AbstractContextManager[None]:
    """As `region`, by a clock that was kept from `current_clock`."""
    return _NOTHING if clock is None else clock.region(part)


def timed(part: Part, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, each call of which belongs to `part`; without a profile `call` itself."""
    clock = _current.get()
    if clock is None:
        return call

    def within(*arguments: Any, **named: Any) -> Any:
        with clock.region(part):
            return call(*arguments, **named)

    return within


class StepProfile:
    """Mean times of the steps of each phase since they were last asked for.

    The first step of each phase is left out: it compiles kernels and makes buffers.
    """

    def __init__(self) -> None:
        self._laps: dict[str, list[Lap]] = {}

    def add(self, phase: str, lap: Lap) -> None:
        """Take in a step."""
        if phase in self._laps:
            self._laps[phase].append(lap)
        else:
            self._laps[phase] = []

    def take(self, phase: str) -> dict[str, float]:
        """Metrics of the steps of `phase` since the last call; empty if there were none.

        `profile/<part>_ms` and `profile/<part>_share` of a step, `profile/step_ms` their sum,
        `profile/outside_networks` a share, `profile/steps` the number of steps the means are of.
        """
        laps = self._laps.get(phase, [])
        self._laps[phase] = []
        total = sum(sum(lap.parts.values()) for lap in laps)
        if total == 0:
            return {}
        values = {"profile/steps": float(len(laps)), "profile/step_ms": total / len(laps)}
        for part in sorted({part for lap in laps for part in lap.parts}):
            passed = sum(lap.parts.get(part, 0.0) for lap in laps)
            values |= {f"profile/{part}_ms": passed / len(laps), f"profile/{part}_share": passed / total}
        return values | {"profile/outside_networks": sum(lap.outside_networks for lap in laps) / total}
