"""Wire protocol, version 1: the messages that cross the border, as frozen msgspec structs.

Mirror of `src/protocol/messages.ts` (the authority); `schema/protocol.v1.json` is generated from there and a contract
test compares it with these structs by meaning. Names are camelCase on the wire and snake_case here. No logic, no torch.

Whole numbers on the wire lie in [0, 2**32); larger amounts (bytes) are floats, because JavaScript has one number type.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

PROTOCOL_MIN = 1
PROTOCOL_MAX = 1

FRAME_BYTES = 4 * 2**20
"""Largest frame a tensor is split into, and largest message of the control socket, in bytes."""

Count = Annotated[int, Meta(ge=0, le=2**32 - 1)]
"""A whole number that every msgpack library of both languages writes as an integer."""

Amount = Annotated[float, Meta(ge=0)]
"""A number of bytes or seconds: a float, so that values beyond 2**32 survive."""

ActivityName = Literal["idle", "loading", "compiling", "training", "sampling", "evaluating", "checkpointing"]
NetworkName = Literal["student", "ema"]
SamplerName = Literal["train", "heldOut", "teacher", "student"]
LayoutName = Literal["official", "diffusers", "comfyui"]
FamilyName = Literal["wan2.1", "cosmos-predict2"]
WeightsDtypeName = Literal["bf16", "fp16", "fp32"]
DeviceName = Literal["auto", "cpu", "cuda"]
HubLayoutName = Literal["official", "diffusers"]
DtypeName = Literal["u8", "i8", "i16", "i32", "i64", "f16", "bf16", "f32", "f64", "bool"]


class Body(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Base of everything inside an envelope: frozen, keyword only, camelCase on the wire, unknown fields refused."""


class Empty(Body, frozen=True):
    """A body without fields."""


# --- Envelope -----------------------------------------------------------------------------------------------------


class TensorHeader(Body, frozen=True):
    """One tensor of a message. Its bytes (little-endian, C order) follow in frames `frames[0]..frames[1]`, inclusive.

    Frame 1 is the first after the envelope. A tensor of zero bytes has no frames: `frames` is then `[k, k - 1]`.
    """

    name: str
    dtype: DtypeName
    shape: tuple[Count, ...]
    nbytes: Amount
    frames: tuple[Count, Count]


