"""Fetching weights: what it would take, then the files themselves, complete and of the hash that the hub lists."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

from rcm_sidecar.errors import WeightsError
from rcm_sidecar.hub.cache import HubLocator, repository_folder
from rcm_sidecar.hub.failures import corrupt, no_space, typed_errors
from rcm_sidecar.hub.selection import HubLayout, select
from rcm_sidecar.hub.transfer import LargeFile, Stopped, sha256_of, transfer

_STREAMS = 4
_REPORT_SECONDS = 0.5
# For file systems, and for whatever else is written meanwhile.
_SPARE_BYTES = 200_000_000


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of the plan. `sha256` is None for small ones that the hub does not keep as large files."""

    name: str
    size: int
    sha256: str | None
    present: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What fetching takes.

    Attributes:
        locator: Asked for.
        commit: That its revision stands for now.
        license: As the repository states it, None if it does not.
        gated: Whether its owner grants access one by one.
        cache: Of the hub, on this machine.
        files: To fetch, with those that are here.
    """

    locator: HubLocator
    commit: str
    license: str | None
    gated: bool
    cache: Path
    files: tuple[HubFile, ...]

    @property
    def target(self) -> Path:
        """The folder that holds the files in the end."""
        return repository_folder(self.cache, self.locator.repository) / "snapshots" / self.commit

    @property
    def size(self) -> int:
        """Of all files, in bytes."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class Hub:
    """Where things are; None means what huggingface_hub reads from HF_ENDPOINT and HF_HOME."""

    endpoint: str | None = None
    cache: Path | None = None

    @property
    def folder(self) -> Path:
        """The cache of the hub on this machine."""
        return self.cache or Path(constants.HF_HUB_CACHE).expanduser()


Report = Callable[[str, int, int], None]


def make_plan(
    locator: HubLocator,
    layout: HubLayout | None = None,
    files: Sequence[str] = (),
    *,
    encoders: bool = False,
    hub: Hub | None = None,
) -> Plan:
    """Ask the hub what fetching would take; arguments as `selection.select`.

    Raises:
        WeightsError: E_HUB_NOT_FOUND, no such repository, revision or file.
        HostError: E_HUB_UNREACHABLE, E_HUB_ACCESS or E_OFFLINE.
    """
    hub = hub or Hub()
    with typed_errors(locator.repository, locator.revision):
        api = HfApi(endpoint=hub.endpoint)
        info = api.model_info(locator.repository, revision=locator.revision, files_metadata=True)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    chosen = select(sorted(siblings), layout, files, encoders=encoders)
    snapshot = repository_folder(hub.folder, locator.repository) / "snapshots" / str(info.sha)
    return Plan(
        locator=locator,
        commit=str(info.sha),
        license=_license(info.card_data),
        gated=bool(info.gated),
        cache=hub.folder,
        files=tuple(
            HubFile(name, int(file.size or 0), file.lfs.sha256 if file.lfs else None, (snapshot / name).exists())
            for name, file in ((name, siblings[name]) for name in chosen)
        ),
    )


