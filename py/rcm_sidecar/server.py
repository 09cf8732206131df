"""The sidecar: handshake, then one job after another on the main thread until shutdown. Sockets and dispatch only.

Threads: the main thread computes; `io` owns the control and event sockets and serves requests meanwhile; `blob` sends
bulk data; `stdin-eof` (guard) ends the process with Node.
"""

from __future__ import annotations

import hashlib
import os
import platform
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import zmq

from rcm_sidecar.blob_thread import BlobThread
from rcm_sidecar.error_report import error_body
from rcm_sidecar.errors import SidecarError
from rcm_sidecar.io_thread import STALL_SECONDS, IoThread, connect
from rcm_sidecar.link import Cancel, JobCancelled, JobLink, SampleTicket, Ticket
from rcm_sidecar.protocol import (
    CONTROL_TO_PYTHON,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    Bye,
    EndBody,
    Heartbeat,
    Hello,
    Ok,
    Ready,
    RunCancel,
    RunSample,
    RunStart,
    SampleBody,
    SampleStart,
    Shutdown,
    StartLine,
    TrainingStart,
    Welcome,
)
from rcm_sidecar.server_link import ServerLink
from rcm_sidecar.wire import Message, WireError, WireTensor, decode, encode

RunJob = Callable[[RunStart, JobLink], EndBody]

EXIT_REFUSED = 88
"""Node did not welcome us."""

_WELCOME_TIMEOUT_MS = 20_000
_EVENT_HIGH_WATER = 256
_SCHEMA = Path(__file__).resolve().parents[2] / "schema" / "protocol.v1.json"


def main(
    line: bytes,
    run_job: RunJob | None = None,
    describe: Callable[[], Ready] | None = None,
    stall_seconds: float = STALL_SECONDS,
) -> int:
    """Connect, shake hands, serve jobs until shutdown; returns the exit code.

    Args:
        line: The start line, from `guard.begin`.
        run_job: What runs a job; default `rcm_sidecar.jobs.run_job`. Tests inject their own, without torch.
        describe: What makes the body of `ready`; default imports torch.
        stall_seconds: How long Node may leave events unread before they go to a file.
    """
    start = msgspec.json.decode(line, type=StartLine)
    context = zmq.Context()
    control = connect(context, zmq.DEALER, start.endpoints.ctl, 1000)
    welcome = _shake_hands(control, start)
    if welcome is None:
        control.close(linger=0)
        context.term()
        return EXIT_REFUSED
    event = connect(context, zmq.PUSH, start.endpoints.evt, _EVENT_HIGH_WATER)
    server = _Server(control, event, start.endpoints.blob, welcome, stall_seconds)
    code = server.run(run_job, describe)
    context.term()
    return code


def schema_hash() -> str:
    """Sha256 (hex) of the protocol schema this package ships."""
    return hashlib.sha256(_SCHEMA.read_bytes()).hexdigest()


def _shake_hands(control: zmq.Socket[bytes], start: StartLine) -> Welcome | None:
    hello = Hello(
        token=start.token,
        protocol=(PROTOCOL_MIN, PROTOCOL_MAX),
        schema_hash=schema_hash(),
        package="rcm_sidecar",
        pid=os.getpid(),
        python=platform.python_version(),
        platform=sys.platform,
    )
    control.send_multipart(encode("hello", hello))
    if not control.poll(_WELCOME_TIMEOUT_MS):
        return None
    try:
        answer = decode(control.recv_multipart(), CONTROL_TO_PYTHON)
    except WireError:
        return None
    return answer.body if isinstance(answer.body, Welcome) else None


