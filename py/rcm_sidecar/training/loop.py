"""The loop around the trainer: metrics, checkpoints, previews, evaluations, requests, end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rcm_sidecar.checkpoints.background import CheckpointWriter
from rcm_sidecar.checkpoints.room import check_room
from rcm_sidecar.checkpoints.training_state import Manifest, StoredState, WrittenCheckpoint, step_folder
from rcm_sidecar.config import RunConfig
from rcm_sidecar.data import BadSample, TrainingData
from rcm_sidecar.data.latent_shards import too_many_bad
from rcm_sidecar.errors import CheckpointError, DataError
from rcm_sidecar.files import write_tensors
from rcm_sidecar.link import Cancel, JobCancelled, JobLink
from rcm_sidecar.protocol import CheckpointBody, EndBody, Export, Progress, TrainingStart
from rcm_sidecar.step_clock import StepClock, StepProfile, region
from rcm_sidecar.training.checksums import ChecksumGuard
from rcm_sidecar.training.determinism import Environment
from rcm_sidecar.training.health import NonFinite, NonFiniteWindow
from rcm_sidecar.training.metric_log import MetricLog
from rcm_sidecar.training.products import Products
from rcm_sidecar.training.setup import Trained
from rcm_sidecar.training.state import capture, restore
from rcm_sidecar.training.trainer import StepResult

_RECENT = 0.05
"""Weight of the newest step in the average that the estimate of the remaining time is made from."""


@dataclass
class TrainingLoop:
    """One training job from its first step (or a checkpoint) to its end.

    Every process runs it, in step: the leading one reports, takes requests and says what to do about them.

    Attributes:
        start: The job.
        config: Its config.
        trained: What is trained.
        products: What is made of it.
        environment: What results depend on, stored in checkpoints.
        config_hash: sha256 of the config, stored in checkpoints.
        link: Where reports go and requests come from.
    """

    start: TrainingStart
    config: RunConfig
    trained: Trained
    products: Products
    environment: Environment
    config_hash: str
    link: JobLink
    _log: MetricLog = field(init=False)
    _window: NonFiniteWindow = field(init=False)
    _writer: CheckpointWriter = field(init=False)
    _checksums: ChecksumGuard = field(init=False)
    _saved: tuple[int, str] | None = field(init=False, default=None)
    _exports: tuple[Export, ...] = field(init=False, default=())
    _latest: dict[str, float] = field(init=False, default_factory=dict)
    _seconds: float = field(init=False, default=0.0)
    _bad_batch: bool = field(init=False, default=False)
    _bad_samples: dict[str, str] = field(init=False, default_factory=dict)
    _dropped: bool = field(init=False, default=False)
    _clock: StepClock | None = field(init=False)
    _profile: StepProfile = field(init=False, default_factory=StepProfile)

    def __post_init__(self) -> None:
        settings = self.config.health.non_finite
        self._log = MetricLog(self.config.logging.every_steps)
        self._window = NonFiniteWindow(settings.policy, settings.max_share, settings.window_steps)
        self._checksums = ChecksumGuard(self.trained, self.config.health.checksum_every_steps)
        self.trained.trainer.wants = self.link.requests.waiting
        self._clock = StepClock(self.trained.team.device) if self.config.compute.profile else None
        self._writer = CheckpointWriter(
            self._root,
            self.config.checkpoints,
            self.environment,
            self.config_hash,
            verify=self.start.smoke,
            team=self.trained.team,
        )

    @property
    def step(self) -> int:
        """Steps done."""
        return self.trained.trainer.step

    def resume(self, state: StoredState, folder: Path) -> None:
        """Go on from a loaded checkpoint in `folder`."""
        restore(self.trained, state)
        self._log.last = {name: int(step) for name, step in state.values["lastPhaseSteps"].items()}
        self._window.steps = [int(step) for step in state.values["nonFiniteSteps"]]
        self._bad_samples = dict(state.values.get("badSamples", {}))
        if folder.parent == self._root:
            self._saved = (state.step, f"checkpoints/{folder.name}")

    def run(self) -> EndBody:
        """Train to the last step, export, evaluate.

        Raises:
            TrainingError: E_NON_FINITE, E_CHECKSUM.
            HostError: E_DISK_FULL, before the first step where one checkpoint does not fit.
            JobCancelled: without a checkpoint, where there are other processes.
        """
        try:
            self._check_room()
            self.link.activity("training", self.step)
            self._checksums.begin(self.step)
            self._skip(self.trained.data.incomplete)
            self._handle_requests()
            self._evaluate_if_due()
            with self._timed():
                while self.step < self.trained.steps:
                    self._one_step()
            self._finish()
        except JobCancelled as cancelled:
            if cancelled.cancel.checkpoint:
                self.checkpoint("stop")
            self._writer.finish()
            if not cancelled.cancel.checkpoint and not self.trained.team.single:
                raise  # perhaps in the middle of a step, which the others have not left: they are ended
            return self._end("stopped")
        except BaseException as error:
            first = self._writer.abandon(error)
            if first is not error:
                raise first from error
            raise
        return self._end("succeeded")

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """With `compute.profile` the time of each step is taken by parts."""
        if self._clock is None:
            yield
        elif self.trained.team.mesh is None:
            with self._clock.running():
                yield
        else:
            from rcm_sidecar.distributed.fsdp import timed_collectives  # slow to import, see placement.py

            with self._clock.running(), timed_collectives(self._clock):
                yield

    def checkpoint(self, reason: str) -> tuple[int, str]:
        """A checkpoint of this step, complete on disk; returns its step and path below the run directory."""
        with region("checkpoint"):
            saved = self._begin_checkpoint(reason)
            self._writer.finish()
        return saved

    def _begin_checkpoint(self, reason: str) -> tuple[int, str]:
        """Have a checkpoint of this step written unless there is one; with `checkpoints.async` training goes on."""
        if self._saved is not None and self._saved[0] == self.step:
            return self._saved
        self.link.activity("checkpointing", self.step)
        started, step, path = time.perf_counter(), self.step, f"checkpoints/{step_folder(self.step)}"

        def announce(written: WrittenCheckpoint) -> None:
            seconds = time.perf_counter() - started
            self.link.checkpoint(
                CheckpointBody(step=step, path=path, bytes=float(written.bytes), seconds=seconds, reason=reason)
            )

        self._writer.write(capture(self.trained, self._state_values()), announce)
        self._saved = (step, path)
        self.link.activity("training", self.step)
        return self._saved

    def _check_room(self) -> None:
        """Before anything is trained, rather than at the first checkpoint."""
        size = capture(self.trained, {}).bytes
        settings, steps = self.config.checkpoints, self.trained.steps
        warning = self.trained.team.first(lambda: check_room(self._root, size, settings, steps))
        if warning is not None:
            self.link.log("warn", warning)

    @property
    def _root(self) -> Path:
        return Path(self.start.run_dir) / "checkpoints"

    def _one_step(self) -> None:
        self._writer.raise_if_failed()
        trainer = self.trained.trainer
        result = trainer.run_step()
        self._skip(result.skipped)
        self._report(result)
        self._report_dropped(result)
        if result.non_finite is not None:
            self._keep_bad_batch(result)
            self._window_add(result.non_finite)
        self._checksums.check_if_due(self.step)
        self._previews_if_due()
        if _is_due(self.step, self.config.checkpoints.every_steps):
            with region("checkpoint"):
                self._begin_checkpoint("schedule")
        if self.step < self.trained.steps:
            self._evaluate_if_due()
        if result.wanted or self.trained.team.single:
            self._handle_requests()

    def _report(self, result: StepResult) -> None:
        values = {**result.values, **self._facts(), "time/step_ms": 1000 * result.seconds}
        if self._clock is not None:
            self._profile.add(result.phase, self._clock.lap())
        if self._log.is_due(result.phase, result.step):
            values |= self._profile.take(result.phase)
            self.link.metric(result.step, result.phase, values)
        self._latest |= {name: value for name, value in result.values.items() if name.endswith("/loss")}
        share = 1.0 if self._seconds == 0 else _RECENT
        self._seconds += share * (result.seconds - self._seconds)
        updates = self.trained.trainer.updates
        self.link.progress(
            Progress(
                step=result.step,
                steps=self.trained.steps,
                phase=result.phase,
                student_updates=updates.get("student", 0),
                critic_updates=updates.get("critic", 0),
                samples_per_second=self.trained.samples / max(self._seconds, 1e-9),
                eta_seconds=self._seconds * (self.trained.steps - result.step),
                values=dict(self._latest),
            )
        )

    def _facts(self) -> dict[str, float]:
        """Metrics that are no losses."""
        facts: dict[str, float] = {}
        if self.config.data.kind != "digits":
            facts["data/bad_samples"] = float(len(self._bad_samples))
        if self.trained.team.device.type == "cuda":
            facts["memory/peak_gb"] = torch.cuda.max_memory_allocated(self.trained.team.device) / 1e9
        return facts

    def _skip(self, samples: tuple[BadSample, ...]) -> None:
        """Name each bad sample once a run; all processes know the same ones.

        Raises:
            DataError: E_DATA_BAD_SAMPLES, on all processes.
        """
        fresh = [bad for bad in samples if bad.name not in self._bad_samples]
        for bad in fresh:
            self._bad_samples[bad.name] = bad.reason
            self.link.log("warn", f"Sample {bad.name} is skipped: {bad.reason}.", step=self.step, sample=bad.name)
        if fresh and len(self._bad_samples) > self.config.data.max_bad_samples:
            raise too_many_bad(len(self._bad_samples), fresh[-1])

    def _report_dropped(self, result: StepResult) -> None:
        """Samples are never left out silently; one alarm an attempt, the number of each step in the log."""
        if not result.dropped:
            return
        message = f"Step {result.step}: the tangent of {result.dropped} samples overflowed; they were left out."
        if not self._dropped:
            self.link.alarm("E_NON_FINITE", message, result.step, {"samples": result.dropped})
            self._dropped = True
        self.link.log("warn", message, step=result.step, samples=result.dropped)

    def _window_add(self, found: NonFinite) -> None:
        self.link.alarm("E_NON_FINITE", found.message, found.step, found.details)
        self._window.add(found)

    def _keep_bad_batch(self, result: StepResult) -> None:
        """The first bad batch of an attempt is kept for a person to look at, by the process that has it."""
        if self._bad_batch:
            return
        self._bad_batch = True
        if result.non_finite is None or result.non_finite.rank != self.trained.team.rank:
            return
        name = f"step-{result.step:08d}-batch.safetensors"
        write_tensors(Path(self.start.run_dir) / "diagnostics" / name, result.inputs)

    def _previews_if_due(self) -> None:
        if _is_due(self.step, self.config.evaluation.previews.every_steps):
            self.link.activity("sampling", self.step)
            with region("sampling"):
                self.products.previews(self.step)
            self.link.activity("training", self.step)

    def _evaluate_if_due(self) -> None:
        """The evaluation of an unfinished run, unless it is there already (a run that was resumed)."""
        step = self.step
        if step == 0 or step >= self.trained.steps or not _is_due(step, self.config.evaluation.every_steps):
            return
        self._evaluate_unless_done()

    def _evaluate_unless_done(self) -> None:
        """Whether it is done says the leading process: the others may see the folder a moment later."""
        if not self.trained.team.tell(self.products.is_evaluated(self.step)):
            self._evaluate()

    def _evaluate(self) -> None:
        if not self.start.plan.rows:
            return
        self.link.activity("evaluating", self.step)
        with region("sampling"):
            self.products.evaluate(self.step)
        self.link.activity("training", self.step)

    def _finish(self) -> None:
        if self.config.checkpoints.on_stop:
            self.checkpoint("end")
        self._writer.finish()
        self.link.activity("checkpointing", self.step)
        self._exports = self.products.export(self.step)
        self.trained.team.alone(self.link.requests.raise_if_cancelled_now)
        self._evaluate_unless_done()

    def _handle_requests(self) -> None:
        """Serve what is asked; the leading process tells the others each thing that all do together.

        Raises:
            JobCancelled: on all processes.
        """
        requests, team = self.link.requests, self.trained.team
        if not team.leads:
            self._follow()
            return
        self._serve_tickets()
        with region("pause"):
            requests.wait_while_paused(self.step, self._serve_tickets)
        cancel = requests.cancelled()
        team.tell("go on" if cancel is None else "stop and save" if cancel.checkpoint else "stop")
        if cancel is not None:
            raise JobCancelled(cancel)

    def _follow(self) -> None:
        while (order := self.trained.team.tell(None)) != "go on":
            match order:
                case "checkpoint":
                    self.checkpoint("request")
                case "sample":
                    with region("sampling"):
                        self.products.sample(None, self.step)
                case _:
                    raise JobCancelled(Cancel(checkpoint=order == "stop and save"))

    def _serve_tickets(self) -> None:
        requests, team = self.link.requests, self.trained.team
        while (ticket := requests.take_checkpoint()) is not None:
            team.tell("checkpoint")
            try:
                step, path = self.checkpoint(ticket.reason or "request")
            except Exception as error:
                ticket.fail(error)
                raise
            ticket.done({"step": step, "path": path})
        while (sample := requests.take_sample()) is not None:
            team.tell("sample")
            self.link.activity("sampling", self.step)
            with region("sampling"):
                self.products.sample(sample, self.step)
            self.link.activity("training", self.step)

    def _state_values(self) -> dict[str, Any]:
        return {
            "lastPhaseSteps": dict(self._log.last),
            "nonFiniteSteps": list(self._window.steps),
            "badSamples": dict(self._bad_samples),
        }

    def _end(self, state: Any) -> EndBody:
        updates = self.trained.trainer.updates
        return EndBody(
            state=state,
            step=self.step,
            student_updates=updates.get("student", 0),
            critic_updates=updates.get("critic", 0),
            checkpoint=None if self._saved is None else self._saved[1],
            exports=self._exports,
        )


def check_drift(manifest: Manifest, here: Environment, allow: bool, link: JobLink) -> None:
    """Refuse a checkpoint of another torch version: the run would go on with other rounding.

    Raises:
        CheckpointError: E_TORCH_DRIFT.
    """
    there = manifest.environment
    if there.torch != here.torch:
        message = f"The checkpoint was written with torch {there.torch}, this is torch {here.torch}."
        if not allow:
            hint = "Use that version, or accept slightly different results with --allow-drift."
            raise CheckpointError("E_TORCH_DRIFT", message, hint, {"checkpoint": there.torch, "here": here.torch})
        link.log("warn", message)
    if there.cpu_capability != here.cpu_capability:
        link.log(
            "warn",
            f"The checkpoint was written with {there.cpu_capability} instructions, this machine uses "
            f"{here.cpu_capability}: the last bits of results may differ.",
        )
    if there.world != here.world:
        link.log(
            "warn",
            f"The checkpoint was written on {_words(there)}, this run is on {_words(here)}: the weights are the same, "
            "the last bits of results may differ.",
        )


def check_data(state: StoredState, data: TrainingData, allow: bool, link: JobLink) -> None:
    """Refuse other training data than the checkpoint was written with: a position means another sample there.

    Raises:
        DataError: E_DATA_CHANGED.
    """
    if state.values.get("data", data.identity) == data.identity:
        return
    message = "The training data have changed since the checkpoint was written: shards were added, removed or replaced."
    if not allow:
        hint = "Put them back as they were, or go on with the new ones: --allow-drift."
        raise DataError("E_DATA_CHANGED", message, hint)
    link.log("warn", message)


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step > 0 and step % every == 0


def _words(environment: Environment) -> str:
    world = environment.world
    return f"replicate {world.replicate} x shard {world.shard} x context {world.context} processes"