def missing_bytes(plan: Plan) -> int:
    """What is still to come, partial files counted.

    Raises:
        HostError: E_DISK_FULL when the disk of the cache has not that much room.
    """
    large = _large(plan)
    had = sum(file.partial(plan.cache).stat().st_size for file in large if file.partial(plan.cache).exists())
    there = {file.name for file in large if file.blob(plan.cache).exists()}
    missing = sum(file.size for file in plan.files if not file.present and file.name not in there) - had
    place = next(folder for folder in (plan.cache, *plan.cache.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if missing > 0 and free < missing + _SPARE_BYTES:
        raise no_space(plan.cache, missing + _SPARE_BYTES, free)
    return max(0, missing)


def fetch(plan: Plan, report: Report, stop: threading.Event, hub: Hub | None = None) -> dict[str, str]:
    """Bring the files of a plan here and check them.

    Args:
        plan: From `make_plan`.
        report: Told what is done (`fetching`, `checking`), and the bytes of it done and in all.
        stop: Ends it soon once set; what has arrived is kept.
        hub: As for the plan.

    Returns:
        The sha256 of each file that the hub lists one for; all are equal to it.

    Raises:
        Stopped: `stop` was set.
        WeightsError: E_HUB_HASH, E_HUB_NOT_FOUND.
        HostError: E_DISK_FULL, E_HUB_UNREACHABLE, E_HUB_ACCESS or E_OFFLINE.
    """
    hub = hub or Hub()
    disable_progress_bars()
    with typed_errors(plan.locator.repository, plan.locator.revision):
        arrived = {file.name for file in _fetch_large(plan, report, stop, hub)}
        _place(plan, hub)
    # What came just now was checked before it got its place.
    _check(plan, [file for file in _large(plan, present=True) if file.name not in arrived], report, stop)
    return {file.name: file.sha256 for file in plan.files if file.sha256 is not None}


def _large(plan: Plan, *, present: bool = False) -> list[LargeFile]:
    """Those whose hash is listed: not yet here, or all."""
    return [
        LargeFile(plan.locator.repository, plan.commit, file.name, file.size, file.sha256)
        for file in plan.files
        if file.sha256 is not None and (present or not file.present)
    ]


def _fetch_large(plan: Plan, report: Report, stop: threading.Event, hub: Hub) -> list[LargeFile]:
    large = [file for file in _large(plan) if not file.blob(plan.cache).exists()]
    counted = _Counter()
    total = sum(file.size for file in large)
    halt = threading.Event()
    with ThreadPoolExecutor(_STREAMS, thread_name_prefix="fetch") as streams:
        arguments: dict[str, Any] = {"stop": halt, "on_bytes": counted.add, "endpoint": hub.endpoint}
        waiting = {streams.submit(transfer, file, plan.cache, **arguments) for file in large}
        try:
            _follow(waiting, lambda: report("fetching", counted.value, total), stop)
        finally:
            halt.set()
    return large


def _follow(waiting: set[Future[None]], tell: Callable[[], None], stop: threading.Event) -> None:
    """Wait for all; the first failure, or `stop`, ends it."""
    while waiting:
        if stop.is_set():
            raise Stopped
        done, waiting = wait(waiting, _REPORT_SECONDS, FIRST_EXCEPTION)
        tell()
        for one in done:
            one.result()


def _place(plan: Plan, hub: Hub) -> None:
    """Let huggingface_hub add the small files, the branch's name and the links that make a snapshot."""
    folder = snapshot_download(
        plan.locator.repository,
        revision=plan.locator.revision,
        cache_dir=hub.cache,
        endpoint=hub.endpoint,
        allow_patterns=[file.name for file in plan.files],
    )
    if Path(folder).name != plan.commit:
        message = f"{plan.locator.repository} got a new commit while it was fetched."
        raise WeightsError("E_HUB_UNREACHABLE", message, "Run it again; what has arrived is used.")


def _check(plan: Plan, files: Sequence[LargeFile], report: Report, stop: threading.Event) -> None:
    counted = _Counter()
    total = sum(file.size for file in files)
    for file in files:
        link = plan.target / file.name

        def on_bytes(count: int) -> None:
            counted.add(count)
            report("checking", counted.value, total)

        if sha256_of(link, stop, on_bytes) != file.sha256:
            file.blob(plan.cache).unlink(missing_ok=True)
            link.unlink(missing_ok=True)
            raise corrupt(file.name, file.repository)


class _Counter:
    """Bytes counted by several threads."""

    def __init__(self) -> None:
        self.value = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Add some; negative ones were thrown away."""
        with self._lock:
            self.value += count


def _license(card: Any) -> str | None:
    """What the model card says, with name and address where the licence is the owner's own."""
    name = card and card.get("license")
    if not name:
        return None
    if name != "other":
        return str(name)
    return " ".join(str(part) for part in (card.get("license_name") or name, card.get("license_link")) if part)
