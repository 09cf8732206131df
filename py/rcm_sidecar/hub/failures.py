"""What goes wrong between this machine and the hub, as typed errors: one sentence and a fix each."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import errors

from rcm_sidecar.errors import HostError, SidecarError, WeightsError

_SIGN_IN = "accept its terms on its page while signed in, then set HF_TOKEN (or run `hf auth login`) and try again"
_FULL = (errno.ENOSPC, errno.EDQUOT)
# The HTTP clients below huggingface_hub, by version.
_CLIENTS = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}


@contextmanager
def typed_errors(repository: str, revision: str) -> Iterator[None]:
    """Turn what huggingface_hub and its clients raise into errors of ours; others pass."""
    try:
        yield
    except SidecarError:
        raise
    except Exception as error:
        known = _typed(error, repository, revision)
        if known is None:
            raise
        raise known from error


def is_network_error(error: BaseException) -> bool:
    """Whether trying again may help."""
    if isinstance(error, errors.HfHubHTTPError):
        return _status(error) >= 500 or _status(error) == 429
    client = type(error).__module__.split(".", 1)[0] in _CLIENTS
    return client or isinstance(error, (ConnectionError, TimeoutError))


def corrupt(name: str, repository: str) -> WeightsError:
    """A file that is not what the hub says it is."""
    return WeightsError(
        "E_HUB_HASH",
        f"{name} of {repository} arrived with another sha256 than the hub lists, and was removed.",
        "Fetch it again; if that does not help, a proxy between here and the hub changes files.",
    )


def no_space(folder: object, needed: int, free: int) -> HostError:
    """The disk is too small."""
    return HostError(
        "E_DISK_FULL",
        f"The download needs {needed / 1e9:.2f} GB, and {folder} has {free / 1e9:.2f} GB free.",
        "Free some space, or set HF_HOME to a folder on a larger disk; what is there already is used.",
    )


def _typed(error: Exception, repository: str, revision: str) -> SidecarError | None:
    if isinstance(error, errors.GatedRepoError):
        return HostError("E_HUB_ACCESS", f"{repository} is gated and this machine may not read it.", _capital(_SIGN_IN))
    if isinstance(error, errors.RevisionNotFoundError):
        hint = "Check the part after @: a branch, a tag or a whole commit; without it the branch main is meant."
        return WeightsError("E_HUB_NOT_FOUND", f"{repository} has no revision {revision}.", hint)
    if isinstance(error, errors.RepositoryNotFoundError):
        hint = f"Check the name; if it is private or gated, {_SIGN_IN}."
        return WeightsError("E_HUB_NOT_FOUND", f"The hub shows no model {repository}.", hint)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HostError("E_OFFLINE", "HF_HUB_OFFLINE forbids to reach the hub.", "Unset it, or use a copy.")
    if isinstance(error, errors.HfHubHTTPError) and _status(error) in (401, 403):
        return HostError("E_HUB_ACCESS", f"The hub lets this machine not read {repository}.", _capital(_SIGN_IN))
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return WeightsError("E_HUB_NOT_FOUND", f"A file of {repository} is gone from the hub.", "Try again.")
    if isinstance(error, OSError) and error.errno in _FULL:
        hint = "Free some space, or set HF_HOME to a folder on a larger disk; the next call goes on from here."
        return HostError("E_DISK_FULL", "The disk is full; what has arrived is kept.", hint)
    if is_network_error(error) or isinstance(error, (errors.HfHubHTTPError, errors.LocalEntryNotFoundError)):
        reason = str(error).split("\n", 1)[0][:160] or type(error).__name__
        hint = "Check the network, HTTPS_PROXY and HF_ENDPOINT, and run it again: it goes on where it stopped."
        return HostError("E_HUB_UNREACHABLE", f"The hub does not answer ({reason}).", hint)
    return None


def _status(error: errors.HfHubHTTPError) -> int:
    return int(getattr(error.response, "status_code", 0) or 0)


def _capital(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
