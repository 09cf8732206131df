"""What a training job makes besides weights: previews, samples on request, evaluations, exports."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

import torch

from rcm_sidecar.checkpoints.export import Kind, Product, export, export_adapters
from rcm_sidecar.checkpoints.sources import content_key
from rcm_sidecar.config import RunConfig
from rcm_sidecar.data.digits import load_digits_data
from rcm_sidecar.data.label_conditioner import LabelConditioner
from rcm_sidecar.data.stored_text import StoredText
from rcm_sidecar.distributed.tensors import whole
from rcm_sidecar.errors import ConfigError, SidecarError
from rcm_sidecar.evaluation import comparison_grid, preview_grids, run_evaluation
from rcm_sidecar.evaluation.sampling import SampleSource
from rcm_sidecar.evaluation.timing import time_rows
from rcm_sidecar.link import JobCancelled, JobLink, SampleTicket
from rcm_sidecar.protocol import EvaluationBody, Export, TrainingStart
from rcm_sidecar.sample_job import labels_for, sample_grid
from rcm_sidecar.training.setup import Trained, conditioning
from rcm_sidecar.training.shared_networks import SharedNetworks
from rcm_sidecar.training.shown import Shown, average_in_place

Result = TypeVar("Result")

_NO_PIXELS = "Latents are not decoded during training yet."
_SAMPLE_LATER = "Export the run, then: rcm-bridge sample <run> --prompt TEXT"


class Products:
    """Makes everything from the averaged weights (or the bare ones, `evaluation.network: student`).

    All processes call the methods together: the leading one does the work, the others lend it their parts of the
    networks (`SharedNetworks`).

    Args:
        start: The job.
        config: Its config.
        trained: What is trained.
        link: Where results go.
    """

    def __init__(self, start: TrainingStart, config: RunConfig, trained: Trained, link: JobLink) -> None:
        self._start, self._config, self._trained, self._link = start, config, trained, link
        self._run_dir = Path(start.run_dir)
        self._check = link.requests.raise_if_cancelled_now
        self._exported: int | None = None
        velocities = {"shown": trained.learner.velocity}
        if trained.teacher is not None:
            velocities["teacher"] = trained.teacher
        self._shared = SharedNetworks(trained.team, velocities, dict(trained.learner.network.named_parameters()))
        self._said = False

    @property
    def kind(self) -> Kind:
        """Sampler of what is shown: that of a student, or of a teacher when pretraining."""
        return "teacher" if self._trained.teacher is None else "student"

    def previews(self, step: int) -> None:
        """Draw and send the previews."""
        if not self._shows_pixels:
            return self._say_no_previews()

        def draw(shown: Shown) -> None:
            grids = preview_grids(
                network=shown.velocity,
                sampler=self.kind,
                condition=shown.condition,
                config=self._config,
                plan=self._start.plan,
                step=step,
                check_cancelled=self._check,
            )
            for grid in grids:
                self._link.sample(grid)

        self._show(draw, averaged=True)

    def sample(self, ticket: SampleTicket | None, step: int) -> None:
        """Answer a request for samples; only the leading process has it.

        An error in a network that is sharded ends the run, because it can leave the processes out of step.
        """
        if not self._shows_pixels:
            if ticket is not None:
                ticket.fail(ConfigError("E_CONFIG_NOT_YET", _NO_PIXELS, _SAMPLE_LATER))
            return

        def answer(shown: Shown) -> None:
            assert ticket is not None
            try:
                self._draw(shown, ticket, step)
            except Exception as error:
                ticket.fail(error)
                if self._trained.team.mesh is not None and not isinstance(error, (SidecarError, JobCancelled)):
                    raise
                return
            ticket.done({"step": step, "num": ticket.num})

        self._show(answer, averaged=True)

    def evaluate(self, step: int) -> None:
        """Evaluate the plan's network, send the results and a grid."""
        self._show(lambda shown: self._judge(shown, step), averaged=self._start.plan.network == "ema")

    def is_evaluated(self, step: int) -> bool:
        """Whether Node has written the evaluation of this step."""
        name = f"step-{step:08d}-{self._start.plan.network}.json"
        return (self._run_dir / "evaluation" / name).is_file()

    def export(self, step: int) -> tuple[Export, ...]:
        """Write the export folders the config asks for; a pretrained teacher always gets the official one.

        With LoRA they hold merged weights, and one more folder holds the adapters.
        """
        exports = self._show(lambda shown: self._export_all(shown, step), averaged=True) or ()
        self._exported = step
        return exports

    def _export_all(self, shown: Shown, step: int) -> tuple[Export, ...]:
        layouts = list(self._config.checkpoints.export)
        if self.kind == "teacher" and "official" not in layouts:
            layouts.insert(0, "official")
        exports = [Export(layout=layout, path=self._export(shown, step, layout)) for layout in layouts]
        if self._trained.learner.adapter is not None:
            path = "export/lora"
            export_adapters(self._product(shown, step), self._run_dir / path, self._trained.teacher_key)
            exports.append(Export(layout="lora", path=path))
        return tuple(exports)

    def _export(self, shown: Shown, step: int, layout: str) -> str:
        path = f"export/{layout}"
        export(self._product(shown, step), self._run_dir / path, layout)  # type: ignore[arg-type]
        return path

    def _product(self, shown: Shown, step: int) -> Product:
        learner = self._trained.learner
        return Product(
            kind=self.kind,
            network=learner.network,
            adapter=learner.adapter,
            conditioner=shown.conditioner,
            latent_shape=self._trained.data.latent_shape,
            config=self._config,
            step=step,
            run_id=self._start.run_id,
            whole=self._shared.whole,
        )

    @property
    def _shows_pixels(self) -> bool:
        """Whether samples are images; stored latents would have to be decoded."""
        return self._config.data.kind == "digits"

    def _say_no_previews(self) -> None:
        if not self._said:
            self._link.log("info", f"No previews: {_NO_PIXELS[0].lower()}{_NO_PIXELS[1:]} {_SAMPLE_LATER}")
        self._said = True

    def _draw(self, shown: Shown, ticket: SampleTicket, step: int) -> None:
        assert shown.conditioner is not None  # digits have one
        labels = labels_for(ticket.num, ticket.label, shown.conditioner.num_classes)
        source = SampleSource(
            self._config,
            shown.condition,
            self._trained.data.latent_shape,
            self._trained.learner.network.spec.time_scale,
            self._check,
        )
        if self.kind == "student":
            drawn = source.student(shown.velocity, labels, ticket.steps, ticket.seed)
        else:
            guidance = self._config.teacher.guidance
            drawn = source.teacher(shown.velocity, labels, ticket.steps, guidance, ticket.seed)
        data = load_digits_data()
        self._link.sample(sample_grid(drawn.latents, labels, data.mean, data.std, ticket.steps, step))

    def _judge(self, shown: Shown, step: int) -> None:
        if not self._shows_pixels:
            self._link.evaluation(self._time(shown, step))
            return
        plan, key = self._start.plan, self._teacher_key(step)
        networks = {
            "student": None if shown.teacher is None else shown.velocity,
            "teacher": shown.velocity if shown.teacher is None else shown.teacher,
        }
        body = run_evaluation(
            plan,
            step=step,
            condition=shown.condition,
            data=load_digits_data(),
            config=self._config,
            cache_dir=None if key is None else Path(self._start.cache_dir),
            teacher_key=key or "",
            check_cancelled=self._check,
            **networks,
        )
        self._link.evaluation(body)
        grid = comparison_grid(
            condition=shown.condition,
            config=self._config,
            plan=plan,
            step=step,
            check_cancelled=self._check,
            **networks,
        )
        self._link.sample(grid)

    def _time(self, shown: Shown, step: int) -> EvaluationBody:
        """Calls and seconds of each row, on conditions of the training data."""
        assert shown.teacher is not None  # only distillations have stored latents
        data, time_scale = self._trained.data, self._trained.learner.network.spec.time_scale
        source = SampleSource(self._config, shown.condition, data.latent_shape, time_scale, self._check)
        networks = {"student": shown.velocity, "teacher": shown.teacher}
        drawn = data.batch(0, 1, self._config.seed)
        return time_rows(self._start.plan, step=step, source=source, condition=drawn.condition, networks=networks)

    def _teacher_key(self, step: int) -> str | None:
        """Content hash by which samples of the teacher are kept; None for one in training, unless it was exported now.

        The teacher that a pretraining ends with is found again by those who distil it.
        """
        if self._trained.teacher is not None:
            return self._trained.teacher_key
        is_export = self._exported == step and self._start.plan.network == "ema"
        return content_key(self._run_dir / "export" / "official") if is_export else None

    def _show(self, work: Callable[[Shown], Result], averaged: bool) -> Result | None:
        """Let the leading process work with the current weights; its result, None on other processes."""
        trained, shared = self._trained, self._shared
        with average_in_place(trained.shown) if averaged and trained.shown.emas else nullcontext():
            conditioner = _whole_on_cpu(trained.conditioner)
            shown = Shown(
                velocity=shared.velocity("shown"),
                teacher=None if trained.teacher is None else shared.velocity("teacher"),
                conditioner=conditioner if isinstance(conditioner, LabelConditioner) else None,
                condition=conditioning(conditioner, self._config.teacher.negative),
            )
            return shared.lead(lambda: work(shown))


def _whole_on_cpu(conditioner: LabelConditioner | StoredText) -> LabelConditioner | StoredText:
    if isinstance(conditioner, StoredText):
        return conditioner.to(torch.device("cpu"))
    return LabelConditioner.of(whole(conditioner.table).cpu())
