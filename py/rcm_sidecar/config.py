"""The resolved config as TypeScript sends it: a mirror of src/config/blocks/ without defaults.

Every key is there, with the units its name says; unknown keys are errors. Keys are camelCase outside and snake_case
here (`async` is `async_`). A contract test compares this file with schema/config.v1.json by meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from .errors import ConfigError

Count = Annotated[int, Meta(ge=1)]
CountOrZero = Annotated[int, Meta(ge=0)]
Seed = Annotated[int, Meta(ge=0, le=2**53 - 1)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Decay = Annotated[float, Meta(ge=0, lt=1)]
Word = Annotated[str, Meta(min_length=1)]
Metric = Literal["fdTeacher", "fdReal", "precision", "recall", "density", "coverage", "accuracy", "nearestTrain"]
NumberFormat = Literal["fp32", "bf16"]


class Block(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Base of all blocks: immutable, camelCase outside, strict."""


class NetworkOverrides(Block, frozen=True, kw_only=True):
    """Sizes that differ from those of the named network; only the given ones are set."""

    dim: Count | None | UnsetType = UNSET
    num_heads: Count | None | UnsetType = UNSET
    num_layers: Count | None | UnsetType = UNSET
    ffn_dim: Count | None | UnsetType = UNSET
    text_dim: Count | None | UnsetType = UNSET
    text_len: Count | None | UnsetType = UNSET
    freq_dim: Count | None | UnsetType = UNSET
    mlp_ratio: Positive | None | UnsetType = UNSET
    adaln_lora_dim: Count | None | UnsetType = UNSET
    in_dim: Count | None | UnsetType = UNSET
    out_dim: Count | None | UnsetType = UNSET
    patch_size: Annotated[list[Count], Meta(min_length=3, max_length=3)] | None | UnsetType = UNSET
    rope_ratios: Annotated[list[Positive], Meta(min_length=3, max_length=3)] | None | UnsetType = UNSET
    eps: Positive | None | UnsetType = UNSET

    def arguments(self) -> dict[str, Any]:
        """The given overrides as keyword arguments of `networks.build`, in snake_case."""
        given = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: value for name, value in given.items() if value is not UNSET and value is not None}


class Model(Block, frozen=True, kw_only=True):
    """The network: one architecture for student, teacher and critic."""

    name: Literal[
        "wan2.1-tiny",
        "wan2.1-t2v-1.3b",
        "wan2.1-t2v-14b",
        "cosmos-predict2-tiny",
        "cosmos-predict2-t2i-0.6b",
        "cosmos-predict2-t2i-2b",
        "cosmos-predict2-t2i-14b",
    ]
    path: Word | None
    overrides: NetworkOverrides
    frames: Count
    height: Count
    width: Count
    vae: Word | None
    text_encoder: Literal["labels", "umt5-xxl", "t5-11b", "auto"]


class TeacherSampler(Block, frozen=True, kw_only=True):
    """The teacher's own solver."""

    kind: Literal["euler", "unipc"]
    steps: Count
    shift: Positive


class Teacher(Block, frozen=True, kw_only=True):
    """The model that is distilled."""

    weights: Word
    guidance: NotNegative
    branches: Literal["auto", "batched", "sequential"]
    negative: Word
    sampler: TeacherSampler


class AdamW(Block, frozen=True, kw_only=True):
    """The optimizer of one network; `final_share` belongs to the cosine schedule."""

    kind: Literal["adamw"]
    learning_rate: Positive
    schedule: Literal["constant", "linearToZero", "cosine"]
    final_share: Share | None
    warmup_updates: CountOrZero
    betas: tuple[Decay, Decay]
    epsilon: Positive
    weight_decay: NotNegative
    clip_norm: Positive | None


class PowerEma(Block, frozen=True, kw_only=True, tag_field="kind", tag="power"):
    """Power function average of the weights."""

    relative_width: Annotated[float, Meta(gt=0, le=0.28)]


class ConstantEma(Block, frozen=True, kw_only=True, tag_field="kind", tag="constant"):
    """Exponential average of the weights."""

    decay: Decay


Ema = PowerEma | ConstantEma


