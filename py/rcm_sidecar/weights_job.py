"""The jobs about weight files: inspect, verify and convert, from the message to the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from rcm_sidecar.checkpoints.inspect import Inspection, inspect_weights
from rcm_sidecar.config import NetworkOverrides
from rcm_sidecar.errors import ConfigError
from rcm_sidecar.link import JobLink
from rcm_sidecar.protocol import EndBody, WeightsInspection, WeightsMismatch, WeightsNetwork, WeightsStart


def run_weights(start: WeightsStart, link: JobLink) -> EndBody:
    """Do what `start` says and send one report.

    Raises:
        WeightsError: the weights cannot be read, used or written.
        ConfigError: E_NETWORK_*, for a model or override that does not exist.
    """
    link.activity("loading", 0)
    inspection = inspect_weights(Path(start.source), start.model, _arguments(start.overrides))
    link.weights(inspection_body(inspection))
    return EndBody(state="succeeded", step=0, student_updates=0, critic_updates=0, checkpoint=None, exports=())


def inspection_body(inspection: Inspection) -> WeightsInspection:
    """An inspection as it crosses the border."""
    network, misfit = inspection.network, inspection.misfit
    return WeightsInspection(
        path=str(inspection.path),
        files=tuple(map(str, inspection.files)),
        layout=inspection.layout,
        prefix=inspection.prefix,
        family=inspection.family,
        network=None if network is None else WeightsNetwork(name=network.model, overrides=_document(network.overrides)),
        dtypes=dict(inspection.dtypes),
        tensors=inspection.tensors,
        parameters=float(inspection.parameters),
        bytes=float(inspection.bytes),
        mismatch=None
        if misfit is None
        else WeightsMismatch(
            missing=tuple(misfit.mismatch.missing),
            unexpected=tuple(misfit.mismatch.unexpected),
            misshaped=tuple(misfit.mismatch.misshaped),
            integers=tuple(misfit.mismatch.integers),
            summary=misfit.mismatch.summary(),
            cause=misfit.cause,
        ),
    )


def _arguments(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides of a config as arguments of `networks.build`."""
    try:
        return msgspec.convert(dict(overrides), NetworkOverrides).arguments()
    except msgspec.ValidationError as error:
        raise ConfigError("E_NETWORK_OVERRIDE", f"these overrides cannot be used: {error}") from error


def _document(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `networks.build` as a config names them."""
    names = {field.name: field.encode_name for field in msgspec.structs.fields(NetworkOverrides)}
    return {names.get(key, key): list(value) if isinstance(value, tuple) else value for key, value in overrides.items()}
