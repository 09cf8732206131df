"""The job that fetches weights from the hub, from the message to the report."""

from __future__ import annotations

import threading
import time

from rcm_sidecar.errors import HostError
from rcm_sidecar.hub import HubLocator
from rcm_sidecar.link import JobLink
from rcm_sidecar.protocol import EndBody, Fetched, FetchPlan, FetchPlanFile, FetchStart, FileHash, Progress

_MEGABYTE = 1_000_000
_REPORT_SECONDS = 0.2


def run_fetch(start: FetchStart, link: JobLink) -> EndBody:
    """Say what fetching takes; with `download`, do it.

    Raises:
        WeightsError: E_HUB_NOT_FOUND or E_HUB_HASH.
        HostError: E_PYTHON_PACKAGES, E_HUB_UNREACHABLE, E_HUB_ACCESS, E_OFFLINE or E_DISK_FULL.
        JobCancelled: what has arrived is kept.
    """
    try:
        # Here, because only this job needs the package.
        from rcm_sidecar.hub.fetch import fetch, make_plan, missing_bytes
        from rcm_sidecar.hub.transfer import Stopped
    except ImportError as error:
        hint = "Add it with: rcm-bridge env setup --with media"
        raise HostError("E_PYTHON_PACKAGES", f"Fetching needs huggingface_hub ({error}).", hint) from error
    link.activity("loading", 0)
    locator = HubLocator(start.repository, start.revision)
    plan = make_plan(locator, start.layout, start.files, encoders=start.encoders)
    link.weights(
        FetchPlan(
            repository=start.repository,
            revision=start.revision,
            commit=plan.commit,
            license=plan.license,
            gated=plan.gated,
            path=str(plan.target),
            files=tuple(
                FetchPlanFile(name=file.name, bytes=float(file.size), present=file.present) for file in plan.files
            ),
            bytes=float(plan.size),
            missing_bytes=float(missing_bytes(plan)),
        )
    )
    if start.download:
        progress = _Reporter(link)
        try:
            hashes = fetch(plan, progress.report, progress.stop)
        except Stopped:
            link.requests.raise_if_cancelled_now()
            raise
        known = tuple(FileHash(file=name, sha256=digest) for name, digest in hashes.items())
        link.weights(Fetched(path=str(plan.target), hashes=known, seconds=progress.seconds))
    return EndBody(state="succeeded", step=0, student_updates=0, critic_updates=0, checkpoint=None, exports=())


class _Reporter:
    """Bytes as progress events, not too many; passes a cancel on."""

    def __init__(self, link: JobLink) -> None:
        self.stop = threading.Event()
        self._link = link
        self._began = time.monotonic()
        self._phase_began = ("", self._began, 0)
        self._last = 0.0

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._began

    def report(self, phase: str, done: int, total: int) -> None:
        """Report bytes done of all."""
        if self._link.requests.cancelled() is not None:
            self.stop.set()
        now = time.monotonic()
        if now - self._last < _REPORT_SECONDS and done < total:
            return
        self._last = now
        if self._phase_began[0] != phase:
            self._phase_began = (phase, now, done)
        _, began, first = self._phase_began
        rate = (done - first) / (now - began) if now > began else 0.0
        self._link.progress(
            Progress(
                step=done // _MEGABYTE,
                steps=total // _MEGABYTE,
                phase=phase,
                student_updates=0,
                critic_updates=0,
                samples_per_second=0.0,
                eta_seconds=(total - done) / rate if rate > 0 else 0.0,
                values={"bytes": float(done), "totalBytes": float(total), "bytesPerSecond": rate},
            )
        )