class LogNormalSigma(Block, frozen=True, kw_only=True, tag_field="kind", tag="logNormalSigma"):
    """Log-normal in sigma = tan(u)."""

    mean: float
    std: Positive


class UniformShifted(Block, frozen=True, kw_only=True, tag_field="kind", tag="uniformShifted"):
    """Uniform in rectified-flow time, then shifted."""

    shift: Positive


class UniformLogisticNormal(Block, frozen=True, kw_only=True, tag_field="kind", tag="uniformLogisticNormal"):
    """Half uniform, half logistic-normal in rectified-flow time."""

    std: Positive


TimeDistribution = LogNormalSigma | UniformShifted | UniformLogisticNormal


class Lora(Block, frozen=True, kw_only=True):
    """Low-rank adapters instead of full training."""

    rank: Count
    alpha: Positive
    targets: Annotated[list[Literal["attention", "ffn"]], Meta(min_length=1)]


class StudentSampler(Block, frozen=True, kw_only=True):
    """TrigFlow times between atan(sigma_max) and 0."""

    sigma_max: Positive
    times: list[Positive]


class Student(Block, frozen=True, kw_only=True):
    """The model that is trained."""

    init: Word
    lora: Lora | None
    optimizer: AdamW
    ema: list[Ema]
    sampler: StudentSampler


class Critic(Block, frozen=True, kw_only=True):
    """The network that follows the student's distribution; rcm and dmd only."""

    init: Word
    optimizer: AdamW


class ScmLoss(Block, frozen=True, kw_only=True):
    """Continuous-time consistency: rcm, scm."""

    weight: NotNegative
    time_distribution: TimeDistribution
    time_derivative: Literal["exact", "semiContinuous", "finiteDifference"]
    finite_difference_step: Positive
    tangent_warmup_updates: CountOrZero
    tangent_norm_offset: Positive | None
    warmup: Literal["scaled", "publicSnapshot", "fastgen"]
    allow_noisy_derivative: bool


class DmdLoss(Block, frozen=True, kw_only=True):
    """Distribution matching: rcm, dmd."""

    weight: NotNegative
    critic_head_start_steps: CountOrZero
    time_distribution: TimeDistribution
    rollout_steps: Count
    rollout_times: Literal["random"] | list[Positive]


class DcmLoss(Block, frozen=True, kw_only=True):
    """Discrete-time consistency: dcm."""

    weight: NotNegative
    grid_steps: Annotated[int, Meta(ge=2)]
    shift: Positive
    teacher_steps: Count


class Losses(Block, frozen=True, kw_only=True):
    """The losses and their weights."""

    scm: ScmLoss
    dmd: DmdLoss
    dcm: DcmLoss


class Data(Block, frozen=True, kw_only=True):
    """Training data."""

    kind: Literal["digits", "latentShards", "images", "videos"]
    path: Word | None
    hold_out: Share
    crop_frames: bool
    shuffle_buffer: Count
    workers: CountOrZero
    max_bad_samples: CountOrZero


class Pretrain(Block, frozen=True, kw_only=True):
    """Training of a small teacher by flow matching."""

    steps: Count
    batch_size: Count
    optimizer: AdamW
    time_distribution: TimeDistribution
    ema: Ema
    label_dropout: Share


class Schedule(Block, frozen=True, kw_only=True):
    """How long, and how much at a time."""

    steps: Count
    student_every: Count
    batch_size: Count
    micro_batch_size: Literal["auto"] | Count


class Parallel(Block, frozen=True, kw_only=True):
    """How GPUs share the work."""

    shard: Count
    context: Count
    context_kind: Literal["auto", "ulysses", "ring"]


class Precision(Block, frozen=True, kw_only=True):
    """Number formats."""

    compute: NumberFormat
    residual: NumberFormat
    time: NumberFormat
    master: NumberFormat
    reduce: NumberFormat
    ema: NumberFormat


