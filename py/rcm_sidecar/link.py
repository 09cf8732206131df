"""What a job sees of the border: a link to report to and the requests that arrive while it runs. No sockets, no torch.

The server gives the job a link whose methods only put things into queues and return at once; the requests are filled by
the I/O thread. Everything here may be called from any thread.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from rcm_sidecar.errors import SidecarError
from rcm_sidecar.protocol import (
    ActivityName,
    Alarm,
    CheckpointBody,
    Converted,
    EvaluationBody,
    Fetched,
    FetchPlan,
    Progress,
    Rendered,
    RunSample,
    Verified,
    WeightsInspection,
)

WeightsReport = WeightsInspection | Verified | Converted | FetchPlan | Fetched
WEIGHTS_EVENTS: Mapping[type, str] = {
    WeightsInspection: "inspected",
    Verified: "verified",
    Converted: "converted",
    FetchPlan: "fetchPlan",
    Fetched: "fetched",
}
LogLevel = Literal["debug", "info", "warn", "error"]


@dataclass(frozen=True)
class SampleGrid:
    """A grid of images to show.

    Args:
        title: One line.
        rows: Name of each row.
        columns: Name of each column.
        pixels: u8 [rows, columns, H, W, 1 or 3]: a torch tensor, a numpy array or any C-contiguous buffer.
        step: Step it belongs to.
        kind: Why it was drawn.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    pixels: Any
    step: int = 0
    kind: Literal["preview", "evaluation", "request"] = "preview"


@dataclass(frozen=True)
class Cancel:
    """The job was asked to end; `checkpoint` says whether to write one first."""

    checkpoint: bool


class JobCancelled(Exception):
    """Raised by `Requests.raise_if_cancelled_now` out of long work; the job turns it into a `stopped` end."""

    def __init__(self, cancel: Cancel) -> None:
        super().__init__("the job was cancelled")
        self.cancel = cancel


class Ticket:
    """A request the job answers when it has done the work. The first answer counts, later ones are ignored."""

    def __init__(self, answer: Callable[[dict[str, Any] | BaseException], None], reason: str = "") -> None:
        self.reason = reason
        self._answer = answer
        self._lock = threading.Lock()
        self._answered = False

    def done(self, value: Mapping[str, Any] | None = None) -> None:
        """Report success; `value` becomes the value of the `ok` message."""
        self._settle(dict(value or {}))

    def fail(self, error: BaseException) -> None:
        """Report failure; the error crosses the border with its chain."""
        self._settle(error)

    def _settle(self, outcome: dict[str, Any] | BaseException) -> None:
        with self._lock:
            if self._answered:
                return
            self._answered = True
        self._answer(outcome)


class SampleTicket(Ticket):
    """A request for samples: `steps`, `num`, `seed` and `label` (None: any)."""

    def __init__(self, answer: Callable[[dict[str, Any] | BaseException], None], request: RunSample) -> None:
        super().__init__(answer, "request")
        self.steps = request.steps
        self.num = request.num
        self.seed = request.seed
        self.label = request.label


AnyTicket = TypeVar("AnyTicket", bound=Ticket)


class PauseListener(Protocol):
    """Hears when the job really stands still and when it goes on."""

    def paused(self, step: int) -> None: ...  # noqa: D102

    def continued(self, step: int) -> None: ...  # noqa: D102


