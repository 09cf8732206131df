"""Which network a step updates, with which losses (rcm-method section 6, design section 3).

Pure functions of the two update counters, so a resumed run takes the same phases. A step that was skipped because of a
non-finite value counts as if it had run; hence steps so far = student updates + critic updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rcm_sidecar.diffusion.coordinates import HALF_PI

Method = Literal["rcm", "scm", "dmd", "dcm"]
PhaseName = Literal["student", "critic"]
LossName = Literal["scm", "dmd", "dcm", "critic"]

STUDENT_LOSSES: dict[Method, tuple[LossName, ...]] = {
    "rcm": ("scm", "dmd"),
    "scm": ("scm",),
    "dmd": ("dmd",),
    "dcm": ("dcm",),
}


@dataclass(frozen=True)
class MethodSchedule:
    """The settings that decide phases.

    Attributes:
        method: rcm, scm, dmd or dcm.
        student_every: Every k-th step after warm-up and head start updates the student, the others the critic.
            Unused by methods without a critic.
        tangent_warmup_updates: Student updates over which r rises from 0 to 1, with sCM only. Unused by dmd and dcm.
        critic_head_start_steps: Critic updates before the first DMD update.
    """

    method: Method
    student_every: int = 1
    tangent_warmup_updates: int = 0
    critic_head_start_steps: int = 0

    def __post_init__(self) -> None:
        if self.method not in STUDENT_LOSSES:
            raise ValueError(f"unknown method {self.method!r}")
        if self.student_every < 1 or self.tangent_warmup_updates < 0 or self.critic_head_start_steps < 0:
            raise ValueError("studentEvery must be at least 1; warm-up and head start must not be negative")

    @property
    def has_critic(self) -> bool:
        """Whether the method trains a critic."""
        return "dmd" in STUDENT_LOSSES[self.method]

    @property
    def warmup_updates(self) -> int:
        """Tangent warm-up that applies to this method."""
        return self.tangent_warmup_updates if "scm" in STUDENT_LOSSES[self.method] else 0


@dataclass(frozen=True)
class Phase:
    """What one step does.

    Attributes:
        name: The network that is updated.
        losses: The losses of this step, in order; each has its own backward, then one optimizer step follows.
        warmup_ratio: Tangent warm-up r of the sCM loss, 1 in other phases.
    """

    name: PhaseName
    losses: tuple[LossName, ...]
    warmup_ratio: float


def next_phase(schedule: MethodSchedule, student_updates: int, critic_updates: int) -> Phase:
    """The phase of the next step, after so many updates of each network.

    >>> digits = MethodSchedule("rcm", student_every=3, tangent_warmup_updates=150)
    >>> next_phase(digits, 75, 0)
    Phase(name='student', losses=('scm',), warmup_ratio=0.5)
    >>> [next_phase(digits, 150 + s, c).name for s, c in ((0, 0), (1, 0), (1, 1), (1, 2))]
    ['student', 'critic', 'critic', 'student']
    """
    warmup = schedule.warmup_updates
    ratio = min(1.0, student_updates / warmup) if warmup else 1.0
    losses = STUDENT_LOSSES[schedule.method]
    if not schedule.has_critic:
        return Phase("student", losses, ratio)
    if student_updates < warmup:
        return Phase("student", ("scm",), ratio)
    if critic_updates < schedule.critic_head_start_steps:
        return Phase("critic", ("critic",), 1.0)
    alternating = student_updates + critic_updates - warmup - schedule.critic_head_start_steps
    if alternating % schedule.student_every == 0:
        return Phase("student", losses, 1.0)
    return Phase("critic", ("critic",), 1.0)


def updates_after(schedule: MethodSchedule, steps: int) -> tuple[int, int]:
    """(student updates, critic updates) after `steps` steps; learning-rate schedules need the totals.

    >>> updates_after(MethodSchedule("rcm", student_every=3, tangent_warmup_updates=150), 1050)
    (450, 600)
    >>> updates_after(MethodSchedule("dmd", student_every=3, tangent_warmup_updates=150), 1350)
    (450, 900)
    """
    if not schedule.has_critic:
        return steps, 0
    alone = min(steps, schedule.warmup_updates)
    head_start = min(steps - alone, schedule.critic_head_start_steps)
    alternating = steps - alone - head_start
    with_student = -(-alternating // schedule.student_every)
    return alone + with_student, steps - alone - with_student


def rollout_length(own_updates: int, rollout_steps: int) -> int:
    """Number of student calls of a rollout: 1, 2, ..., rollout_steps in turn by the network's own update counter."""
    return own_updates % rollout_steps + 1


def rollout_times(length: int, batch: int, following: Tensor | Sequence[float]) -> Tensor:
    """TrigFlow times of a rollout [length, batch], float64: pi/2, then decreasing.

    Args:
        length: Number of student calls n.
        batch: Batch size B.
        following: Draws from p_D [n-1, B] (each is cut to the time before it), or a fixed list of at least n-1 times.

    Raises:
        ValueError: too few times.

    >>> rollout_times(3, 1, [1.5, 1.4, 1.0]).flatten().tolist()
    [1.5707963267948966, 1.5, 1.4]
    """
    if isinstance(following, Tensor):
        later = following.double().reshape(-1, batch)
    else:
        later = torch.tensor(list(following), dtype=torch.float64)[:, None].expand(-1, batch)
    if later.shape[0] < length - 1:
        raise ValueError(f"a rollout of {length} steps needs {length - 1} times after the first, got {later.shape[0]}")
    start = torch.full((1, batch), HALF_PI, dtype=torch.float64, device=later.device)
    return torch.cummin(torch.cat([start, later[: length - 1]]), dim=0).values