class Compute(Block, frozen=True, kw_only=True):
    """Hardware, number formats, memory."""

    device: Literal["auto", "cpu", "cuda"]
    threads: Annotated[int, Meta(ge=1, le=1024)]
    gpus_per_node: Count
    nodes: Count
    launcher: Literal["auto", "local", "torchrun", "slurm"]
    parallel: Parallel
    precision: Precision
    profile: bool
    activation_checkpointing: Literal["none", "selective", "block", "asymmetric"]
    offload: Literal["none", "optimizer", "all"]
    attention: Literal["auto", "hopper", "triton", "eager"]
    compile: bool
    deterministic: bool


class Checkpoints(Block, frozen=True, kw_only=True):
    """What is saved, and when."""

    every_steps: Count | None
    keep_last: Count
    keep_every_steps: Count | None
    async_: bool = msgspec.field(name="async")
    on_stop: bool
    export: list[Literal["official", "diffusers", "comfyui"]]


class Gate(Block, frozen=True, kw_only=True):
    """A bound on one value of the student."""

    metric: Metric
    steps: Count
    at_most: float | None
    at_least: float | None
    relative_to: Literal["teacher", "train", "heldOut"] | None


class Previews(Block, frozen=True, kw_only=True):
    """Sample grids while training."""

    every_steps: Count | None
    prompts: Word
    seeds: list[CountOrZero]


class Evaluation(Block, frozen=True, kw_only=True):
    """How quality is measured."""

    every_steps: Count | None
    network: Literal["student", "ema"]
    steps: list[Count]
    teacher_steps: list[Count]
    prompts: Word | None
    samples: Count
    seed: CountOrZero
    features: Word | None
    metrics: list[Metric]
    benchmarks: list[Literal["geneval", "vbench"]]
    gates: list[Gate]
    previews: Previews


class NonFinite(Block, frozen=True, kw_only=True):
    """What NaN and infinity in losses and gradients do."""

    policy: Literal["skip", "fail"]
    max_share: Share
    window_steps: Count


class Health(Block, frozen=True, kw_only=True):
    """What is watched while training."""

    non_finite: NonFinite
    teacher_check: bool
    reference: Word | None
    checksum_every_steps: Count | None
    on_alarm: Literal["warn", "pause", "fail"]


class Logging(Block, frozen=True, kw_only=True):
    """Metrics and logs."""

    every_steps: Count
    sinks: list[Literal["csv", "tensorboard", "wandb", "mlflow", "prometheus"]]
    level: Literal["trace", "debug", "info", "warn", "error"]


class Notify(Block, frozen=True, kw_only=True):
    """Who is told."""

    webhook: Word | None


class RunConfig(Block, frozen=True, kw_only=True):
    """The whole resolved config of a run."""

    version: Literal[1]
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    seed: Seed
    method: Literal["rcm", "scm", "dmd", "dcm"]
    model: Model
    teacher: Teacher
    student: Student
    critic: Critic
    losses: Losses
    data: Data
    pretrain: Pretrain
    schedule: Schedule
    compute: Compute
    checkpoints: Checkpoints
    evaluation: Evaluation
    health: Health
    logging: Logging
    notify: Notify

    @property
    def teacher_locator(self) -> str:
        """Where the teacher is: `model` means the network in `model.path`."""
        named, folder = self.teacher.weights, self.model.path
        return folder if named == "model" and folder is not None else named


def parse_config(document: Mapping[str, Any]) -> RunConfig:
    """The config from a decoded message.

    Raises:
        ConfigError: E_CONFIG_VALUE with the path of what does not fit.
    """
    try:
        return msgspec.convert(document, RunConfig)
    except msgspec.ValidationError as error:
        raise ConfigError("E_CONFIG_VALUE", str(error)) from error


def load_config(path: Path) -> RunConfig:
    """The config from a resolved JSON file, such as `test/py/fixtures/digits-rcm.json`.

    Raises:
        ConfigError: E_CONFIG_VALUE if the file is no such config.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunConfig)
    except msgspec.DecodeError as error:  # a ValidationError is one, too
        raise ConfigError("E_CONFIG_VALUE", f"{path.name}: {error}") from error


def config_document(config: RunConfig) -> dict[str, Any]:
    """The config as plain JSON values with camelCase keys, the inverse of `parse_config`."""
    # By way of JSON, because `to_builtins` leaves tuples.
    document: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(config))
    return document
