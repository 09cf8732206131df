"""What each step of a distillation does: the method's phases as closures over the batch (rcm-method section 6).

Its random numbers are those of draws.py, whenever they were drawn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rcm_sidecar.config import RunConfig
from rcm_sidecar.data import Batch, TrainingData
from rcm_sidecar.diffusion.guidance import Branches, Network
from rcm_sidecar.distributed.job_team import ALONE, JobTeam
from rcm_sidecar.dual import Dual, DualOrTensor
from rcm_sidecar.evaluation.sampling import Conditioning
from rcm_sidecar.methods import dcm, dmd, rcm, scm
from rcm_sidecar.methods.loss import Loss
from rcm_sidecar.step_clock import region, timed
from rcm_sidecar.training.draws import DrawnAhead, Draws, Numbers, RolloutNumbers, on_device
from rcm_sidecar.training.trainer import Term, Work

_BUCKETS = range(scm.TIME_BUCKETS)
_SCM_SCALARS = {
    "scm/loss": "loss",
    "scm/g_norm": "g_norm",
    "scm/jvp_norm": "jvp_norm",
    "scm/teacher_gap": "teacher_gap",
    "grad_norm/scm": "grad_norm",
    **{f"scm/teacher_gap_bucket_{index}": f"teacher_gap_bucket_{index}" for index in _BUCKETS},
}
_SCM_COUNTS = {f"scm/teacher_gap_bucket_{index}": f"teacher_gap_count_{index}" for index in _BUCKETS}
_DMD_SCALARS = {"dmd/loss": "loss", "grad_norm/dmd": "grad_norm"}
_DCM_SCALARS = {"dcm/loss": "loss", "dcm/teacher_gap": "teacher_gap", "grad_norm/dcm": "grad_norm"}
_CRITIC_SCALARS = {"critic/loss": "loss"}


def method_schedule(config: RunConfig) -> rcm.MethodSchedule:
    """The settings that decide phases."""
    return rcm.MethodSchedule(
        method=config.method,
        student_every=config.schedule.student_every,
        tangent_warmup_updates=config.losses.scm.tangent_warmup_updates,
        critic_head_start_steps=config.losses.dmd.critic_head_start_steps,
    )


def take(data: TrainingData, step: int, size: int, share: slice, seed: int) -> tuple[Batch, dict[str, float]]:
    """A process's share of the `size` samples of a step; its epoch (from 0) and the wait for it as metrics."""
    started = time.perf_counter()
    with region("data_wait"):
        batch = data.batch(step * size + share.start, share.stop - share.start, seed)
    waited = time.perf_counter() - started
    return batch, {"data/epoch": float(step * size // data.size), "time/data_wait_ms": 1000 * waited}


@dataclass(frozen=True)
class Networks:
    """Velocity networks f(x, t, text) and their time scale; `critic` is None for methods without one."""

    student: Network
    teacher: Network
    critic: Network | None
    time_scale: float

    def timed(self) -> Networks:
        """The same networks; with a profile each call counts to its part of the step."""
        plain, dual = timed("forward", self.student), timed("dual_forward", self.student)

        def student(x: DualOrTensor, t: DualOrTensor, text: Tensor) -> Any:
            return dual(x, t, text) if isinstance(x, Dual) else plain(x, t, text)

        critic = None if self.critic is None else timed("critic", self.critic)
        return Networks(student, timed("teacher", self.teacher), critic, self.time_scale)


@dataclass(frozen=True)
class DistillationPlan:
    """The plan of a distillation: call it with a step and the update counters.

    Attributes:
        config: Method, losses, times.
        networks: What the losses call.
        data: Latents and conditions by position.
        condition: What the data keep of a condition, to text; frozen.
        branches: How the teacher's two guidance passes run.
        team: The processes that share a batch.
        ahead: Draws the next step's numbers while this one is at work.
    """

    config: RunConfig
    networks: Networks
    data: TrainingData
    condition: Conditioning
    branches: Branches = "sequential"
    team: JobTeam = ALONE
    ahead: DrawnAhead = field(default_factory=DrawnAhead)

    def __call__(self, step: int, updates: Mapping[str, int]) -> Work:
        """The work of `step` (from 0)."""
        phase = self._phase(updates)
        size, seed, device = self.config.schedule.batch_size, self.config.seed, self.team.device
        share = self.team.own(size)
        samples = share.stop - share.start
        batch, values = take(self.data, step, size, share, seed)
        latents = on_device(batch.latents, device)
        with torch.no_grad():
            text = self.condition(on_device(batch.condition, device))
        drawn = self.ahead.take(*self._drawing(step, updates))
        numbers = {name: one.to(latents) for name, one in drawn.items()}
        if step + 1 < self.config.schedule.steps:
            self.ahead.begin(*self._drawing(step + 1, {**updates, phase.name: updates[phase.name] + 1}))
        make: dict[str, Callable[[], Term]] = {
            "scm": lambda: self._scm(numbers["scm"], latents, text, phase.warmup_ratio),
            "dcm": lambda: self._dcm(numbers["dcm"], latents, text),
            "dmd": lambda: self._dmd(numbers["dmd"], text),
            "critic": lambda: self._critic(numbers["critic"], text),
        }
        terms = tuple(make[name]() for name in phase.losses)
        return Work(
            phase.name, phase.name, terms, samples, batch.tensors, share.start, values, batch.skipped, batch.ids
        )

    def _phase(self, updates: Mapping[str, int]) -> rcm.Phase:
        return rcm.next_phase(method_schedule(self.config), updates["student"], updates.get("critic", 0))

    def _drawing(
        self, step: int, updates: Mapping[str, int]
    ) -> tuple[tuple[int, str, int], Callable[[], dict[str, Numbers]]]:
        """What tells the numbers of a step from others, and a function that draws them, by loss."""
        phase = self._phase(updates)
        own = updates[phase.name]
        return (step, phase.name, own), partial(self._numbers, step, phase.losses, own)

    def _numbers(self, step: int, losses: Sequence[rcm.LossName], own_updates: int) -> dict[str, Numbers]:
        size = self.config.schedule.batch_size
        draws = Draws(self.config.seed, step, size, self.team.own(size), self.data.latent_shape)
        numbers: dict[str, Numbers] = {name: self._numbers_of(name, draws, own_updates) for name in losses}
        if self.team.device.type == "cuda":
            return {name: one.pinned() for name, one in numbers.items()}
        return numbers

    def _numbers_of(self, name: rcm.LossName, draws: Draws, own_updates: int) -> Numbers:
        settings = self.config.losses
        noise = draws.noise(f"{name}/noise")
        if name == "dcm":
            last = 1 - settings.dcm.teacher_steps / settings.dcm.grid_steps
            return Numbers(noise, last * draws.uniform("dcm/time"))
        if name == "scm":
            return Numbers(noise, draws.times("scm/time", settings.scm.time_distribution))
        times = draws.times(f"{name}/time", settings.dmd.time_distribution)
        return Numbers(noise, times, self._rollout_numbers(name, draws, own_updates))

    def _rollout_numbers(self, name: rcm.LossName, draws: Draws, own_updates: int) -> RolloutNumbers:
        settings = self.config.losses.dmd
        length = rcm.rollout_length(own_updates, settings.rollout_steps)
        start = draws.noise(f"{name}/rollout-start")
        following: Any = settings.rollout_times
        if following == "random":
            streams = [f"{name}/rollout-time-{index}" for index in range(1, length)]
            drawn = [draws.times(stream, settings.time_distribution) for stream in streams]
            following = torch.stack(drawn) if drawn else torch.empty(0, len(start), dtype=torch.float64)
        fresh = tuple(draws.noise(f"{name}/rollout-noise-{index}") for index in range(1, length))
        return RolloutNumbers(start, fresh, rcm.rollout_times(length, len(start), following))

    def _guided(self, text: Tensor) -> dict[str, Any]:
        guidance = self.config.teacher.guidance
        return {
            "text": text,
            "negative": None if guidance == 1 else self.condition.empty(len(text)),
            "guidance": guidance,
            "time_scale": self.networks.time_scale,
            "branches": self.branches,
        }

    def _scm(self, numbers: Numbers, latents: Tensor, text: Tensor, ratio: float) -> Term:
        settings, networks = self.config.losses.scm, self.networks.timed()
        noise, u = numbers.noise, numbers.times

        def loss(chosen: slice) -> Loss:
            return scm.scm_loss(
                networks.student,
                networks.teacher,
                latents[chosen],
                noise[chosen],
                u[chosen],
                warmup_ratio=ratio,
                warmup=settings.warmup,
                derivative=settings.time_derivative,
                difference_step=settings.finite_difference_step,
                norm_offset=settings.tangent_norm_offset,
                **self._guided(text[chosen]),
            ).weighted(settings.weight)

        return Term("scm", u, loss, _SCM_SCALARS, _SCM_COUNTS, dropped="non_finite_tangent")

    def _dcm(self, numbers: Numbers, latents: Tensor, text: Tensor) -> Term:
        settings, networks = self.config.losses.dcm, self.networks.timed()
        noise, q = numbers.noise, numbers.times

        def loss(chosen: slice) -> Loss:
            return dcm.dcm_loss(
                networks.student,
                networks.teacher,
                latents[chosen],
                noise[chosen],
                q[chosen],
                steps=settings.grid_steps,
                skip=settings.teacher_steps,
                shift=settings.shift,
                **self._guided(text[chosen]),
            ).weighted(settings.weight)

        times = dcm.grid_times(q, settings.grid_steps, settings.teacher_steps, settings.shift)[0]
        return Term("dcm", times, loss, _DCM_SCALARS)

    def _dmd(self, numbers: Numbers, text: Tensor) -> Term:
        settings, critic, teacher = self.config.losses.dmd, self._the_critic(), self.networks.timed().teacher
        rollout = self._rollout(numbers, text)
        noise, u = numbers.noise, numbers.times

        def loss(chosen: slice) -> Loss:
            return dmd.dmd_loss(
                rollout(chosen), noise[chosen], u[chosen], critic=critic, teacher=teacher, **self._guided(text[chosen])
            ).weighted(settings.weight)

        return Term("dmd", u, loss, _DMD_SCALARS)

    def _critic(self, numbers: Numbers, text: Tensor) -> Term:
        critic, time_scale = self._the_critic(), self.networks.time_scale
        rollout = self._rollout(numbers, text)
        noise, u = numbers.noise, numbers.times

        def loss(chosen: slice) -> Loss:
            with torch.no_grad():
                generated = rollout(chosen)
            return dmd.critic_loss(
                generated, noise[chosen], u[chosen], critic=critic, text=text[chosen], time_scale=time_scale
            )

        return Term("critic", u, loss, _CRITIC_SCALARS)

    def _rollout(self, numbers: Numbers, text: Tensor) -> Callable[[slice], Tensor]:
        """The student's own samples of some of the batch; the last call carries gradient if gradients are on."""
        drawn = numbers.rollout
        assert drawn is not None  # `_numbers_of` draws it for every loss that comes here
        student = timed("rollout", self.networks.student)

        def run(chosen: slice) -> Tensor:
            return dmd.rollout(
                student,
                drawn.start[chosen],
                drawn.times[:, chosen],
                torch.stack([noise[chosen] for noise in drawn.fresh]) if drawn.fresh else None,
                text=text[chosen],
                time_scale=self.networks.time_scale,
            )

        return run

    def _the_critic(self) -> Network:
        critic = self.networks.timed().critic
        assert critic is not None  # the schedule has critic phases only for methods that have one
        return critic
