"""Typed errors that may cross the border to TypeScript.

Every error a user can meet has a stable code, one plain sentence and, where one is known, the next step to take.
Programming mistakes inside the package stay ordinary `TypeError` and `ValueError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rcm_sidecar.protocol import ErrorBody


class SidecarError(Exception):
    """Base of all errors with a code.

    Args:
        code: Stable name, `E_...`, listed in docs/errors.md.
        message: What is wrong, one or two sentences, without a path of this package.
        hint: What to do about it, or None.
        details: Further facts for machines, plain JSON values.

    Attributes:
        remote: What the process where it happened reported, when that was another one.
    """

    code: str
    message: str
    hint: str | None
    details: Mapping[str, Any]
    remote: ErrorBody | None = None

    def __init__(
        self, code: str, message: str, hint: str | None = None, details: Mapping[str, Any] | None = None
    ) -> None:
        """Store the parts; `str(error)` is the message alone."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.details = {} if details is None else dict(details)

    def __reduce__(self) -> tuple[type[SidecarError], tuple[str, str, str | None, Mapping[str, Any]]]:
        """Copy with all parts (the default would pass the message only)."""
        return type(self), (self.code, self.message, self.hint, self.details)


class ConfigError(SidecarError):
    """A setting that cannot be used: unknown network, unknown override, sizes that do not fit."""


class HostError(SidecarError):
    """The machine lacks something: package, GPU, disk space, permission."""


class WeightsError(SidecarError):
    """A weights file that is missing, empty, unreadable, of no known layout or of another network."""


class DataError(SidecarError):
    """Training data that are missing, damaged or of another model."""


class CheckpointError(SidecarError):
    """A training checkpoint that is missing, damaged or of another run or torch version."""


class TrainingError(SidecarError):
    """Training cannot go on, for example after too many non-finite updates."""


def error_of_kind(
    kind: str, code: str, message: str, hint: str | None = None, details: Mapping[str, Any] | None = None
) -> SidecarError:
    """An error that came from another process as data, of the class it had there; what is none of ours is training's.

    >>> [type(error_of_kind(kind, "E", "?")).__name__ for kind in ("HostError", "DataError", "KeyError")]
    ['HostError', 'DataError', 'TrainingError']
    """
    kinds = {found.__name__: found for found in (ConfigError, HostError, WeightsError, DataError, CheckpointError)}
    return kinds.get(kind, TrainingError)(code, message, hint, details)
