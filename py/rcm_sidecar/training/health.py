"""Non-finite values: where they come from, how many are tolerated (rcm-method section 4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from rcm_sidecar.distributed.job_team import ALONE, JobTeam
from rcm_sidecar.distributed.tensors import local
from rcm_sidecar.errors import TrainingError

if TYPE_CHECKING:
    from rcm_sidecar.training.trainer import Role, Work


@dataclass(frozen=True)
class NonFinite:
    """A skipped update.

    Attributes:
        step: Step it happened in, counted from 1.
        term: Loss whose value is not finite, or "gradient" when all losses were finite.
        sample: Index in the step's batch, -1 if unknown.
        time: TrigFlow time of that sample, or None.
        block: First module with a non-finite output in order of execution, or the parameter whose gradient is bad;
            "" if none was found.
        rank: The process that found it.
        name: Of the sample, "" where samples have none.
    """

    step: int
    term: str
    sample: int
    time: float | None
    block: str
    rank: int = 0
    name: str = ""

    @property
    def message(self) -> str:
        """One sentence."""
        where = f", first in {self.block}" if self.block else ""
        named = f" ({self.name})" if self.name else ""
        which = f" of sample {self.sample}{named}" if self.sample >= 0 else ""
        when = f" at time {self.time:.4f}" if self.time is not None else ""
        return f"Step {self.step}: {self.term}{which}{when} is not finite{where}; the update was skipped."

    @property
    def details(self) -> dict[str, Any]:
        """Plain values, rank included, for events and errors."""
        return asdict(self)

    @staticmethod
    def find(step: int, work: Work, role: Role, micro_batch: int, team: JobTeam = ALONE) -> NonFinite:
        """Look for the cause by running the step's losses once more with watched modules.

        The step's random numbers are fixed, so this sees the same values. The gradients of `role` must still be there.
        All processes run all losses, since a sharded network needs all of them, and report the first finding by rank:
        of a loss if there is one, else of a gradient.
        """
        found: NonFinite | None = None
        for start in range(0, work.samples, micro_batch):
            for term in work.terms:
                if found is not None and team.single:
                    return found
                with _watch() as names, torch.no_grad():
                    loss = term.loss(slice(start, start + micro_batch))
                bad = ~torch.isfinite(loss.per_sample)
                if found is None and bad.any():
                    sample = start + int(bad.int().argmax())
                    block, time = names[0] if names else "", float(term.times[sample])
                    name = work.ids[sample] if work.ids else ""
                    found = NonFinite(step, term.name, work.first_sample + sample, time, block, team.rank, name)
        if found is None:
            found = NonFinite(step, "gradient", -1, None, _bad_gradient(role.parameters), team.rank)
        everyone = [NonFinite(**finding) for finding in team.gather(asdict(found))]
        return next((one for one in everyone if one.term != "gradient"), None) or next(
            (one for one in everyone if one.block), everyone[0]
        )


class NonFiniteWindow:
    """How many of the last steps were skipped, and whether that is too many.

    Args:
        policy: `skip` tolerates a share, `fail` none.
        max_share: Largest share of skipped steps in the window.
        window_steps: Length of the window.
    """

    def __init__(self, policy: Literal["skip", "fail"], max_share: float, window_steps: int) -> None:
        self._policy, self._limit, self._length = policy, max_share * window_steps, window_steps
        self.steps: list[int] = []

    def add(self, found: NonFinite) -> None:
        """Count one skipped step.

        Raises:
            TrainingError: E_NON_FINITE, if the run must end.
        """
        self.steps = [step for step in [*self.steps, found.step] if step > found.step - self._length]
        if self._policy == "skip" and len(self.steps) <= self._limit:
            return
        count = f"{len(self.steps)} of the last {self._length} steps were not finite. "
        raise TrainingError(
            "E_NON_FINITE",
            (count if self._policy == "skip" else "") + found.message,
            "Lower the learning rate, or go back with `resume --from-step`.",
            found.details,
        )


@contextmanager
def _watch() -> Iterator[list[str]]:
    """Collect `Class path` of every leaf module whose output is not finite, in order of execution."""
    names: list[str] = []
    paths: dict[int, str] = {}

    def remember(module: nn.Module) -> None:
        if id(module) not in paths:
            for name, child in module.named_modules():
                paths.setdefault(id(child), name)

    def before(module: nn.Module, inputs: Any) -> None:
        remember(module)

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        if not names and not _finite(output):
            names.append(paths.get(id(module)) or type(module).__name__)

    handles = [
        nn.modules.module.register_module_forward_pre_hook(before),
        nn.modules.module.register_module_forward_hook(after),
    ]
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()


def _finite(output: Any) -> bool:
    if isinstance(output, Tensor):
        return bool(torch.isfinite(output).all())
    # Of a Dual only the primal counts: an overflowing tangent is handled by the loss.
    return not isinstance(output, tuple) or not output or _finite(output[0])


def _bad_gradient(parameters: Mapping[str, Tensor]) -> str:
    """The first parameter whose gradient is not finite here; if only the norm overflowed, the one with the largest."""
    gradients = {name: local(value.grad) for name, value in parameters.items() if value.grad is not None}
    for name, gradient in gradients.items():
        if not bool(torch.isfinite(gradient).all()):
            return name
    filled = {name: float(gradient.abs().max()) for name, gradient in gradients.items() if gradient.numel()}
    return max(filled, key=lambda name: filled[name], default="")
