"""Learning rates as a function of a network's own update counter (config `optimizer.schedule`)."""

from __future__ import annotations

import math
from typing import Literal

LearningRateSchedule = Literal["constant", "linearToZero", "cosine"]


def learning_rate(
    update: int,
    *,
    base: float,
    schedule: LearningRateSchedule,
    warmup_updates: int,
    total_updates: int,
    final_share: float | None = None,
) -> float:
    """Learning rate of the network's `update`-th own update, counted from 0.

    The warm-up is linear: base (update + 1) / warmup_updates. After it `constant` stays at base, `linearToZero` would
    reach 0 at total_updates (one past the last update), and `cosine` would reach final_share * base there.

    Args:
        update: Own updates made so far, skipped ones included.
        base: Peak learning rate.
        schedule: Form after the warm-up.
        warmup_updates: Length of the warm-up, 0 for none.
        total_updates: Own updates of the whole run (`methods.rcm.updates_after`).
        final_share: For cosine; None is 0.

    Raises:
        ValueError: unknown schedule.

    >>> learning_rate(49, base=1.0, schedule="constant", warmup_updates=100, total_updates=450)
    0.5
    >>> learning_rate(275, base=1.0, schedule="linearToZero", warmup_updates=100, total_updates=450)
    0.5
    """
    if schedule not in ("constant", "linearToZero", "cosine"):
        raise ValueError(f"unknown learning-rate schedule {schedule!r}")
    if update < warmup_updates:
        return base * (update + 1) / warmup_updates
    if schedule == "constant":
        return base
    progress = min(1.0, (update - warmup_updates) / max(1, total_updates - warmup_updates))
    if schedule == "linearToZero":
        return base * (1 - progress)
    last = final_share or 0.0
    return base * (last + (1 - last) * 0.5 * (1 + math.cos(math.pi * progress)))
