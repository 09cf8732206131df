"""Progress of jobs that are no training: things done of all."""

from __future__ import annotations

import time
from typing import Protocol

from rcm_sidecar.link import JobLink
from rcm_sidecar.protocol import Progress


class Report(Protocol):
    """Called with what is done now, how many are done, of how many, and the bytes done where they are counted."""

    def __call__(self, phase: str, done: int, total: int, done_bytes: int | None = None, /) -> None:
        """Say so; may raise, to end the work."""


def reporter(link: JobLink) -> Report:
    """Sends progress of counted things and passes a cancel on.

    Raises:
        JobCancelled: from the function that is returned.
    """
    began = time.monotonic()

    def report(phase: str, done: int, total: int, done_bytes: int | None = None, /) -> None:
        link.requests.raise_if_cancelled_now()
        spent = time.monotonic() - began
        link.progress(
            Progress(
                step=done,
                steps=total,
                phase=phase,
                student_updates=0,
                critic_updates=0,
                samples_per_second=0.0,
                eta_seconds=spent * (total - done) / max(done, 1),
                values={} if done_bytes is None else {"bytes": float(done_bytes)},
            )
        )

    return report