class Requests:
    """What other parties want from the running job. The job looks between steps and inside long loops."""

    def __init__(self, listener: PauseListener | None = None) -> None:
        self._listener = listener
        self._changed = threading.Condition()
        self._cancel: Cancel | None = None
        self._pause = False
        self._closed = False
        self._checkpoints: deque[Ticket] = deque()
        self._samples: deque[SampleTicket] = deque()
        self._taken: list[Ticket] = []

    # For the job

    def cancelled(self) -> Cancel | None:
        """The cancellation, once asked for; it stays."""
        return self._cancel

    def waiting(self) -> bool:
        """Whether anything is asked for that the job has not taken yet."""
        return self._cancel is not None or self._pause or bool(self._checkpoints or self._samples)

    def raise_if_cancelled_now(self) -> None:
        """Raise JobCancelled if the job was cancelled: for loops that are longer than a step."""
        if self._cancel is not None:
            raise JobCancelled(self._cancel)

    def wait_while_paused(self, step: int, serve: Callable[[], None] | None = None) -> None:
        """Block while the job is paused; send `paused` and `continued` through the link. Cancelling ends the wait.

        Args:
            step: Current step, for the events.
            serve: Called when a checkpoint or sample is asked for meanwhile; it must take the tickets.
        """
        if not self._pause or self._cancel is not None:
            return
        if self._listener is not None:
            self._listener.paused(step)
        while self._wait_paused(wake_for_tickets=serve is not None):
            if serve is not None:
                serve()
        if self._listener is not None:
            self._listener.continued(step)

    def _wait_paused(self, wake_for_tickets: bool) -> bool:
        """Wait for a change; True: still paused and a ticket waits."""
        with self._changed:
            while self._pause and self._cancel is None:
                if wake_for_tickets and (self._checkpoints or self._samples):
                    return True
                self._changed.wait()
        return False

    def take_checkpoint(self) -> Ticket | None:
        """The oldest waiting request for a checkpoint, or None. The taker must answer it."""
        return self._take(self._checkpoints)

    def take_sample(self) -> SampleTicket | None:
        """The oldest waiting request for samples, or None. The taker must answer it."""
        return self._take(self._samples)

    def _take(self, waiting: deque[AnyTicket]) -> AnyTicket | None:
        with self._changed:
            if not waiting:
                return None
            ticket = waiting.popleft()
            self._taken.append(ticket)
            return ticket

    # For the server

    def cancel(self, cancel: Cancel) -> None:
        """Ask the job to end. A later request can only make it more abrupt (no checkpoint)."""
        with self._changed:
            if self._cancel is None or not cancel.checkpoint:
                self._cancel = cancel
            self._changed.notify_all()

    def pause(self, paused: bool) -> None:
        """Ask the job to stand still, or to go on."""
        with self._changed:
            self._pause = paused
            self._changed.notify_all()

    def add_checkpoint(self, ticket: Ticket) -> None:
        """Queue a request for a checkpoint."""
        self._add(self._checkpoints, ticket)

    def add_sample(self, ticket: SampleTicket) -> None:
        """Queue a request for samples."""
        self._add(self._samples, ticket)

    def _add(self, waiting: deque[AnyTicket], ticket: AnyTicket) -> None:
        with self._changed:
            if not self._closed:
                waiting.append(ticket)
                self._changed.notify_all()
                return
        ticket.fail(_too_late())

    def close(self) -> None:
        """The job is over: everything unanswered fails with E_RUN_ENDED."""
        with self._changed:
            self._closed = True
            left: list[Ticket] = [*self._taken, *self._checkpoints, *self._samples]
            self._checkpoints.clear()
            self._samples.clear()
            self._taken.clear()
        for ticket in left:
            ticket.fail(_too_late())


def _too_late() -> SidecarError:
    return SidecarError("E_RUN_ENDED", "The run ended before the request was served.")


class JobLink(Protocol):
    """How a job reports. Every call returns at once and none raises because Node is slow."""

    @property
    def requests(self) -> Requests:
        """What is asked of the job."""
        ...

    def activity(self, name: ActivityName, step: int) -> None:
        """Say what is done from now on; also sets activity and step of the heartbeat."""
        ...

    def progress(self, progress: Progress) -> None:
        """Say how far the job is; also sets the step of the heartbeat. Call it after every step; only it coalesces."""
        ...

    def metric(self, step: int, phase: str, values: Mapping[str, float]) -> None:
        """Log values of a step; sent in batches, none is lost."""
        ...

    def checkpoint(self, body: CheckpointBody) -> None:
        """Announce a checkpoint that is complete on disk."""
        ...

    def sample(self, grid: SampleGrid) -> None:
        """Send a grid of images. The pixels must not change afterwards."""
        ...

    def evaluation(self, body: EvaluationBody) -> None:
        """Send the results of an evaluation."""
        ...

    def weights(self, report: WeightsReport) -> None:
        """Send what a job about weight files found or did."""
        ...

    def rendered(self, body: Rendered) -> None:
        """Announce a picture or video that is complete on disk."""
        ...

    def alarm(self, code: str, message: str, step: int, details: Mapping[str, Any]) -> None:
        """Tell a person that something needs a look."""
        ...

    def log(self, level: LogLevel, message: str, **fields: Any) -> None:
        """Write a log record."""
        ...

    def lost(self, error: BaseException) -> None:
        """Another process of the job is gone and the job's own thread hangs: end the job with this error for it."""
        ...

    def paused(self, step: int) -> None:
        """The job stands still (called by `Requests.wait_while_paused`)."""
        ...

    def continued(self, step: int) -> None:
        """The job goes on (called by `Requests.wait_while_paused`)."""
        ...


