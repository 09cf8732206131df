"""Whether the disk has room for the checkpoints of a run, asked before its first step."""

from __future__ import annotations

from pathlib import Path

from rcm_sidecar.checkpoints.training_state import written_steps
from rcm_sidecar.config import Checkpoints
from rcm_sidecar.files import free_bytes, require_space


def check_room(root: Path, size: int, settings: Checkpoints, steps: int) -> str | None:
    """Refuse a run whose next checkpoint does not fit.

    Args:
        root: The folder `checkpoints` of the run; it may be missing.
        size: Of one checkpoint, in bytes.
        settings: Which ones are kept.
        steps: Of the whole run.

    Returns:
        A warning when those that are kept will not all fit, else None.

    Raises:
        HostError: E_DISK_FULL.
    """
    if settings.every_steps is None and not settings.on_stop:
        return None
    require_space(root, size)
    # One more than is kept: the oldest goes when the newest is on disk.
    wanted = settings.keep_last + 1
    if settings.keep_every_steps is not None:
        wanted += steps // settings.keep_every_steps
    scheduled = 0 if settings.every_steps is None else steps // settings.every_steps
    wanted = min(wanted, 1 + scheduled)  # the last one when the run stops
    missing = wanted - len(written_steps(root))
    free = free_bytes(root)
    if free is None or missing * size <= free:
        return None
    return (
        f"A checkpoint takes {size / 1e9:.3g} GB. This run keeps {wanted}, one of them while it is written, and "
        f"{free / 1e9:.3g} GB are free in {root.parent}: room for {free // size} more. Lower checkpoints.keepLast or "
        "raise keepEverySteps, or free some space."
    )
