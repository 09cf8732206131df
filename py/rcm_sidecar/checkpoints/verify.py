"""Reading all of a network's weights: complete, finite, of the known hash. One tensor is in memory at a time."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcm_sidecar.checkpoints.inspect import Inspection, inspect_open
from rcm_sidecar.checkpoints.weights_file import WeightsFile, open_network
from rcm_sidecar.errors import WeightsError

Report = Callable[[str, int, int, int], None]
"""Called with phase, tensors done, tensors in all and bytes done; what it raises ends the work."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK = 2**24
_NAMED = 5


def verify_weights(
    path: str | PathLike[str],
    model: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    report: Report = lambda *_facts: None,
) -> tuple[Inspection, dict[Path, str]]:
    """Read all of the weights.

    Args:
        path: As `inspect_weights`.
        model: As `inspect_weights`.
        overrides: As `inspect_weights`.
        report: See `Report`.

    Returns:
        What they are, and the sha256 of each file whose hash was known; it is the known one.

    Raises:
        WeightsError: what opening finds, E_WEIGHTS_MISMATCH, E_WEIGHTS_NON_FINITE or E_WEIGHTS_HASH.
        ConfigError: E_NETWORK_*.
    """
    weights, inspection = open_fitting(Path(path), model, overrides)
    total, done_bytes, broken = len(weights.tensors), 0, {}
    for done, (name, tensor) in enumerate(weights.tensors.items(), start=1):
        if bad := non_finite(tensor.load()):
            broken[name] = bad
        done_bytes += tensor.nbytes
        report("reading", done, total, done_bytes)
    if broken:
        raise _broken(weights.path, broken)
    return inspection, _check_hashes(inspection.files, report)


def open_fitting(path: Path, model: str | None, overrides: Mapping[str, Any] | None) -> tuple[WeightsFile, Inspection]:
    """Weights that are exactly those of their network, open.

    Raises:
        WeightsError: what opening finds, or E_WEIGHTS_MISMATCH with the first five keys and the likely cause.
    """
    weights = open_network(path)
    inspection = inspect_open(weights, model, overrides)
    if inspection.misfit is None:
        return weights, inspection
    what = "no network of this version" if inspection.network is None else inspection.network.model
    verb = "is" if inspection.network is None else "does not fit"
    message = f"{path} {verb} {what}: {inspection.misfit.mismatch.summary()}"
    raise WeightsError("E_WEIGHTS_MISMATCH", message, inspection.misfit.cause)


def non_finite(value: Tensor) -> int:
    """How many numbers of a tensor are NaN or infinite."""
    # The extremes say it (NaN wins) in one pass that is twenty times as fast as isfinite, which is left for the count.
    return sum(int((~torch.isfinite(chunk)).sum()) for chunk in _wide(value).split(_CHUNK) if not _finite(chunk))


def _wide(value: Tensor) -> Tensor:
    flat = value.reshape(-1)
    return flat.float() if flat.dtype.itemsize == 1 else flat


def _finite(chunk: Tensor) -> bool:
    return len(chunk) == 0 or all(math.isfinite(extreme.item()) for extreme in torch.aminmax(chunk))


def _broken(path: Path, broken: Mapping[str, int]) -> WeightsError:
    named = ", ".join(f"{name} ({count})" for name, count in list(broken.items())[:_NAMED])
    message = f"{path} holds values that are not finite in {len(broken)} tensors: {named}"
    return WeightsError("E_WEIGHTS_NON_FINITE", message, "the file is damaged, or the training that made it had failed")


def _check_hashes(files: Sequence[Path], report: Report) -> dict[Path, str]:
    known = {file: found for file in files if (found := _known_hash(file)) is not None}
    for done, (file, wanted) in enumerate(known.items(), start=1):
        report("hashing", done - 1, len(known), 0)
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != wanted:
            message = f"{file} has the sha256 {found} and should have {wanted}"
            raise WeightsError("E_WEIGHTS_HASH", message, "the file was damaged or changed: fetch it again")
        report("hashing", done, len(known), 0)
    return known


def _known_hash(file: Path) -> str | None:
    """The sha256 that the tool which fetched a file left: a blob's name in the cache, or a note beside the file."""
    blob = file.resolve().name
    if _SHA256.fullmatch(blob):
        return blob
    note = file.parent / ".cache" / "huggingface" / "download" / f"{file.name}.metadata"
    try:
        etag = note.read_text("utf-8").splitlines()[1]  # commit, etag (the sha256 of a large file), time
    except (OSError, ValueError, IndexError):
        return None
    return etag if _SHA256.fullmatch(etag) else None
