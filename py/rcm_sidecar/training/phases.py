"""What each step of a distillation does: the method's phases as closures over the batch (rcm-method section 6).

All random numbers come from (seed, step, stream) and are drawn on the CPU for the whole batch, of which a process takes
its samples: neither an interruption nor the size of micro-batches, the number of processes or the device changes them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rcm_sidecar.config import LogNormalSigma, RunConfig, TimeDistribution, UniformLogisticNormal, UniformShifted
from rcm_sidecar.data import Batch, TrainingData
from rcm_sidecar.diffusion.guidance import Branches, Network
from rcm_sidecar.diffusion.time_distributions import draw
from rcm_sidecar.distributed.job_team import ALONE, JobTeam
from rcm_sidecar.dual import Dual, DualOrTensor
from rcm_sidecar.evaluation.sampling import Conditioning
from rcm_sidecar.methods import dcm, dmd, rcm, scm
from rcm_sidecar.methods.loss import Loss
from rcm_sidecar.step_clock import region, timed
from rcm_sidecar.training.randomness import generator, normal
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


def draw_times(distribution: TimeDistribution, count: int, source: torch.Generator) -> Tensor:
    """TrigFlow times [count], float64, of a config's distribution."""
    match distribution:
        case LogNormalSigma(mean=mean, std=std):
            return draw("logNormalSigma", count, generator=source, mean=mean, std=std)
        case UniformShifted(shift=shift):
            return draw("uniformShifted", count, generator=source, shift=shift)
        case UniformLogisticNormal(std=std):
            return draw("uniformLogisticNormal", count, generator=source, std=std)


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
    """

    config: RunConfig
    networks: Networks
    data: TrainingData
    condition: Conditioning
    branches: Branches = "sequential"
    team: JobTeam = ALONE

    def __call__(self, step: int, updates: Mapping[str, int]) -> Work:
        """The work of `step` (from 0)."""
        student, critic = updates["student"], updates.get("critic", 0)
        phase = rcm.next_phase(method_schedule(self.config), student, critic)
        size, seed = self.config.schedule.batch_size, self.config.seed
        share = self.team.own(size)
        samples = share.stop - share.start
        batch, values = take(self.data, step, size, share, seed)
        latents = batch.latents.to(self.team.device)
        with torch.no_grad():
            text = self.condition(batch.condition.to(self.team.device))
        draws = Draws(seed, step, size, share, latents)
        own = updates[phase.name]
        make: dict[str, Callable[[], Term]] = {
            "scm": lambda: self._scm(draws, latents, text, phase.warmup_ratio),
            "dcm": lambda: self._dcm(draws, latents, text),
            "dmd": lambda: self._dmd(draws, text, own),
            "critic": lambda: self._critic(draws, text, own),
        }
        terms = tuple(make[name]() for name in phase.losses)
        return Work(
            phase.name, phase.name, terms, samples, batch.tensors, share.start, values, batch.skipped, batch.ids
        )

    def _guided(self, text: Tensor) -> dict[str, Any]:
        guidance = self.config.teacher.guidance
        return {
            "text": text,
            "negative": None if guidance == 1 else self.condition.empty(len(text)),
            "guidance": guidance,
            "time_scale": self.networks.time_scale,
            "branches": self.branches,
        }

    def _scm(self, draws: Draws, latents: Tensor, text: Tensor, ratio: float) -> Term:
        settings, networks = self.config.losses.scm, self.networks.timed()
        noise = draws.noise("scm/noise")
        u = draws.times("scm/time", settings.time_distribution)

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

    def _dcm(self, draws: Draws, latents: Tensor, text: Tensor) -> Term:
        settings, networks = self.config.losses.dcm, self.networks.timed()
        noise = draws.noise("dcm/noise")
        q = draws.uniform("dcm/time") * (1 - settings.teacher_steps / settings.grid_steps)

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

    def _dmd(self, draws: Draws, text: Tensor, own_updates: int) -> Term:
        settings, critic, teacher = self.config.losses.dmd, self._the_critic(), self.networks.timed().teacher
        rollout = self._rollout(draws, "dmd", text, own_updates)
        noise = draws.noise("dmd/noise")
        u = draws.times("dmd/time", settings.time_distribution)

        def loss(chosen: slice) -> Loss:
            return dmd.dmd_loss(
                rollout(chosen), noise[chosen], u[chosen], critic=critic, teacher=teacher, **self._guided(text[chosen])
            ).weighted(settings.weight)

        return Term("dmd", u, loss, _DMD_SCALARS)

    def _critic(self, draws: Draws, text: Tensor, own_updates: int) -> Term:
        critic, time_scale = self._the_critic(), self.networks.time_scale
        rollout = self._rollout(draws, "critic", text, own_updates)
        noise = draws.noise("critic/noise")
        u = draws.times("critic/time", self.config.losses.dmd.time_distribution)

        def loss(chosen: slice) -> Loss:
            with torch.no_grad():
                generated = rollout(chosen)
            return dmd.critic_loss(
                generated, noise[chosen], u[chosen], critic=critic, text=text[chosen], time_scale=time_scale
            )

        return Term("critic", u, loss, _CRITIC_SCALARS)

    def _rollout(self, draws: Draws, stream: str, text: Tensor, own_updates: int) -> Callable[[slice], Tensor]:
        """The student's own samples of some of the batch; the last call carries gradient if gradients are on."""
        settings = self.config.losses.dmd
        length = rcm.rollout_length(own_updates, settings.rollout_steps)
        start = draws.noise(f"{stream}/rollout-start")
        fresh = [draws.noise(f"{stream}/rollout-noise-{index}") for index in range(1, length)]
        following: Any = settings.rollout_times
        if following == "random":
            drawn = [
                draws.times(f"{stream}/rollout-time-{index}", settings.time_distribution) for index in range(1, length)
            ]
            following = torch.stack(drawn) if drawn else torch.empty(0, len(text), dtype=torch.float64)
        times = rcm.rollout_times(length, len(text), following)
        student = timed("rollout", self.networks.student)

        def run(chosen: slice) -> Tensor:
            return dmd.rollout(
                student,
                start[chosen],
                times[:, chosen],
                torch.stack([noise[chosen] for noise in fresh]) if fresh else None,
                text=text[chosen],
                time_scale=self.networks.time_scale,
            )

        return run

    def _the_critic(self) -> Network:
        critic = self.networks.timed().critic
        assert critic is not None  # the schedule has critic phases only for methods that have one
        return critic


@dataclass(frozen=True)
class Draws:
    """Random numbers of one step for a process's samples.

    Attributes:
        seed: Of the run.
        step: Counted from 0.
        size: Samples of the whole batch, for which the numbers are drawn.
        share: Those of this process.
        like: Its latents [B, ...], which give shape, dtype and device.
    """

    seed: int
    step: int
    size: int
    share: slice
    like: Tensor

    def noise(self, stream: str) -> Tensor:
        """Standard normal, as the latents."""
        return normal(self.seed, self.step, stream, (self.size, *self.like.shape[1:]))[self.share].to(self.like)

    def times(self, stream: str, distribution: TimeDistribution) -> Tensor:
        """TrigFlow times [B], float64."""
        return self._own(draw_times(distribution, self.size, generator(self.seed, self.step, stream)))

    def uniform(self, stream: str) -> Tensor:
        """Numbers in [0, 1), [B], float64."""
        source = generator(self.seed, self.step, stream)
        return self._own(torch.rand(self.size, generator=source, dtype=torch.float64))

    def _own(self, drawn: Tensor) -> Tensor:
        return drawn[self.share].to(self.like.device)
