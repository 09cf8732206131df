"""How weights are sampled from prompts: from their sampler.json, from the config of their run, or as released."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from rcm_sidecar.checkpoints.guess import guess_network
from rcm_sidecar.checkpoints.sampler_file import (
    SAMPLER_FILE,
    StudentFolder,
    StudentPart,
    TeacherPart,
    read_sampler_file,
)
from rcm_sidecar.checkpoints.sources import folder_of
from rcm_sidecar.checkpoints.weights_file import check_fit, companion_config, open_network
from rcm_sidecar.config import NetworkOverrides
from rcm_sidecar.encoders.model_folder import FamilyName
from rcm_sidecar.errors import ConfigError, WeightsError
from rcm_sidecar.networks import build
from rcm_sidecar.networks.spec import NetworkSpec
from rcm_sidecar.protocol import RenderSampler, RenderStart
from rcm_sidecar.sampling.sizes import PixelSize, pixel_size

_SIGMA_MAX = 80.0  # rcm-method section 9
_GUIDANCE = 5.0  # of both families, in the form v_neg + g (v_pos - v_neg)
# Solver steps of the published samplers: wan2.1.md section 9.7, cosmos-predict2.md section 7.1.
_TEACHER_STEPS: Mapping[FamilyName, int] = {"wan2.1": 50, "cosmos-predict2": 35}
_RELEASED_SIZES: Mapping[FamilyName, PixelSize] = {
    "wan2.1": PixelSize(81, 480, 832),
    "cosmos-predict2": PixelSize(1, 768, 1360),
}


@dataclass(frozen=True)
class Recipe:
    """What drawing needs to know of weights.

    Attributes:
        spec: Of the network.
        overrides: What differs from the named network, as arguments of `networks.build`.
        weights: File or folder to load, known to fit.
        sampler: Of a student or of a teacher.
        size: In pixels, where nothing else is asked for.
        encoders: Folder of the text encoder and VAE, if it is not the one of the weights; a locator.
    """

    spec: NetworkSpec
    overrides: Mapping[str, Any]
    weights: Path
    sampler: StudentPart | TeacherPart
    size: PixelSize
    encoders: str | None


def find_recipe(start: RenderStart) -> Recipe:
    """How to sample what `start` names; only headers are read.

    Raises:
        WeightsError: E_WEIGHTS_NOT_FOUND, E_WEIGHTS_SAMPLER, E_WEIGHTS_MISMATCH or what opening finds.
        ConfigError: E_USAGE, the model takes labels; E_NETWORK_*.
    """
    source = Path(start.source)
    if not source.exists():
        raise WeightsError("E_WEIGHTS_NOT_FOUND", f"There are no weights at {source}.", "Check the path.")
    described = (folder_of(source) / SAMPLER_FILE).is_file()
    return _of_export(source, start) if described else _of_release(source, start)


def _of_export(source: Path, start: RenderStart) -> Recipe:
    folder = folder_of(source)
    settings = read_sampler_file(folder)
    if settings.conditioner is not None:
        raise ConfigError("E_USAGE", "This model takes labels, not prompts.", "Use --label.")
    if start.teacher and isinstance(settings, StudentFolder):
        raise WeightsError("E_WEIGHTS_SAMPLER", "This folder holds a student, not a teacher.", "Give the teacher's.")
    weights = source if source.is_file() else folder / settings.weights
    overrides = settings.network.overrides.arguments()
    spec = fitting_spec(weights, settings.network.name, overrides)
    size = pixel_size(spec, settings.latent.shape)
    return Recipe(spec, overrides, weights, settings.sampler, size, settings.encoders)


def _of_release(source: Path, start: RenderStart) -> Recipe:
    if start.network is not None:
        name, overrides = start.network.name, network_arguments(start.network.overrides)
    else:
        guess = guess_network(open_network(source), companion_config(source))
        if guess is None:
            message = f"{source} holds weights of no network of this version."
            raise WeightsError("E_WEIGHTS_MISMATCH", message, "rcm-bridge weights list names the known ones.")
        name, overrides = guess.model, dict(guess.overrides)
    spec = fitting_spec(source, name, overrides)
    sampler = _teacher_sampler(spec, start.teacher_sampler) if start.teacher else _student_sampler(spec)
    return Recipe(spec, overrides, source, sampler, _RELEASED_SIZES[spec.family], None)


def _student_sampler(spec: NetworkSpec) -> StudentPart:
    return StudentPart(sigma_max=_SIGMA_MAX, times=spec.sampler_times)


def _teacher_sampler(spec: NetworkSpec, given: RenderSampler | None) -> TeacherPart:
    if given is not None:
        return TeacherPart(
            kind=given.kind,
            steps=given.steps,
            shift=given.shift,
            guidance=given.guidance,
            negative=given.negative,
        )
    return TeacherPart(
        kind="unipc",
        steps=_TEACHER_STEPS[spec.family],
        shift=spec.teacher_shift,
        guidance=_GUIDANCE,
        negative="default",
    )


def fitting_spec(weights: Path, name: str, overrides: Mapping[str, Any]) -> NetworkSpec:
    """Facts of a network, whose weights are known to fit it then; only headers are read.

    Raises:
        WeightsError: E_WEIGHTS_MISMATCH or what opening finds.
    """
    network = build(name, device="meta", **overrides)
    check_fit(network, open_network(weights))
    return network.spec


def network_arguments(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides of a config as arguments of `networks.build`.

    Raises:
        ConfigError: E_NETWORK_OVERRIDE.
    """
    try:
        return msgspec.convert(dict(overrides), NetworkOverrides).arguments()
    except msgspec.ValidationError as error:
        raise ConfigError("E_NETWORK_OVERRIDE", f"these overrides cannot be used: {error}") from error
