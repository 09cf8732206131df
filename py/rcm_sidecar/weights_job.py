"""The jobs about weight files: inspect, verify and convert, from the message to the report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from rcm_sidecar.checkpoints.convert import Conversion, convert_weights
from rcm_sidecar.checkpoints.inspect import Inspection, inspect_weights
from rcm_sidecar.checkpoints.verify import verify_weights
from rcm_sidecar.config import NetworkOverrides
from rcm_sidecar.counted_progress import reporter
from rcm_sidecar.errors import ConfigError
from rcm_sidecar.link import JobLink
from rcm_sidecar.protocol import (
    ConversionCheck,
    Converted,
    ConvertStart,
    EndBody,
    FileHash,
    ForwardCheck,
    Verified,
    VerifyStart,
    WeightsInspection,
    WeightsMismatch,
    WeightsNetwork,
    WeightsStart,
)


def run_weights(start: WeightsStart, link: JobLink) -> EndBody:
    """Do what `start` says and send one report.

    Raises:
        WeightsError: the weights cannot be read, used or written.
        ConfigError: E_NETWORK_*, for a model or override that does not exist; E_USAGE.
        HostError: E_CONSENT, E_DISK_FULL.
    """
    link.activity("loading", 0)
    begun = time.monotonic()
    path, overrides = Path(start.source), _arguments(start.overrides)
    report = reporter(link)
    if isinstance(start, VerifyStart):
        found, hashes = verify_weights(path, start.model, overrides, report)
        known = tuple(FileHash(file=str(file), sha256=value) for file, value in hashes.items())
        link.weights(Verified(inspection=inspection_body(found), hashes=known, seconds=time.monotonic() - begun))
    elif isinstance(start, ConvertStart):
        conversion = convert_weights(
            path,
            Path(start.out),
            start.layout,
            model=start.model,
            overrides=overrides,
            dtype=start.dtype,
            check=start.check,
            overwrite=start.overwrite,
            report=report,
        )
        link.weights(_converted(conversion, time.monotonic() - begun))
    else:
        link.weights(inspection_body(inspect_weights(path, start.model, overrides)))
    return EndBody(state="succeeded", step=0, student_updates=0, critic_updates=0, checkpoint=None, exports=())


def _converted(conversion: Conversion, seconds: float) -> Converted:
    compared = conversion.compared
    checked = None
    if compared is not None:
        forward = ForwardCheck(difference=compared.forward.difference, reason=compared.forward.reason)
        checked = ConversionCheck(tensors=compared.tensors, forward=forward)
    return Converted(
        inspection=inspection_body(conversion.source),
        path=str(conversion.path),
        files=tuple(map(str, conversion.files)),
        bytes=float(sum(file.stat().st_size for file in conversion.files)),
        checked=checked,
        seconds=seconds,
    )


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
