"""Processes that do something together: each learns how it went on all, and an error of one is raised by all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import torch.distributed as dist

from rcm_sidecar.errors import SidecarError

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Team:
    """All processes of a group; this process alone where there is no group.

    Attributes:
        group: None is the default group. A thread of its own needs a group of its own: two threads that use one
            would mix up each other's messages.
    """

    group: dist.ProcessGroup | None = None

    @property
    def size(self) -> int:
        """Number of processes."""
        return dist.get_world_size(self.group) if dist.is_initialized() else 1

    @property
    def rank(self) -> int:
        """Place of this process, from 0."""
        return dist.get_rank(self.group) if dist.is_initialized() else 0

    @property
    def is_alone(self) -> bool:
        """Nobody to agree with."""
        return self.size == 1

    def together(self, work: Callable[[], Result]) -> list[Result]:
        """Do the work on every process; all of them call it.

        Returns:
            The result of each process. Results travel between processes, so they are small and plain.

        Raises:
            Exception: That of the first process whose work failed, on every process.
        """
        if self.is_alone:
            return [work()]
        outcomes: list[_Outcome[Result]] = [_Outcome()] * self.size
        dist.all_gather_object(outcomes, _outcome(work), group=self.group)
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error
        return [cast(Result, outcome.result) for outcome in outcomes]

    def first(self, work: Callable[[], Result]) -> Result:
        """Do the work on rank 0 alone; all processes call it, wait for it and get its result or its error."""
        return cast(Result, self.together(lambda: work() if self.rank == 0 else None)[0])


@dataclass(frozen=True)
class _Outcome(Generic[Result]):
    """What one process tells the others: a result, or the error instead."""

    result: Result | None = None
    error: Exception | None = None


def _outcome(work: Callable[[], Result]) -> _Outcome[Result]:
    try:
        return _Outcome(result=work())
    except (OSError, SidecarError) as error:
        return _Outcome(error=error)
    except Exception as error:  # it may hold what cannot travel
        return _Outcome(error=RuntimeError(f"{type(error).__name__}: {error}"))
