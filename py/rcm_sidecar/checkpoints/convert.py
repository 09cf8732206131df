"""Writing weights in another layout or dtype, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from rcm_sidecar.checkpoints.companions import read_companions, write_companions
from rcm_sidecar.checkpoints.compare import Compared, compare_forward, compare_tensors
from rcm_sidecar.checkpoints.guess import Guess
from rcm_sidecar.checkpoints.inspect import Inspection
from rcm_sidecar.checkpoints.layouts import Layout
from rcm_sidecar.checkpoints.reading import weights_files
from rcm_sidecar.checkpoints.save import SHARD_BYTES, check_target, write_network, written_path
from rcm_sidecar.checkpoints.verify import Report, non_finite, open_fitting
from rcm_sidecar.errors import ConfigError, HostError, WeightsError
from rcm_sidecar.networks import build
from rcm_sidecar.safetensors_file import LazyTensor

DTYPES: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was written.

    Attributes:
        source: What the source is.
        path: The file or folder.
        files: That hold the tensors.
        compared: Result of reading it back, or None.
    """

    source: Inspection
    path: Path
    files: tuple[Path, ...]
    compared: Compared | None


def convert_weights(
    path: str | PathLike[str],
    out: str | PathLike[str],
    layout: Layout,
    *,
    model: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    check: bool = False,
    overwrite: bool = False,
    max_shard_bytes: int = SHARD_BYTES,
    report: Report = lambda *_facts: None,
) -> Conversion:
    """Write the weights of `path` at `out`, in a folder with their companions.

    Whatever is raised before the result gets its name, nothing at `out` has changed.

    Args:
        path: As `inspect_weights`.
        out: As `write_network`.
        layout: Of the result.
        model: As `inspect_weights`.
        overrides: As `inspect_weights`.
        dtype: "bf16", "fp16" or "fp32"; None keeps that of each tensor.
        check: Read the result back and compare it with the source, before it takes the place of what is at `out`.
        overwrite: Replace what is at `out`.
        max_shard_bytes: Largest file of a folder.
        report: See `Report`.

    Raises:
        WeightsError: what opening finds, E_WEIGHTS_MISMATCH, E_WEIGHTS_LAYOUT, E_WEIGHTS_WRITE, E_WEIGHTS_NON_FINITE
            (a value beyond the range of `dtype`), E_WEIGHTS_COMPARE (the result differs), E_WEIGHTS_SAMPLER
            (the sampler.json beside the source is no JSON).
        ConfigError: E_NETWORK_*; E_USAGE for an unknown dtype or an output that is the source.
        HostError: E_CONSENT (there is something at `out`), E_DISK_FULL.
    """
    source, target = Path(path), Path(out)
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError("E_USAGE", f"unknown dtype {dtype!r}", f"known: {', '.join(DTYPES)}")
    check_target(target, layout)
    weights, inspection = open_fitting(source, model, overrides)
    assert inspection.network is not None
    _check_output(written_path(target, layout, inspection.network.model), inspection, overwrite)
    net = _built(inspection.network)
    shapes = {name: tuple(parameter.shape) for name, parameter in net.named_parameters()}
    tensors = {
        name: _cast(name, weights.tensors[name], shape, DTYPES[dtype] if dtype else None)
        for name, shape in shapes.items()
    }
    last = _Counter(report, "writing", len(tensors))
    compared = None

    companions = read_companions(source)

    def finish(temporary: Path) -> None:
        nonlocal compared, last
        if check:
            last = _Counter(report, "comparing", len(tensors))
            compare_tensors(tensors, temporary, last)
            compared = Compared(len(tensors), compare_forward(inspection, temporary, cast=dtype is not None))
        if temporary.is_dir():
            write_companions(companions, temporary)
        last.repeat()  # syncing and the forward pass take their time: this is the last chance to stop

    written = write_network(net, tensors, target, layout, max_shard_bytes=max_shard_bytes, written=last, finish=finish)
    return Conversion(inspection, written, tuple(weights_files(written)), compared)


class _Counter:
    """Turns the size of one tensor after the other into reports."""

    def __init__(self, report: Report, phase: str, total: int) -> None:
        self._report, self._phase, self._total = report, phase, total
        self._done = self._bytes = 0

    def __call__(self, size: int) -> None:
        self._done += 1
        self._bytes += size
        self.repeat()

    def repeat(self) -> None:
        """Report once more, which raises when the job is to end."""
        self._report(self._phase, self._done, self._total, self._bytes)


def _built(network: Guess) -> Any:
    return build(network.model, device="meta", **network.overrides)


def _check_output(target: Path, inspection: Inspection, overwrite: bool) -> None:
    sources = {file.absolute() for file in inspection.files} | {file.resolve() for file in inspection.files}
    places = {file.parent for file in sources} | sources | {inspection.path.resolve()}
    if target.resolve() in places or target.absolute() in places:
        raise ConfigError("E_USAGE", f"{target} is where the source lies", "give another folder or file")
    if (target / "transformer").is_dir():  # what is read of such a folder lies in there: it would hide the result
        raise ConfigError("E_USAGE", f"{target} is a pipeline folder", "give its transformer/ or another folder")
    there = any(target.iterdir()) if target.is_dir() else target.exists()
    if there and not overwrite:
        raise HostError("E_CONSENT", f"{target} exists already", "add --yes to replace it, or give another place")


def _cast(name: str, stored: LazyTensor, shape: tuple[int, ...], dtype: torch.dtype | None) -> LazyTensor:
    """The tensor in the network's shape and the wanted dtype, made when it is its turn."""
    wanted = dtype or stored.dtype
    reshaped = replace(stored, shape=shape, load=lambda: stored.load().reshape(shape))
    if wanted == stored.dtype:
        return reshaped

    def load() -> torch.Tensor:
        value = reshaped.load()
        cast = value.to(wanted)
        if wanted == torch.float16 and non_finite(cast) > non_finite(value):
            message = f"{name} holds values beyond the range of fp16"
            raise WeightsError("E_WEIGHTS_NON_FINITE", message, "use --dtype bf16 or fp32")
        return cast

    return LazyTensor(shape, wanted, load)
