"""Builds what a training job trains: networks, optimizers, averages, plans; checks the teacher first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rcm_sidecar.checkpoints.sources import build_frozen, content_key, folder_of, load_table, locate
from rcm_sidecar.config import AdamW as AdamWSettings
from rcm_sidecar.config import ConstantEma, PowerEma, RunConfig
from rcm_sidecar.config import Ema as EmaSettings
from rcm_sidecar.data import Batch, LabelConditioner, TrainingData, open_training_data
from rcm_sidecar.data.label_conditioner import ROWS_PER_LABEL
from rcm_sidecar.data.stored_text import StoredText, stored_text
from rcm_sidecar.diffusion.guidance import Branches
from rcm_sidecar.diffusion.guidance import Network as Velocity
from rcm_sidecar.distributed.job_team import ALONE, JobTeam
from rcm_sidecar.errors import ConfigError, DataError
from rcm_sidecar.evaluation.sampling import Conditioning
from rcm_sidecar.methods.rcm import MethodSchedule, updates_after
from rcm_sidecar.networks import Network, build
from rcm_sidecar.networks.inputs import Role as AdapterRole
from rcm_sidecar.training.branches import auto_branches, tokens_of_a_pass
from rcm_sidecar.training.draws import DrawnAhead
from rcm_sidecar.training.ema import DecayRule, Ema, constant_decay, power_decay
from rcm_sidecar.training.learner import Learner, start_networks, starts
from rcm_sidecar.training.optimizer import AdamW
from rcm_sidecar.training.phases import DistillationPlan, Networks, method_schedule
from rcm_sidecar.training.placement import announcer, place
from rcm_sidecar.training.pretrain import PretrainingPlan
from rcm_sidecar.training.randomness import generator
from rcm_sidecar.training.schedule import learning_rate
from rcm_sidecar.training.shown import CONDITIONER
from rcm_sidecar.training.teacher_check import check_guidance, check_roles_equal
from rcm_sidecar.training.trainer import Role, Trainer

NUM_CLASSES = 10


@dataclass(frozen=True)
class Trained:
    """A training job ready to run.

    Attributes:
        trainer: With all roles.
        steps: Total number of steps.
        samples: Samples of a step, those of all processes.
        shown: The role that is evaluated and exported: student, or teacher when pretraining.
        learner: Its network.
        conditioner: Its label table (learning when pretraining, else frozen), or the texts of the data.
        condition: What the data keep of a condition, to text, and the negative condition.
        teacher: The frozen teacher, None when pretraining. With LoRA it is the base that the other roles share.
        teacher_key: Content hash of teacher and label table; "" when pretraining.
        branches: How the teacher's two guidance passes run; None when pretraining.
        data: Training data.
        team: The processes that train together.
    """

    trainer: Trainer
    steps: int
    samples: int
    shown: Role
    learner: Learner
    conditioner: LabelConditioner | StoredText
    condition: Conditioning
    teacher: Network | None
    teacher_key: str
    branches: Branches | None
    data: TrainingData
    team: JobTeam


@dataclass(frozen=True)
class ZeroNegative:
    """A conditioning whose negative condition is zeros (`teacher.negative: zeros`)."""

    table: LabelConditioner

    def __call__(self, labels: Tensor) -> Tensor:
        """Text of labels."""
        text: Tensor = self.table(labels)
        return text

    def empty(self, batch: int) -> Tensor:
        """Zeros [batch, L, D]."""
        return torch.zeros_like(self.table.empty(batch))


def conditioning(source: LabelConditioner | StoredText, negative: str) -> Conditioning:
    """The condition of a config's `teacher.negative`; stored text has its negative.

    Raises:
        ConfigError: E_CONFIG_NOT_YET.
    """
    if isinstance(source, StoredText):
        return source
    if negative == "empty":
        return source
    if negative == "zeros":
        return ZeroNegative(source)
    raise ConfigError("E_CONFIG_NOT_YET", f"teacher.negative {negative!r} is not there yet.", "Use empty or zeros.")


def set_up_distillation(
    config: RunConfig, check: bool, team: JobTeam = ALONE, cache_dir: Path | None = None
) -> Trained:
    """Load the teacher, start student and critic from it (or from given weights), share them among the processes.

    Args:
        config: Of the run.
        check: Look at the teacher first (`health.teacherCheck`).
        team: The processes.
        cache_dir: Keeps the index of shards between runs.

    Raises:
        WeightsError: weights that do not fit, or E_TEACHER_CHECK.
        DataError: the training data are missing, damaged or of another model.
        ConfigError: E_CONFIG_VALUE, a batch or heads that do not divide.
    """
    path = locate(config.teacher_locator)
    data = _open_data(config, cache_dir, team)
    stored = None if config.data.kind == "digits" else stored_text(config)
    teacher = build_frozen(config.model)
    schedule = method_schedule(config)
    learns: tuple[AdapterRole, ...] = ("student", "critic") if schedule.has_critic else ("student",)
    learners = start_networks(config, teacher, path, learns, team)
    conditioner = (stored or load_table(folder_of(path), teacher)).to(team.device)
    condition = conditioning(conditioner, config.teacher.negative)
    velocities = {name: learner.velocity for name, learner in learners.items()}
    if check:
        _check_teacher(config, teacher, velocities, data, condition, team)
    roles = _roles(config, schedule, learners, team)
    called = Networks(velocities["student"], teacher, velocities.get("critic"), teacher.spec.time_scale)
    samples = config.schedule.batch_size
    size = micro_batch(config, samples, team)
    branches = config.teacher.branches
    if branches == "auto":
        tokens = tokens_of_a_pass(data.latent_shape, teacher.spec.patch, size, team.sizes.context)
        branches = auto_branches(team.device, tokens)
    return Trained(
        trainer=Trainer(
            roles,
            DistillationPlan(config, called, data, condition, branches, team, DrawnAhead(team.device.type == "cuda")),
            micro_batch=size,
            team=team,
        ),
        steps=config.schedule.steps,
        samples=samples,
        shown=roles["student"],
        learner=learners["student"],
        conditioner=conditioner,
        condition=condition,
        teacher=teacher,
        teacher_key=team.first(lambda: content_key(path)),
        branches=branches,
        data=data,
        team=team,
    )


def set_up_pretraining(config: RunConfig, team: JobTeam = ALONE) -> Trained:
    """A fresh teacher and its label table, initialised from the run's seed.

    Raises:
        ConfigError: E_CONFIG_VALUE, a batch or heads that do not divide.
    """
    source = generator(config.seed, 0, "pretrain/weights")
    network = build(config.model.name, device="meta", **config.model.overrides.arguments())
    table = LabelConditioner(
        NUM_CLASSES, ROWS_PER_LABEL, network.spec.text_dim, generator=generator(config.seed, 0, "pretrain/labels")
    )
    if config.data.kind != "digits":
        message = f"pretrain learns a label table, and data.kind {config.data.kind} has no labels."
        raise ConfigError("E_CONFIG_NOT_YET", message, "Use data.kind: digits.")
    data = open_training_data(config)
    settings = config.pretrain
    learner = Learner(network)
    place([network], config.compute, team, table.to(team.device))
    network.initialise(source)
    labels = {f"{CONDITIONER}{name}": value for name, value in table.named_parameters()}
    parameters = {**learner.parameters, **labels}
    offload = offloads(config, team)
    announce = announcer((network, table), team)
    role = make_role("teacher", parameters, settings.optimizer, settings.steps, announce, offload)
    role.emas = [Ema(parameters, _decay(settings.ema), offload)]
    plan = PretrainingPlan(config, network, table, data, network.spec.time_scale, team)
    return Trained(
        trainer=Trainer({"teacher": role}, plan, micro_batch=micro_batch(config, settings.batch_size, team), team=team),
        steps=settings.steps,
        samples=settings.batch_size,
        shown=role,
        learner=learner,
        conditioner=table,
        condition=conditioning(table, config.teacher.negative),
        teacher=None,
        teacher_key="",
        branches=None,
        data=data,
        team=team,
    )


def _roles(
    config: RunConfig, schedule: MethodSchedule, learners: Mapping[str, Learner], team: JobTeam
) -> dict[str, Role]:
    student_total, critic_total = updates_after(schedule, config.schedule.steps)
    plans = {"student": (config.student.optimizer, student_total), "critic": (config.critic.optimizer, critic_total)}
    offload = offloads(config, team)
    roles = {
        name: make_role(name, learner.parameters, *plans[name], announcer((learner.network,), team), offload)
        for name, learner in learners.items()
    }
    averaged = roles["student"].parameters
    roles["student"].emas = [Ema(averaged, _decay(ema), offload) for ema in config.student.ema]
    return roles


def _open_data(config: RunConfig, cache_dir: Path | None, team: JobTeam) -> TrainingData:
    """The training data, opened by rank 0 first: the others then find its index in the cache.

    Raises:
        DataError: on all processes; also E_DATA_CHANGED when they do not see the same samples.
    """
    opened: list[TrainingData] = []

    def open_once() -> str:
        if not opened:
            opened.append(open_training_data(config, cache_dir))
        return opened[0].identity

    team.first(open_once)
    identities = team.together(open_once)
    other = next((rank for rank, identity in enumerate(identities) if identity != identities[0]), None)
    if other is not None:
        message = f"Ranks 0 and {other} see other samples in {config.data.path}."
        raise DataError("E_DATA_CHANGED", message, "Give all nodes the same shards.", {"rank": other})
    return opened[0]


def _check_teacher(
    config: RunConfig,
    teacher: Network,
    velocities: Mapping[str, Velocity],
    data: TrainingData,
    condition: Conditioning,
    team: JobTeam,
) -> None:
    """All processes look at the same samples, as a sharded network needs; no more than a pass of training has."""
    count = min(16, data.size, micro_batch(config, config.schedule.batch_size, team))
    drawn = data.batch(0, count, config.seed)
    batch = Batch(drawn.latents.to(team.device), drawn.condition.to(team.device))
    check_guidance(teacher, batch, condition, config.teacher.guidance, teacher.spec.time_scale)
    copies = {name: velocity for name, velocity in velocities.items() if starts(config)[name] == "teacher"}
    check_roles_equal(teacher, copies, batch, condition, teacher.spec.time_scale)


def micro_batch(config: RunConfig, samples: int, team: JobTeam = ALONE) -> int:
    """Samples of one forward of this process; `auto` is its whole share of the batch.

    Raises:
        ConfigError: E_CONFIG_VALUE when it does not divide the share.
    """
    own = team.own(samples)
    share: int = own.stop - own.start
    size = config.schedule.micro_batch_size
    if size == "auto":
        return share
    if share % size:
        message = f"schedule.microBatchSize {size} does not divide the {share} samples of a process."
        raise ConfigError("E_CONFIG_VALUE", message, "Use a divisor, or auto.")
    return size


def offloads(config: RunConfig, team: JobTeam) -> bool:
    """Whether moments and averages rest in main memory; on a CPU they are there anyway."""
    return config.compute.offload == "optimizer" and team.device.type != "cpu"


def make_role(
    name: str,
    parameters: Mapping[str, Tensor],
    settings: AdamWSettings,
    total_updates: int,
    announce: Callable[[bool], None] = lambda last: None,
    offload: bool = False,
) -> Role:
    """A role with the optimizer and learning rates of its config block."""
    optimizer = AdamW(
        parameters,
        betas=settings.betas,
        epsilon=settings.epsilon,
        weight_decay=settings.weight_decay,
        offload=offload,
    )

    def rate(update: int) -> float:
        return learning_rate(
            update,
            base=settings.learning_rate,
            schedule=settings.schedule,
            warmup_updates=settings.warmup_updates,
            total_updates=total_updates,
            final_share=settings.final_share,
        )

    return Role(name, parameters, optimizer, rate, settings.clip_norm, announce=announce)


def _decay(settings: EmaSettings) -> DecayRule:
    match settings:
        case PowerEma(relative_width=width):
            return power_decay(width)
        case ConstantEma(decay=decay):
            return constant_decay(decay)