class _Server:
    """State shared by the main thread (jobs) and the I/O thread (requests)."""

    def __init__(
        self,
        control: zmq.Socket[bytes],
        event: zmq.Socket[bytes],
        blob_address: str,
        welcome: Welcome,
        stall_seconds: float,
    ) -> None:
        self._io = IoThread(control, event, self, welcome.limits, stall_seconds)
        self._blob = BlobThread(blob_address, welcome.limits.frame_bytes)
        self._jobs: queue.SimpleQueue[RunStart | None] = queue.SimpleQueue()
        self._link = ServerLink(self._io.outbox, self._send_blob)
        self._job: RunStart | None = None
        self._last_job: RunStart | None = None
        self._ready = False
        self._leaving_seconds = 5.0
        self._end_lock = threading.Lock()

    # Main thread

    def run(self, run_job: RunJob | None, describe: Callable[[], Ready] | None) -> int:
        """Load, serve jobs, leave."""
        self._io.start()
        self._blob.start()
        code = 0
        try:
            ready = (describe or _describe)()
            job = run_job or _load_run_job()
        except Exception as error:
            self._io.reply("error", error_body(error, code="E_PYTHON_PACKAGES"))
            code = 1
        else:
            self._ready = True
            self._link.current_activity = "idle"
            self._io.reply("ready", ready)
            self._serve_jobs(job)
        self._blob.finish(self._leaving_seconds)
        self._io.finish(Bye(code=code), self._leaving_seconds)
        return code

    def _serve_jobs(self, run_job: RunJob) -> None:
        while (start := self._jobs.get()) is not None:
            link = self._link
            end = self._run(run_job, start, link)
            link.requests.close()
            link.current_activity = "idle"
            self._end(end, link)

    def _end(self, end: EndBody, link: ServerLink) -> None:
        """The job's one `end`, whichever thread comes first."""
        with self._end_lock:
            if self._job is None:
                return
            self._job = None
            self._io.outbox.put("end", msgspec.structs.replace(end, blobs=link.blobs))

    def _lose(self, error: BaseException) -> None:
        """The job's own thread hangs: say how it ended. Node ends this process then."""
        self._end(_early_end(self._link, "failed", error), self._link)

    def _run(self, run_job: RunJob, start: RunStart, link: ServerLink) -> EndBody:
        try:
            return run_job(start, link)
        except JobCancelled:
            return _early_end(link, "stopped", None)
        except BaseException as error:
            return _early_end(link, "failed", error)

    def _send_blob(self, body: SampleBody, tensors: tuple[WireTensor, ...]) -> None:
        self._blob.put("sample", body, tensors, self.run_id())

    # I/O thread

    def serve(self, message: Message) -> None:
        """Handle one request of Node."""
        request = message.envelope.id
        if not isinstance(request, str):
            return
        try:
            value = self._answer(request, message.envelope.t, message.body)
        except SidecarError as error:
            self._io.reply("error", error_body(error), answers=request)
            return
        if value is not None:
            self._io.reply("ok", Ok(value=value), answers=request)

    def heartbeat(self) -> Heartbeat:
        """What the job does, from its link."""
        link, outbox = self._link, self._io.outbox
        return Heartbeat(
            activity=link.current_activity,
            step=link.step,
            queued=len(outbox),
            dropped=outbox.dropped,
            rss_bytes=_resident_bytes(),
        )

    def spill_folder(self) -> Path | None:
        """The folder of the job (the last one, once it has ended); jobs about weight files have none."""
        start = self._job or self._last_job
        if isinstance(start, TrainingStart):
            return Path(start.run_dir)
        return Path(start.out_dir) if isinstance(start, SampleStart) else None

    def run_id(self) -> str | None:
        """Id of the run; only training has one."""
        start = self._job or self._last_job
        return start.run_id if isinstance(start, TrainingStart) else None

    def _answer(self, request: str, kind: str, body: Any) -> dict[str, Any] | None:
        """Value of the answer, or None when it comes later."""
        match kind:
            case "run.start":
                return self._accept(body)
            case "status":
                return self._status()
            case "shutdown":
                return self._shut_down(body)
        if self._job is None:
            raise SidecarError("E_RUN_ENDED", "No job is running.")
        requests = self._link.requests
        match kind, body:
            case "run.cancel", RunCancel():
                requests.cancel(Cancel(body.checkpoint))
            case "run.pause", _:
                requests.pause(True)
            case "run.continue", _:
                requests.pause(False)
            case "run.checkpoint", _:
                requests.add_checkpoint(Ticket(self._later(request), body.reason))
                return None
            case "run.sample", RunSample():
                requests.add_sample(SampleTicket(self._later(request), body))
                return None
            case _:
                raise SidecarError("E_PROTOCOL", f"{kind} is not a request.")
        return {}

    def _accept(self, start: RunStart) -> dict[str, Any]:
        if not self._ready:
            raise SidecarError("E_RUN_BUSY", "The sidecar is still loading.")
        if self._job is not None:
            raise SidecarError("E_RUN_BUSY", "The sidecar already runs a job.")
        self._link = ServerLink(self._io.outbox, self._send_blob, self._lose)
        self._job = self._last_job = start
        self._jobs.put(start)
        return {}

    def _status(self) -> dict[str, Any]:
        beat = self.heartbeat()
        job = None if self._job is None else self._job.__struct_config__.tag
        return {
            "activity": beat.activity,
            "step": beat.step,
            "job": job,
            "queued": beat.queued,
            "dropped": beat.dropped,
        }

    def _shut_down(self, body: Shutdown) -> dict[str, Any]:
        self._leaving_seconds = body.deadline_ms / 1000
        self._link.requests.cancel(Cancel(checkpoint=False))
        self._jobs.put(None)
        return {}

    def _later(self, request: str) -> Callable[[dict[str, Any] | BaseException], None]:
        def answer(outcome: dict[str, Any] | BaseException) -> None:
            if isinstance(outcome, BaseException):
                self._io.reply("error", error_body(outcome), answers=request)
            else:
                self._io.reply("ok", Ok(value=outcome), answers=request)

        return answer


def _early_end(link: ServerLink, state: Any, error: BaseException | None) -> EndBody:
    """The end of a job that did not say it itself."""
    progress, checkpoint = link.last_progress, link.last_checkpoint
    return EndBody(
        state=state,
        step=link.step,
        student_updates=progress.student_updates if progress else 0,
        critic_updates=progress.critic_updates if progress else 0,
        checkpoint=checkpoint.path if checkpoint else None,
        exports=(),
        error=None if error is None else error_body(error, step=link.step),
    )


def _describe() -> Ready:
    from rcm_sidecar.device_report import describe

    return describe()


def _load_run_job() -> RunJob:
    from rcm_sidecar.jobs import run_job

    loaded: RunJob = run_job
    return loaded


def _resident_bytes() -> float:
    """Resident memory of this process; 0 where it is not known."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return float(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, IndexError, ValueError):
        return 0.0
