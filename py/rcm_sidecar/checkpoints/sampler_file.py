"""sampler.json: what sampling from a folder of weights needs to know. `checkpoints.export` writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from rcm_sidecar.config import Count, NetworkOverrides, NotNegative, Positive, TeacherSampler
from rcm_sidecar.errors import WeightsError

SAMPLER_FILE = "sampler.json"

Negative: TypeAlias = Annotated[str, Meta(pattern="^(empty|zeros|default|text:.*)$")]
"""The negative condition of guidance; `default` is the model's own prompt."""


class Part(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Base of all parts: immutable, camelCase outside. Unknown keys are for people and later versions."""


class NetworkPart(Part, frozen=True, kw_only=True):
    """Which network the weights belong to."""

    name: str
    overrides: NetworkOverrides


class LatentPart(Part, frozen=True, kw_only=True):
    """Shape [C,T,H,W] of a latent; mean and standard deviation of the pixels, as shares of white."""

    shape: tuple[Count, Count, Count, Count]
    mean: float
    std: Positive


class StudentPart(Part, frozen=True, kw_only=True):
    """Settings of the few-step sampler."""

    sigma_max: Positive
    times: tuple[float, ...]


class TeacherPart(TeacherSampler, frozen=True, kw_only=True):
    """Settings of the solver with guidance; folders without `negative` were made with the empty condition."""

    guidance: NotNegative
    negative: Negative = "empty"


class WeightsFolder(Part, frozen=True, kw_only=True, tag_field="kind"):
    """What both kinds say; `encoders` names the model whose text encoder and VAE go with the weights."""

    schema: Literal[1]
    network: NetworkPart
    weights: str
    conditioner: str | None
    encoders: str | None = None
    latent: LatentPart
    time_scale: Positive


class StudentFolder(WeightsFolder, frozen=True, kw_only=True, tag="student"):
    """A folder of a student."""

    sampler: StudentPart


class TeacherFolder(WeightsFolder, frozen=True, kw_only=True, tag="teacher"):
    """A folder of a teacher."""

    sampler: TeacherPart


def read_sampler_file(folder: Path) -> StudentFolder | TeacherFolder:
    """The sampler.json of a folder, every value checked.

    Raises:
        WeightsError: E_WEIGHTS_SAMPLER.
    """
    try:
        document = msgspec.json.decode((folder / SAMPLER_FILE).read_bytes(), type=StudentFolder | TeacherFolder)
    except FileNotFoundError as error:
        hint = "Use an export folder of a run."
        raise WeightsError("E_WEIGHTS_SAMPLER", f"There is no {SAMPLER_FILE} in {folder}.", hint) from error
    except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
        raise bad_sampler_file(folder, str(error)) from error
    for name in (document.weights, document.conditioner):
        if name is not None and (Path(name).name != name or name == ".."):
            raise bad_sampler_file(folder, "it names a file outside its folder")
    return document


def bad_sampler_file(folder: Path, why: str) -> WeightsError:
    """The error of a sampler.json that is there and of no use."""
    hint = "Export the run again, or use another one."
    return WeightsError("E_WEIGHTS_SAMPLER", f"{folder / SAMPLER_FILE} cannot be used: {why}.", hint)
