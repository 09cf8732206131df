"""What a training job makes besides weights: previews, samples on request, evaluations, exports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rcm_sidecar.checkpoints.export import Kind, Product, export, export_adapters
from rcm_sidecar.checkpoints.sources import content_key
from rcm_sidecar.config import RunConfig
from rcm_sidecar.data.digits import load_digits_data
from rcm_sidecar.diffusion.guidance import Network
from rcm_sidecar.evaluation import comparison_grid, preview_grids, run_evaluation
from rcm_sidecar.evaluation.sampling import SampleSource
from rcm_sidecar.link import JobLink, SampleTicket
from rcm_sidecar.protocol import Export, TrainingStart
from rcm_sidecar.sample_job import labels_for, sample_grid
from rcm_sidecar.training.setup import Trained
from rcm_sidecar.training.shown import Shown, from_cpu, load_whole

Result = TypeVar("Result")


class Products:
    """Makes everything from the averaged weights (or the bare ones, `evaluation.network: student`).

    All processes call the methods together: they hand their parts of the weights to the leading one, which does the
    rest while they wait.

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

    @property
    def kind(self) -> Kind:
        """Sampler of what is shown: that of a student, or of a teacher when pretraining."""
        return "teacher" if self._trained.teacher is None else "student"

    def previews(self, step: int) -> None:
        """Draw and send the previews."""

        def draw(shown: Shown) -> None:
            grids = preview_grids(
                network=self._callable(shown.learner.velocity),
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
        """Answer a request for samples; only the leading process has it."""

        def answer(shown: Shown) -> None:
            assert ticket is not None
            try:
                self._draw(shown, ticket, step)
            except Exception as error:
                ticket.fail(error)
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
        return self._show(lambda shown: self._export_all(shown, step), averaged=True) or ()

    def _export_all(self, shown: Shown, step: int) -> tuple[Export, ...]:
        layouts = list(self._config.checkpoints.export)
        if self.kind == "teacher" and "official" not in layouts:
            layouts.insert(0, "official")
        exports = [Export(layout=layout, path=self._export(shown, step, layout)) for layout in layouts]
        if shown.learner.adapter is not None:
            path = "export/lora"
            export_adapters(self._product(shown, step), self._run_dir / path, self._trained.teacher_key)
            exports.append(Export(layout="lora", path=path))
        return tuple(exports)

    def _export(self, shown: Shown, step: int, layout: str) -> str:
        path = f"export/{layout}"
        export(self._product(shown, step), self._run_dir / path, layout)  # type: ignore[arg-type]
        return path

    def _product(self, shown: Shown, step: int) -> Product:
        learner, run_id = shown.learner, self._start.run_id
        return Product(self.kind, learner.network, learner.adapter, shown.conditioner, self._config, step, run_id)

    def _draw(self, shown: Shown, ticket: SampleTicket, step: int) -> None:
        labels = labels_for(ticket.num, ticket.label, shown.conditioner.num_classes)
        velocity = self._callable(shown.learner.velocity)
        source = SampleSource(
            self._config,
            shown.condition,
            self._trained.data.latent_shape,
            shown.learner.network.spec.time_scale,
            self._check,
        )
        if self.kind == "student":
            drawn = source.student(velocity, labels, ticket.steps, ticket.seed)
        else:
            guidance = self._config.teacher.guidance
            drawn = source.teacher(velocity, labels, ticket.steps, guidance, ticket.seed)
        data = load_digits_data()
        self._link.sample(sample_grid(drawn.latents, labels, data.mean, data.std, ticket.steps, step))

    def _judge(self, shown: Shown, step: int) -> None:
        plan = self._start.plan
        velocity = self._callable(shown.learner.velocity)
        networks = {
            "student": None if shown.teacher is None else velocity,
            "teacher": velocity if shown.teacher is None else self._callable(shown.teacher),
        }
        body = run_evaluation(
            plan,
            step=step,
            condition=shown.condition,
            data=load_digits_data(),
            config=self._config,
            cache_dir=Path(self._start.cache_dir),
            teacher_key=self._trained.teacher_key or self._key_of(shown, step),
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

    def _key_of(self, shown: Shown, step: int) -> str:
        """Content hash of the teacher in training, as that of its export."""
        folder = self._run_dir / "export" / "official"
        if not folder.is_dir():
            self._export(shown, step, "official")
        return content_key(folder)

    def _callable(self, network: Network) -> Network:
        return from_cpu(network, self._trained.team.device)

    def _show(self, work: Callable[[Shown], Result], averaged: bool) -> Result | None:
        """Let the leading process work with the current weights while the others wait; its result, None elsewhere."""
        role = self._trained.shown
        shown = self._trained.display
        load_whole(shown, role.emas[0].weights if averaged and role.emas else role.parameters)
        return self._trained.team.alone(lambda: None if shown is None else work(shown))
