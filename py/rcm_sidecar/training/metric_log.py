"""Which steps are logged."""

from __future__ import annotations


class MetricLog:
    """Each phase is logged at its first step on or after each multiple of `every` (and at its very first step).

    Args:
        every: `logging.everySteps`.

    Attributes:
        last: Phase -> its last step; a checkpoint keeps it, so that a resumed run logs the same steps.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self.last: dict[str, int] = {}

    def is_due(self, phase: str, step: int) -> bool:
        """Whether to log this step (counted from 1); call it for every step."""
        multiple = step - step % self._every
        due = self.last.get(phase, -1) < multiple
        self.last[phase] = step
        return due
