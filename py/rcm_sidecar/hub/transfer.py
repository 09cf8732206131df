"""One large file into the hub's cache: resumed by byte, checked before any tool can see it.

huggingface_hub itself keeps nothing of an interrupted file (since 1.16 its temporary name is new in each process, and
it leaves no partial file behind), which for a file of 28 GB is not good enough. Its cache, its lock and its session are
used, so other tools see a file exactly when it is complete.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from filelock import FileLock, Timeout
from huggingface_hub import constants, get_hf_file_metadata, get_session, hf_hub_url
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from rcm_sidecar.hub.cache import repository_folder
from rcm_sidecar.hub.failures import corrupt, is_network_error

_CHUNK = 1 << 20
_TRIES = 5
_WAIT_SECONDS = 1.0
_OK, _PARTIAL, _OUT_OF_RANGE = 200, 206, 416


class Stopped(Exception):
    """Another file failed, or the job was cancelled; what has arrived is kept."""


@dataclass(frozen=True, slots=True)
class LargeFile:
    """A file of a commit whose hash the hub lists.

    Attributes:
        repository: `OWNER/NAME`.
        commit: Of the repository.
        name: Path in the repository.
        size: In bytes.
        sha256: In hex; also its name among the cache's blobs.
    """

    repository: str
    commit: str
    name: str
    size: int
    sha256: str

    def blob(self, cache: Path) -> Path:
        """Where its content lies in the cache."""
        return repository_folder(cache, self.repository) / "blobs" / self.sha256

    def partial(self, cache: Path) -> Path:
        """Where what has arrived of it lies."""
        return self.blob(cache).with_name(f"{self.sha256}.rcm-bridge.incomplete")


def transfer(
    file: LargeFile,
    cache: Path,
    *,
    stop: threading.Event,
    on_bytes: Callable[[int], None],
    endpoint: str | None = None,
) -> None:
    """Bring a file into the cache, going on with what is there of it.

    Args:
        file: Which.
        cache: Of the hub.
        stop: Ends it soon once set.
        on_bytes: Told how many bytes came (negative: had to be thrown away).
        endpoint: Of the hub, default that of HF_ENDPOINT.

    Raises:
        Stopped: `stop` was set.
        WeightsError: E_HUB_HASH.
        Exception: What huggingface_hub and its client raise.
    """
    blob = file.blob(cache)
    lock = cache / ".locks" / repository_folder(cache, file.repository).name / f"{file.sha256}.lock"
    blob.parent.mkdir(parents=True, exist_ok=True)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with _locked(lock, stop):
        # Another process may have brought it meanwhile.
        arrived = blob if blob.exists() else file.partial(cache)
        if arrived != blob:
            _complete(file, arrived, stop, on_bytes, endpoint)
        if sha256_of(arrived, stop) != file.sha256:
            arrived.unlink()
            raise corrupt(file.name, file.repository)
        arrived.replace(blob)


def sha256_of(path: Path, stop: threading.Event, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """The hash of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while data := content.read(8 * _CHUNK):
            if stop.is_set():
                raise Stopped
            digest.update(data)
            on_bytes(len(data))
    return digest.hexdigest()


@contextmanager
def _locked(path: Path, stop: threading.Event) -> Iterator[None]:
    lock = FileLock(path)
    while not lock.is_locked:
        if stop.is_set():
            raise Stopped
        with suppress(Timeout):
            lock.acquire(timeout=_WAIT_SECONDS)
    try:
        yield
    finally:
        lock.release()


def _complete(
    file: LargeFile, partial: Path, stop: threading.Event, on_bytes: Callable[[int], None], endpoint: str | None
) -> None:
    """Append to the partial file until it is whole; a connection that breaks is made again."""
    partial.touch()
    on_bytes(partial.stat().st_size)
    tries = 0
    while (had := partial.stat().st_size) != file.size:
        broken: Exception = ConnectionError(f"{file.name} came with another size than the hub lists")
        try:
            _append(file, partial, stop, on_bytes, endpoint)
        except Exception as error:
            if not is_network_error(error):
                raise
            broken = error
        tries = 0 if had < partial.stat().st_size <= file.size else tries + 1
        if tries >= _TRIES:
            raise broken
        if tries and stop.wait(_WAIT_SECONDS * tries):
            raise Stopped


def _append(
    file: LargeFile, partial: Path, stop: threading.Event, on_bytes: Callable[[int], None], endpoint: str | None
) -> None:
    """One request for the rest of the file."""
    url = hf_hub_url(file.repository, file.name, revision=file.commit, endpoint=endpoint)
    # The address of the content is signed and holds for an hour or so: asked for each time.
    location = get_hf_file_metadata(url, endpoint=endpoint).location
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if urlparse(location).netloc != urlparse(url).netloc:
        headers.pop("authorization", None)  # the token is for the hub alone
    had = partial.stat().st_size
    if had:
        headers["Range"] = f"bytes={had}-"
    how: Any = {"headers": headers, "timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT, "follow_redirects": True}
    with get_session().stream("GET", location, **how) as response, partial.open("ab") as target:
        if had and response.status_code in (_OK, _OUT_OF_RANGE) or had > file.size:
            on_bytes(-had)  # it starts anew: there is no going on from here
            target.truncate(0)
        if response.status_code == _OUT_OF_RANGE:
            return
        hf_raise_for_status(response)
        for data in response.iter_raw():
            if stop.is_set():
                raise Stopped
            target.write(data)
            on_bytes(len(data))
