"""What a training job makes besides weights: previews, samples on request, evaluations, exports."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch

from rcm_sidecar.checkpoints.export import Kind, Product, export, export_adapters
from rcm_sidecar.checkpoints.sources import content_key
from rcm_sidecar.config import RunConfig
from rcm_sidecar.data import LabelConditioner
from rcm_sidecar.data.digits import load_digits_data
from rcm_sidecar.evaluation import comparison_grid, preview_grids, run_evaluation
from rcm_sidecar.evaluation.sampling import Conditioning, SampleSource
from rcm_sidecar.link import JobLink, SampleTicket
from rcm_sidecar.protocol import Export, TrainingStart
from rcm_sidecar.sample_job import labels_for, sample_grid
from rcm_sidecar.training.learner import Learner
from rcm_sidecar.training.setup import Trained, conditioning

_CONDITIONER = "conditioner."


@dataclass(frozen=True)
class Shown:
    """What people see: weights of their own, with the label table and the condition made of it."""

    learner: Learner
    conditioner: LabelConditioner
    condition: Conditioning


class Products:
    """Makes everything from the averaged weights (or the bare ones, `evaluation.network: student`).

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
        table = copy.deepcopy(trained.conditioner).requires_grad_(False)
        self._shown = Shown(trained.learner.copy(), table, conditioning(table, config.teacher.negative))

    @property
    def kind(self) -> Kind:
        """Sampler of what is shown: that of a student, or of a teacher when pretraining."""
        return "teacher" if self._trained.teacher is None else "student"

    def previews(self, step: int) -> None:
        """Draw and send the previews."""
        shown = self._show(averaged=True)
        grids = preview_grids(
            network=shown.learner.velocity,
            sampler=self.kind,
            condition=shown.condition,
            config=self._config,
            plan=self._start.plan,
            step=step,
            check_cancelled=self._check,
        )
        for grid in grids:
            self._link.sample(grid)

    def sample(self, ticket: SampleTicket, step: int) -> None:
        """Answer a request for samples."""
        try:
            shown = self._show(averaged=True)
            labels = labels_for(ticket.num, ticket.label, shown.conditioner.num_classes)
            source = SampleSource(
                self._config,
                shown.condition,
                self._trained.data.latent_shape,
                shown.learner.network.spec.time_scale,
                self._check,
            )
            if self.kind == "student":
                drawn = source.student(shown.learner.velocity, labels, ticket.steps, ticket.seed)
            else:
                guidance = self._config.teacher.guidance
                drawn = source.teacher(shown.learner.velocity, labels, ticket.steps, guidance, ticket.seed)
            data = load_digits_data()
            self._link.sample(sample_grid(drawn.latents, labels, data.mean, data.std, ticket.steps, step))
        except Exception as error:
            ticket.fail(error)
            return
        ticket.done({"step": step, "num": ticket.num})

    def evaluate(self, step: int) -> None:
        """Evaluate the plan's network, send the results and a grid."""
        plan, trained = self._start.plan, self._trained
        shown = self._show(averaged=plan.network == "ema")
        is_student = trained.teacher is not None
        networks = {
            "student": shown.learner.velocity if is_student else None,
            "teacher": trained.teacher if is_student else shown.learner.velocity,
        }
        key = trained.teacher_key or self._key_of(shown, step)
        body = run_evaluation(
            plan,
            step=step,
            condition=shown.condition,
            data=load_digits_data(),
            config=self._config,
            cache_dir=Path(self._start.cache_dir),
            teacher_key=key,
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

    def is_evaluated(self, step: int) -> bool:
        """Whether Node has written the evaluation of this step."""
        name = f"step-{step:08d}-{self._start.plan.network}.json"
        return (self._run_dir / "evaluation" / name).is_file()

    def export(self, step: int) -> tuple[Export, ...]:
        """Write the export folders the config asks for; a pretrained teacher always gets the official one.

        With LoRA they hold merged weights, and one more folder holds the adapters.
        """
        layouts = list(self._config.checkpoints.export)
        if self.kind == "teacher" and "official" not in layouts:
            layouts.insert(0, "official")
        exports = [Export(layout=layout, path=self._export(step, layout)) for layout in layouts]
        if self._trained.learner.adapter is not None:
            path = "export/lora"
            export_adapters(self._product(step), self._run_dir / path, self._trained.teacher_key)
            exports.append(Export(layout="lora", path=path))
        return tuple(exports)

    def _export(self, step: int, layout: str) -> str:
        path = f"export/{layout}"
        export(self._product(step), self._run_dir / path, layout)  # type: ignore[arg-type]
        return path

    def _product(self, step: int) -> Product:
        shown = self._show(averaged=True)
        learner, run_id = shown.learner, self._start.run_id
        return Product(self.kind, learner.network, learner.adapter, shown.conditioner, self._config, step, run_id)

    def _key_of(self, shown: Shown, step: int) -> str:
        """Content hash of the teacher in training, as that of its export."""
        folder = self._run_dir / "export" / "official"
        if not folder.is_dir():
            self._export(step, "official")
        return content_key(folder)

    def _show(self, averaged: bool) -> Shown:
        """The shown network with the current weights."""
        role = self._trained.shown
        weights = role.emas[0].weights if averaged and role.emas else role.parameters
        for name, value in weights.items():
            if name.startswith(_CONDITIONER):
                with torch.no_grad():
                    self._shown.conditioner.table.copy_(value)
        self._shown.learner.load({name: value for name, value in weights.items() if not name.startswith(_CONDITIONER)})
        return self._shown