class Envelope(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The map in the first frame of every message.

    `v` protocol major, `t` message type, `id` request id, `re` the id answered, `run` run id, `seq` gapless number of
    an event, `ts` seconds since the epoch, `b` body, `x` tensors.
    """

    v: Count
    t: str
    ts: float
    b: msgspec.Raw
    id: str | UnsetType = UNSET
    re: str | UnsetType = UNSET
    run: str | UnsetType = UNSET
    seq: Count | UnsetType = UNSET
    x: tuple[TensorHeader, ...] | UnsetType = UNSET


class Endpoints(Body, frozen=True):
    """Addresses Node has bound."""

    ctl: str
    evt: str
    blob: str


class StartLine(Body, frozen=True):
    """The one line of JSON on stdin: one-time token, addresses, the pid of Node, protocol major."""

    token: str
    endpoints: Endpoints
    ppid: Count
    protocol: Count


# --- Control, Python to Node --------------------------------------------------------------------------------------


class Hello(Body, frozen=True):
    """First message, before torch is imported. `protocol` is the range spoken, `schema_hash` sha256 in hex."""

    token: str
    protocol: tuple[Count, Count]
    schema_hash: str
    package: str
    pid: Count
    python: str
    platform: str


class Gpu(Body, frozen=True):
    """One visible GPU."""

    name: str
    memory_bytes: Amount


class Ready(Body, frozen=True):
    """Torch is imported; jobs may be started. `cuda` is its CUDA version or None."""

    torch: str
    cuda: str | None
    cpu_capability: str
    threads: Count
    gpus: tuple[Gpu, ...]
    packages: dict[str, str]


class Ok(Body, frozen=True):
    """Success of the request `re`."""

    value: dict[str, Any]


class Frame(Body, frozen=True):
    """One line of a Python stack; `text` is the source line or the empty string."""

    file: str
    line: Count
    function: str
    text: str


class ErrorLink(Body, frozen=True):
    """One exception of a chain, the outermost first."""

    type: str
    message: str
    frames: tuple[Frame, ...]


class ErrorBody(Body, frozen=True):
    """An error: stable code, chain of exceptions (`__cause__`, then `__context__`), the whole traceback as text."""

    code: str
    message: str
    hint: str | None
    chain: tuple[ErrorLink, ...]
    traceback: str
    step: Count | None
    details: dict[str, Any]


class Heartbeat(Body, frozen=True):
    """Each second from the I/O thread. `step` is the last one the job reported, `queued` events not yet sent."""

    activity: ActivityName
    step: Count
    queued: Count
    dropped: Count
    rss_bytes: Amount


class Bye(Body, frozen=True):
    """Last message; the process then exits with `code`."""

    code: Count


# --- Control, Node to Python --------------------------------------------------------------------------------------


class Limits(Body, frozen=True):
    """What the sidecar must keep to: bytes of a frame, milliseconds between metric messages and heartbeats."""

    frame_bytes: Count
    metric_interval_ms: Count
    heartbeat_interval_ms: Count


class Welcome(Body, frozen=True):
    """Answer to hello: the protocol agreed on and the limits."""

    protocol: Count
    limits: Limits


class PlanRow(Body, frozen=True):
    """One row to evaluate: images of the data set (steps and guidance None) or a sampler."""

    sampler: SamplerName
    steps: Count | None
    guidance: float | None


class EvaluationPlan(Body, frozen=True):
    """What an evaluation computes. `features` is a locator or None, `metrics` are evaluation metric names."""

    rows: tuple[PlanRow, ...]
    samples: Count
    seed: Count
    network: NetworkName
    features: str | None
    metrics: tuple[str, ...]
    neighbours: Count
    bootstrap_resamples: Count
    preview_steps: tuple[Count, ...]


class TrainingStart(Body, frozen=True):
    """Fields of a training job. Paths are absolute; `resume_from` is a checkpoint folder or None."""

    config: dict[str, Any]
    run_id: str
    run_dir: str
    attempt: Count
    resume_from: str | None
    allow_drift: bool
    cache_dir: str
    plan: EvaluationPlan
    smoke: bool


class DistillStart(TrainingStart, frozen=True, tag_field="job", tag="distill"):
    """Distil a teacher into a student."""


class PretrainStart(TrainingStart, frozen=True, tag_field="job", tag="pretrain"):
    """Train a small teacher by flow matching."""


class SampleStart(Body, frozen=True, tag_field="job", tag="sample"):
    """Draw samples from `source`: an export folder, a teacher folder or a weights file beside its sampler.json."""

    source: str
    steps: Count
    num: Count
    seed: Count
    label: Count | None
    teacher: bool
    out_dir: str
    threads: Count | None


class WeightsNetwork(Body, frozen=True):
    """A network by name; `overrides` as in the config."""

    name: str
    overrides: dict[str, Any]


class RenderSampler(Body, frozen=True):
    """A teacher's sampler, as its run's config has it."""

    kind: Literal["euler", "unipc"]
    steps: Count
    shift: float
    guidance: float
    negative: str


class RenderStart(Body, frozen=True, tag_field="job", tag="render"):
    """Draw a picture or video of each prompt and seed from `source`, as its sampler.json says or else as released.

    `encoders` None: beside the weights. `network` None: the one their shapes show. `teacher_sampler` None: as released.
    `steps` and sizes None: the model's own.
    """

    source: str
    encoders: str | None
    network: WeightsNetwork | None
    teacher: bool
    teacher_sampler: RenderSampler | None
    prompts: tuple[str, ...]
    num: Count
    seed: Count
    steps: Count | None
    frames: Count | None
    height: Count | None
    width: Count | None
    device: DeviceName
    out_dir: str
    cache_dir: str


class WeightsStart(Body, frozen=True):
    """Fields of the jobs about weight files. `model` None means the network that the shapes show."""

    source: str
    model: str | None
    overrides: dict[str, Any]


class InspectStart(WeightsStart, frozen=True, tag_field="job", tag="inspect"):
    """Read the headers of weights."""


class VerifyStart(WeightsStart, frozen=True, tag_field="job", tag="verify"):
    """Read all of the weights: complete, finite, of the known hash."""


class ConvertStart(WeightsStart, frozen=True, tag_field="job", tag="convert"):
    """Write weights in another layout. `dtype` None keeps each tensor's own; `check` reads the result back."""

    layout: LayoutName
    out: str
    dtype: WeightsDtypeName | None
    check: bool
    overwrite: bool


class FetchStart(Body, frozen=True, tag_field="job", tag="fetch"):
    """Fetch weights from the hub, or without `download` only say what that takes. `files` empty: chosen by layout."""

    repository: str
    revision: str
    layout: HubLayoutName | None
    files: tuple[str, ...]
    encoders: bool
    download: bool


class SetStart(Body, frozen=True):
    """Fields of the jobs that write a set of training data. This process is number `share` of `shares`.

    `encoders` is the folder with text encoder, tokenizer and VAE, `negative` as `teacher.negative`.
    """

    network: WeightsNetwork
    encoders: str
    negative: str
    frames: Count
    height: Count
    width: Count
    device: DeviceName
    share: Count
    shares: Count
    out_dir: str
    cache_dir: str


class SetSampler(Body, frozen=True):
    """How the teacher of a set is sampled, by Euler's method."""

    steps: Count
    shift: float
    guidance: float
    sigma_max: float


class BuildStart(SetStart, frozen=True, tag_field="job", tag="build"):
    """Write a set of samples of a teacher: sample i has prompt i, counted around, and seed `seed` + i.

    `prompts_file` is a JSON array: many prompts are too long for a message.
    """

    source: str
    sampler: SetSampler
    prompts_file: str
    samples: Count
    seed: Count


class EncodeStart(SetStart, frozen=True, tag_field="job", tag="encode"):
    """Write a set of pictures or videos of `folder`, with their captions, as the file `list` names them."""

    folder: str
    list: str


RunStart = (
    DistillStart
    | PretrainStart
    | SampleStart
    | RenderStart
    | InspectStart
    | VerifyStart
    | ConvertStart
    | FetchStart
    | BuildStart
    | EncodeStart
)


class RunCancel(Body, frozen=True):
    """End the job at the next step, with a checkpoint or without. Node kills the sidecar after `deadline_ms`."""

    checkpoint: bool
    deadline_ms: Count


class RunCheckpoint(Body, frozen=True):
    """Write a checkpoint at the next step; `ok` comes when it is on disk."""

    reason: str


class RunSample(Body, frozen=True):
    """Draw samples with the student as it is; `ok` comes when the blob is sent."""

    steps: Count
    num: Count
    seed: Count
    label: Count | None


class Shutdown(Body, frozen=True):
    """Cancel what runs (without a checkpoint), send what is queued, say bye and exit, within `deadline_ms`."""

    deadline_ms: Count


# --- Events -------------------------------------------------------------------------------------------------------


class Activity(Body, frozen=True):
    """What the sidecar does from now on."""

    activity: ActivityName
    step: Count


class Progress(Body, frozen=True):
    """How far the job is: the only event of which only the newest is kept when Node is slow."""

    step: Count
    steps: Count
    phase: str
    student_updates: Count
    critic_updates: Count
    samples_per_second: float
    eta_seconds: float
    values: dict[str, float]


class MetricItem(Body, frozen=True):
    """Values of one step and phase; `time` in seconds since the epoch."""

    step: Count
    phase: str
    time: float
    values: dict[str, float]


class MetricBatch(Body, frozen=True):
    """Metrics in the order of their steps; none is ever lost."""

    items: tuple[MetricItem, ...]


class CheckpointBody(Body, frozen=True):
    """A checkpoint is complete on disk; `path` is relative to the run directory, with forward slashes."""

    step: Count
    path: str
    bytes: Amount
    seconds: Amount
    reason: str


class MetricValue(Body, frozen=True):
    """An evaluation result with its 95 % bootstrap interval; a value that was refused is None with a `reason`."""

    value: float | None
    low: float | None
    high: float | None
    reason: str | UnsetType = UNSET


class Row(Body, frozen=True):
    """One row of an evaluation. Image rows have steps, guidance, seed and seconds None and calls 0."""

    sampler: SamplerName
    steps: Count | None
    guidance: float | None
    calls: Count
    n: Count
    seed: Count | None
    seconds: Amount | None
    metrics: dict[str, MetricValue]


class Floors(Body, frozen=True):
    """Frechet distances no sampler can be expected to beat; None where there were too few samples."""

    real_real: float | None
    teacher_teacher: float | None


class EvaluationBody(Body, frozen=True):
    """All rows of one evaluated network at one step; `seconds` is the whole evaluation."""

    step: Count
    network: NetworkName
    features: str | None
    feature_dimension: Count | None
    floors: Floors
    rows: tuple[Row, ...]
    seconds: Amount


class WeightsMismatch(Body, frozen=True):
    """The keys that do not fit; those of `misshaped` and `integers` are sentences."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[str, ...]
    integers: tuple[str, ...]
    summary: str
    cause: str


class WeightsInspection(Body, frozen=True):
    """What the headers of weights say; layout, family and network are None for another kind of file."""

    path: str
    files: tuple[str, ...]
    layout: LayoutName | None
    prefix: str
    family: FamilyName | None
    network: WeightsNetwork | None
    dtypes: dict[str, Count]
    tensors: Count
    parameters: Amount
    bytes: Amount
    mismatch: WeightsMismatch | None


class FetchPlanFile(Body, frozen=True):
    """A file to fetch, and whether it is here."""

    name: str
    bytes: Amount
    present: bool


class FetchPlan(Body, frozen=True):
    """What fetching takes; `bytes` of all files, `missing_bytes` to come, `path` the folder that will hold them."""

    repository: str
    revision: str
    commit: str
    license: str | None
    gated: bool
    path: str
    files: tuple[FetchPlanFile, ...]
    bytes: Amount
    missing_bytes: Amount


class FileHash(Body, frozen=True):
    """A file and its sha256 (hex), which is the known one."""

    file: str
    sha256: str


class Fetched(Body, frozen=True):
    """All files of the plan are in the folder; `hashes` of those whose hash the hub lists, all equal to it."""

    path: str
    hashes: tuple[FileHash, ...]
    seconds: Amount


class Verified(Body, frozen=True):
    """Weights are complete and finite."""

    inspection: WeightsInspection
    hashes: tuple[FileHash, ...]
    seconds: Amount


class ForwardCheck(Body, frozen=True):
    """Largest difference of a forward pass of both, or None and the reason why none was run."""

    difference: float | None
    reason: str | None


class ConversionCheck(Body, frozen=True):
    """How many tensors were read back equal, and the forward pass."""

    tensors: Count
    forward: ForwardCheck


class Converted(Body, frozen=True):
    """A conversion is complete on disk; `inspection` is of its source."""

    inspection: WeightsInspection
    path: str
    files: tuple[str, ...]
    bytes: Amount
    checked: ConversionCheck | None
    seconds: Amount


class Rendered(Body, frozen=True):
    """A picture or video is complete on disk, drawn in `seconds` (sampling and decoding)."""

    path: str
    prompt: str
    seed: Count
    steps: Count
    frames: Count
    height: Count
    width: Count
    seconds: Amount


class Alarm(Body, frozen=True):
    """Something a person should look at; the job goes on."""

    code: str
    message: str
    step: Count
    details: dict[str, Any]


class Log(Body, frozen=True):
    """A log record."""

    level: Literal["debug", "info", "warn", "error"]
    message: str
    fields: dict[str, Any]


class StepBody(Body, frozen=True):
    """Body of `paused` and `continued`."""

    step: Count


class Export(Body, frozen=True):
    """An export folder, relative to the run directory."""

    layout: str
    path: str


class EndBody(Body, frozen=True):
    """The job is over. `blobs` is the number of blob messages it has sent; the server fills it in."""

    state: Literal["succeeded", "stopped", "failed"]
    step: Count
    student_updates: Count
    critic_updates: Count
    checkpoint: str | None
    exports: tuple[Export, ...]
    blobs: Count = 0
    error: ErrorBody | None = None


class Undelivered(Body, frozen=True):
    """Node did not read for 30 s: the events `first..last` (by seq) stand in the file `path` (absolute) instead."""

    first: Count
    last: Count
    path: str


# --- Blobs --------------------------------------------------------------------------------------------------------


class SampleBody(Body, frozen=True):
    """A grid of images; its tensor `pixels` is u8 [rows, columns, H, W, 1 or 3]."""

    step: Count
    kind: Literal["preview", "evaluation", "request"]
    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]


# --- Which body belongs to which type -----------------------------------------------------------------------------

CONTROL_TO_NODE: dict[str, Any] = {
    "hello": Hello,
    "ready": Ready,
    "ok": Ok,
    "error": ErrorBody,
    "heartbeat": Heartbeat,
    "bye": Bye,
}

CONTROL_TO_PYTHON: dict[str, Any] = {
    "welcome": Welcome,
    "run.start": RunStart,
    "run.cancel": RunCancel,
    "run.pause": Empty,
    "run.continue": Empty,
    "run.checkpoint": RunCheckpoint,
    "run.sample": RunSample,
    "status": Empty,
    "shutdown": Shutdown,
}

EVENTS: dict[str, Any] = {
    "activity": Activity,
    "progress": Progress,
    "metric": MetricBatch,
    "checkpoint": CheckpointBody,
    "evaluation": EvaluationBody,
    "fetchPlan": FetchPlan,
    "fetched": Fetched,
    "inspected": WeightsInspection,
    "verified": Verified,
    "converted": Converted,
    "rendered": Rendered,
    "alarm": Alarm,
    "log": Log,
    "paused": StepBody,
    "continued": StepBody,
    "undelivered": Undelivered,
    "end": EndBody,
}

BLOBS: dict[str, Any] = {"sample": SampleBody}