@dataclass(frozen=True)
class Recorded:
    """One call on a RecordingLink: the event's type and what was given."""

    type: str
    body: Any


class RecordingLink:
    """A link that keeps everything in memory, for tests and scripts.

    Args:
        on_record: Called with each record as it comes, for example to cancel at a step.
    """

    def __init__(self, on_record: Callable[[Recorded], None] | None = None) -> None:
        self.records: list[Recorded] = []
        self.requests = Requests(self)
        self._on_record = on_record

    def of_type(self, name: str) -> list[Any]:
        """All bodies recorded under a type, in order."""
        return [record.body for record in self.records if record.type == name]

    def metric_values(self) -> list[tuple[int, str, dict[str, float]]]:
        """All metrics as (step, phase, values)."""
        return [(body["step"], body["phase"], body["values"]) for body in self.of_type("metric")]

    def activity(self, name: ActivityName, step: int) -> None:  # noqa: D102
        self._record("activity", (name, step))

    def progress(self, progress: Progress) -> None:  # noqa: D102
        self._record("progress", progress)

    def metric(self, step: int, phase: str, values: Mapping[str, float]) -> None:  # noqa: D102
        self._record("metric", {"step": step, "phase": phase, "time": time.time(), "values": dict(values)})

    def checkpoint(self, body: CheckpointBody) -> None:  # noqa: D102
        self._record("checkpoint", body)

    def sample(self, grid: SampleGrid) -> None:  # noqa: D102
        self._record("sample", grid)

    def evaluation(self, body: EvaluationBody) -> None:  # noqa: D102
        self._record("evaluation", body)

    def weights(self, report: WeightsReport) -> None:  # noqa: D102
        self._record(WEIGHTS_EVENTS[type(report)], report)

    def rendered(self, body: Rendered) -> None:  # noqa: D102
        self._record("rendered", body)

    def alarm(self, code: str, message: str, step: int, details: Mapping[str, Any]) -> None:  # noqa: D102
        self._record("alarm", Alarm(code=code, message=message, step=step, details=dict(details)))

    def log(self, level: LogLevel, message: str, **fields: Any) -> None:  # noqa: D102
        self._record("log", {"level": level, "message": message, "fields": fields})

    def lost(self, error: BaseException) -> None:  # noqa: D102
        self._record("lost", error)

    def paused(self, step: int) -> None:  # noqa: D102
        self._record("paused", step)

    def continued(self, step: int) -> None:  # noqa: D102
        self._record("continued", step)

    def _record(self, name: str, body: Any) -> None:
        record = Recorded(name, body)
        self.records.append(record)
        if self._on_record is not None:
            self._on_record(record)


class SilentLink:
    """The link of a process that does not lead: nothing is reported, a person finds activities and logs in its log."""

    def __init__(self) -> None:
        self.requests = Requests()

    def activity(self, name: ActivityName, step: int) -> None:  # noqa: D102
        self._print(f"{name} at step {step}")

    def progress(self, progress: Progress) -> None:  # noqa: D102
        return

    def metric(self, step: int, phase: str, values: Mapping[str, float]) -> None:  # noqa: D102
        return

    def checkpoint(self, body: CheckpointBody) -> None:  # noqa: D102
        return

    def sample(self, grid: SampleGrid) -> None:  # noqa: D102
        return

    def evaluation(self, body: EvaluationBody) -> None:  # noqa: D102
        return

    def weights(self, report: WeightsReport) -> None:  # noqa: D102
        return

    def rendered(self, body: Rendered) -> None:  # noqa: D102
        return

    def alarm(self, code: str, message: str, step: int, details: Mapping[str, Any]) -> None:  # noqa: D102
        self._print(f"{code}: {message}")

    def log(self, level: LogLevel, message: str, **fields: Any) -> None:  # noqa: D102
        self._print(f"{level}: {message}")

    def lost(self, error: BaseException) -> None:  # noqa: D102
        self._print(str(error))

    def paused(self, step: int) -> None:  # noqa: D102
        return

    def continued(self, step: int) -> None:  # noqa: D102
        return

    @staticmethod
    def _print(text: str) -> None:
        print(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), text, file=sys.stderr, flush=True)
