"""One trainer step: losses of a phase, each with its own backward, then one optimizer step of one network.

The trainer knows roles, losses and counters, and nothing of any network (design section 3).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rcm_sidecar.data import BadSample
from rcm_sidecar.distributed.job_team import ALONE, JobTeam
from rcm_sidecar.errors import TrainingError
from rcm_sidecar.methods.loss import Loss
from rcm_sidecar.step_clock import region
from rcm_sidecar.training.ema import Ema
from rcm_sidecar.training.health import NonFinite
from rcm_sidecar.training.optimizer import AdamW

LossClosure = Callable[[slice], Loss]
"""The weighted loss of some samples of the step's batch; calling it builds the graph."""


@dataclass
class Role:
    """A network that learns, with all that moves with it.

    Attributes:
        name: student, critic or teacher.
        parameters: Name -> parameter, everything a checkpoint has to keep of it.
        optimizer: Over those parameters.
        learning_rate: Own update counter -> learning rate.
        clip_norm: Largest gradient norm, None for no limit.
        emas: Averages of the parameters, updated with every own update.
        updates: Own updates so far; skipped ones count.
        announce: Told before each backward whether it is the step's last one, see `fsdp.announce_backward`.
    """

    name: str
    parameters: Mapping[str, Tensor]
    optimizer: AdamW
    learning_rate: Callable[[int], float]
    clip_norm: float | None = None
    emas: Sequence[Ema] = ()
    updates: int = 0
    announce: Callable[[bool], None] = lambda last: None


@dataclass(frozen=True)
class Term:
    """One loss of a step.

    Attributes:
        name: Prefix of its metrics: scm, dmd, dcm, critic or flow.
        times: Its random times [B], for reports of non-finite values.
        loss: Closure over a part of the batch, so that no graph exists before it is called.
        scalars: Metric name -> scalar of the loss.
        counts: Metric name -> scalar that is its weight when micro-batches are averaged.
        dropped: Scalar that counts the samples the loss left out because they were not finite, or None.
    """

    name: str
    times: Tensor
    loss: LossClosure
    scalars: Mapping[str, str]
    counts: Mapping[str, str] = field(default_factory=dict)
    dropped: str | None = None


@dataclass(frozen=True)
class Work:
    """What one step does.

    Attributes:
        phase: Its name, for metrics.
        role: The network it updates.
        terms: The losses, in order.
        samples: This process's share of the batch.
        inputs: The batch by name, kept on disk when a value is not finite.
        first_sample: Place of the first of them in the whole batch.
        values: Further metrics; those of the leading process are reported.
        skipped: Samples that are bad and were replaced.
        ids: Name of each sample, where samples have names.
    """

    phase: str
    role: str
    terms: tuple[Term, ...]
    samples: int
    inputs: Mapping[str, Tensor]
    first_sample: int = 0
    values: Mapping[str, float] = field(default_factory=dict)
    skipped: tuple[BadSample, ...] = ()
    ids: tuple[str, ...] = ()


Plan = Callable[[int, Mapping[str, int]], Work]
"""(step about to run, counted from 0; updates by role) -> its work. A pure function: a resumed run repeats it."""


@dataclass(frozen=True)
class StepResult:
    """What a step measured.

    Attributes:
        step: Counted from 1.
        phase: Of its work.
        values: Metric name -> value.
        seconds: How long it took.
        dropped: Samples that a loss left out.
        non_finite: Set when the update was skipped.
        inputs: This process's samples, see `Work.inputs`.
        skipped: Samples of all processes that are bad and were replaced.
        wanted: Whether the leading process wants all to stop for a request after this step.
    """

    step: int
    phase: str
    values: Mapping[str, float]
    seconds: float
    dropped: int
    non_finite: NonFinite | None
    inputs: Mapping[str, Tensor]
    skipped: tuple[BadSample, ...] = ()
    wanted: bool = False


