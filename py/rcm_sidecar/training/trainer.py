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

from rcm_sidecar.errors import TrainingError
from rcm_sidecar.methods.loss import Loss
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
    """

    name: str
    parameters: Mapping[str, Tensor]
    optimizer: AdamW
    learning_rate: Callable[[int], float]
    clip_norm: float | None = None
    emas: Sequence[Ema] = ()
    updates: int = 0


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
        samples: Size of the batch.
        inputs: Latents and labels, kept on disk when a value is not finite.
    """

    phase: str
    role: str
    terms: tuple[Term, ...]
    samples: int
    inputs: Mapping[str, Tensor]


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
        inputs: The step's batch, see `Work.inputs`.
    """

    step: int
    phase: str
    values: Mapping[str, float]
    seconds: float
    dropped: int
    non_finite: NonFinite | None
    inputs: Mapping[str, Tensor]


class Trainer:
    """Runs steps and counts.

    Args:
        roles: Name -> role.
        plan: Says what each step does.
        micro_batch: Samples of one forward and backward; it must divide the batch.

    Attributes:
        step: Steps done.
        check: Called before every forward; raises to abandon the step.
    """

    def __init__(
        self,
        roles: Mapping[str, Role],
        plan: Plan,
        *,
        micro_batch: int,
    ) -> None:
        self.roles = roles
        self.step = 0
        self.check: Callable[[], None] = lambda: None
        self._plan, self._micro_batch = plan, micro_batch

    @property
    def updates(self) -> dict[str, int]:
        """Own updates by role."""
        return {name: role.updates for name, role in self.roles.items()}

    def run_step(self) -> StepResult:
        """One step: backward of every term, then the update, or none if a value is not finite."""
        started = time.perf_counter()
        work = self._plan(self.step, self.updates)
        role = self.roles[work.role]
        role.optimizer.zero_grad()
        values = self._backward(work)
        norm = role.optimizer.gradient_norm()
        rate = role.learning_rate(role.updates)
        values |= {f"grad_norm/{role.name}": norm.item(), f"lr/{role.name}": rate}
        dropped = round(values.pop("dropped"))
        finite = math.isfinite(values.pop("total")) and math.isfinite(norm.item())
        found = None if finite else NonFinite.find(self.step + 1, work, role, self._micro_batch)
        if finite:
            self._update(role, norm, rate)
        role.optimizer.zero_grad()
        self._advance(role)
        return StepResult(self.step, work.phase, values, time.perf_counter() - started, dropped, found, work.inputs)

    def _backward(self, work: Work) -> dict[str, float]:
        parts = work.samples // self._micro_batch
        if parts * self._micro_batch != work.samples:
            raise TrainingError(
                "E_CONFIG_VALUE", f"microBatchSize {self._micro_batch} does not divide the batch of {work.samples}."
            )
        losses: dict[str, list[dict[str, Tensor]]] = {term.name: [] for term in work.terms}
        totals: list[Tensor] = []
        dropped: list[Tensor] = []
        for part in range(parts):
            chosen = slice(part * self._micro_batch, (part + 1) * self._micro_batch)
            for term in work.terms:
                self.check()
                loss = term.loss(chosen)
                (loss.total / parts).backward()
                losses[term.name].append(loss.scalars)
                totals.append(loss.total.detach().double())
                dropped += [loss.scalars[term.dropped]] if term.dropped else []
                del loss
        sums = {"total": torch.stack(totals).sum().item(), "dropped": sum(value.item() for value in dropped)}
        return {**sums, **_averages(work.terms, losses)}

    def _update(self, role: Role, norm: Tensor, rate: float) -> None:
        if role.clip_norm is not None:
            role.optimizer.clip(role.clip_norm, norm)
        role.optimizer.step(rate)

    def _advance(self, role: Role) -> None:
        """Counters and averages move on after a skipped update, too, as on a healthy run."""
        self.step += 1
        role.updates += 1
        for ema in role.emas:
            ema.update(role.parameters)


def _averages(terms: Sequence[Term], losses: Mapping[str, list[dict[str, Tensor]]]) -> dict[str, float]:
    """Means over micro-batches, weighted by counts where a scalar has one; one read-back for all.

    A mean over no sample (an empty time bucket) is left out: it is not zero, it is unknown.
    """
    sums: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for term in terms:
        parts = losses[term.name]
        for metric, scalar in term.scalars.items():
            values = torch.stack([part[scalar] for part in parts])
            counted = torch.ones_like(values)
            if metric in term.counts:
                counted = torch.stack([part[term.counts[metric]] for part in parts])
            sums[metric], weights[metric] = (values * counted).sum(), counted.sum()
    if not sums:
        return {}
    totals = torch.stack([*sums.values(), *weights.values()]).tolist()
    means = zip(sums, totals[: len(sums)], totals[len(sums) :], strict=True)
    return {metric: total / weight for metric, total, weight in means if weight > 0}