class Trainer:
    """Runs steps and counts.

    Args:
        roles: Name -> role.
        plan: Says what each step does.
        micro_batch: Samples of one forward and backward; it must divide the process's share of the batch.
        team: The processes that train together.

    Attributes:
        step: Steps done.
        check: Called before every forward; raises to abandon the step.
        wants: Whether there is a request to serve after this step; the leading process's answer goes to all.
    """

    def __init__(
        self,
        roles: Mapping[str, Role],
        plan: Plan,
        *,
        micro_batch: int,
        team: JobTeam = ALONE,
    ) -> None:
        self.roles = roles
        self.step = 0
        self.check: Callable[[], None] = lambda: None
        self.wants: Callable[[], bool] = lambda: False
        self._plan, self._micro_batch, self._team = plan, micro_batch, team

    @property
    def updates(self) -> dict[str, int]:
        """Own updates by role."""
        return {name: role.updates for name, role in self.roles.items()}

    def run_step(self) -> StepResult:
        """One step: backward of every term, then the update, or none if a value is not finite."""
        started = time.perf_counter()
        with region("inputs"):
            work = self._plan(self.step, self.updates)
        role = self.roles[work.role]
        role.optimizer.zero_grad()
        sums = self._backward(work, role)
        with region("optimizer"):
            norm = role.optimizer.gradient_norm()
        measured = self._agree(sums, norm, len(work.skipped))
        rate = role.learning_rate(role.updates)
        values = {**measured.values, **work.values, f"grad_norm/{role.name}": measured.norm, f"lr/{role.name}": rate}
        found = None
        if measured.finite:
            with region("optimizer"):
                self._update(role, measured.norm, rate)
        else:
            found = NonFinite.find(self.step + 1, work, role, self._micro_batch, self._team)
        role.optimizer.zero_grad()
        self._advance(role)
        seconds = time.perf_counter() - started
        return StepResult(
            self.step,
            work.phase,
            values,
            seconds,
            measured.dropped,
            found,
            work.inputs,
            skipped=self._all_skipped(work) if measured.skipped else (),
            wanted=measured.wanted,
        )

    def _backward(self, work: Work, role: Role) -> _Sums:
        parts = work.samples // self._micro_batch
        if parts * self._micro_batch != work.samples:
            raise TrainingError(
                "E_CONFIG_VALUE", f"microBatchSize {self._micro_batch} does not divide the batch of {work.samples}."
            )
        sums = _Sums()
        left = parts * len(work.terms)
        for part in range(parts):
            chosen = slice(part * self._micro_batch, (part + 1) * self._micro_batch)
            for term in work.terms:
                self.check()
                loss = term.loss(chosen)
                left -= 1
                role.announce(left == 0)
                with region("backward"):
                    (loss.total / parts).backward()
                sums.add(term, loss)
                del loss
        return sums

    def _all_skipped(self, work: Work) -> tuple[BadSample, ...]:
        """Those of all processes, once each: processes that share their samples skip the same."""
        own = [(bad.name, bad.reason) for bad in work.skipped]
        everyone = {name: reason for pairs in self._team.gather(own) for name, reason in pairs}
        return tuple(BadSample(name, reason) for name, reason in everyone.items())

    def _agree(self, sums: _Sums, norm: Tensor, skipped: int) -> _Measured:
        """Sums over all processes, in one collective with what the leading process wants: all decide alike.

        Processes that share their samples have the same losses, and replicas have the same shards: both count once.
        """
        sizes = self._team.sizes
        names = sorted(sums.values)
        pairs = [part for name in names for part in sums.values[name]]
        wanted = float(self._team.leads and self.wants())
        told = torch.tensor([wanted, float(skipped)], dtype=torch.float64)
        head = [sums.total, sums.dropped / sizes.context, norm.double().square() / sizes.replicate, *told]
        here = torch.stack([part.to(norm.device) for part in (*head, *pairs)])
        with region("other" if self._team.single else "communication"):
            total, dropped, square, asked, bad, *rest = self._team.sum(here)
        pairs_by_name = zip(names, rest[::2], rest[1::2], strict=True)
        # A mean over no sample (an empty time bucket) is left out: it is not zero, it is unknown.
        values = {name: value / weight for name, value, weight in pairs_by_name if weight > 0}
        finite = math.isfinite(total) and math.isfinite(square)
        return _Measured(values, math.sqrt(square), round(dropped), finite, asked > 0, bad > 0)

    def _update(self, role: Role, norm: float, rate: float) -> None:
        if role.clip_norm is not None:
            role.optimizer.clip(role.clip_norm, norm)
        role.optimizer.step(rate)

    def _advance(self, role: Role) -> None:
        """Counters and averages move on after a skipped update, too, as on a healthy run."""
        self.step += 1
        role.updates += 1
        with region("optimizer"):
            for ema in role.emas:
                ema.update(role.parameters)


@dataclass(frozen=True)
class _Measured:
    """What all processes know of a step after its collective."""

    values: Mapping[str, float]
    norm: float
    dropped: int
    finite: bool
    wanted: bool
    skipped: bool


class _Sums:
    """Sums over this process's micro-batches: float64, 0-d, on the losses' device, nothing read back."""

    def __init__(self) -> None:
        self.total: Tensor = torch.zeros((), dtype=torch.float64)
        self.dropped: Tensor = torch.zeros((), dtype=torch.float64)
        self.values: dict[str, tuple[Tensor, Tensor]] = {}
        """Metric -> (sum of value times weight, sum of weights)."""

    def add(self, term: Term, loss: Loss) -> None:
        """Add one micro-batch of one term; a scalar with a count is weighted with it."""
        self.total = loss.total.detach().double() + self.total
        if term.dropped is not None:
            self.dropped = loss.scalars[term.dropped] + self.dropped
        for metric, scalar in term.scalars.items():
            value = loss.scalars[scalar]
            weight = loss.scalars[term.counts[metric]] if metric in term.counts else torch.ones_like(value)
            before = self.values.get(metric)
            pair = (value * weight, weight)
            self.values[metric] = pair if before is None else (before[0] + pair[0], before[1] + pair[1])
