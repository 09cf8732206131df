"""The link a job gets from the server: it fills the outbox and the queue of blobs and returns at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from rcm_sidecar.link import WEIGHTS_EVENTS, LogLevel, Requests, SampleGrid, WeightsReport
from rcm_sidecar.outbox import Outbox
from rcm_sidecar.protocol import (
    Activity,
    ActivityName,
    Alarm,
    CheckpointBody,
    EvaluationBody,
    Log,
    MetricItem,
    Progress,
    Rendered,
    SampleBody,
    StepBody,
)
from rcm_sidecar.wire import WireTensor, tensor


class ServerLink:
    """One job's link.

    Args:
        outbox: Where events go.
        send_blob: Takes a body and its tensors to the blob thread.
        on_lost: Ends the job for its own thread, see `JobLink.lost`.

    `current_activity`, `step`, `last_progress`, `last_checkpoint` and `blobs` are what the heartbeat and the end
    message are made from.
    """

    def __init__(
        self,
        outbox: Outbox,
        send_blob: Callable[[SampleBody, tuple[WireTensor, ...]], None],
        on_lost: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self.lost = on_lost
        self.requests = Requests(self)
        self.current_activity: ActivityName = "loading"
        self.step = 0
        self.last_progress: Progress | None = None
        self.last_checkpoint: CheckpointBody | None = None
        self.blobs = 0
        self._outbox = outbox
        self._send_blob = send_blob

    def activity(self, name: ActivityName, step: int) -> None:  # noqa: D102
        self.current_activity = name
        self.step = step
        self._outbox.put("activity", Activity(activity=name, step=step))

    def progress(self, progress: Progress) -> None:  # noqa: D102
        self.step = progress.step
        self.last_progress = progress
        self._outbox.progress(progress)

    def metric(self, step: int, phase: str, values: Mapping[str, float]) -> None:  # noqa: D102
        plain = {name: float(value) for name, value in values.items()}
        self._outbox.metric(MetricItem(step=step, phase=phase, time=time.time(), values=plain))

    def checkpoint(self, body: CheckpointBody) -> None:  # noqa: D102
        self.last_checkpoint = body
        self._outbox.put("checkpoint", body)

    def sample(self, grid: SampleGrid) -> None:  # noqa: D102
        rows, columns = tuple(grid.rows), tuple(grid.columns)
        body = SampleBody(step=grid.step, kind=grid.kind, title=grid.title, rows=rows, columns=columns)
        pixels = tensor("pixels", grid.pixels)
        if pixels.dtype != "u8" or len(pixels.shape) != 5 or pixels.shape[:2] != (len(rows), len(columns)):
            raise ValueError(f"pixels must be u8 [{len(rows)}, {len(columns)}, H, W, 1 or 3], not {pixels.shape}")
        self.blobs += 1
        self._send_blob(body, (pixels,))

    def evaluation(self, body: EvaluationBody) -> None:  # noqa: D102
        self._outbox.put("evaluation", body)

    def weights(self, report: WeightsReport) -> None:  # noqa: D102
        self._outbox.put(WEIGHTS_EVENTS[type(report)], report)

    def rendered(self, body: Rendered) -> None:  # noqa: D102
        self._outbox.put("rendered", body)

    def alarm(self, code: str, message: str, step: int, details: Mapping[str, Any]) -> None:  # noqa: D102
        self._outbox.put("alarm", Alarm(code=code, message=message, step=step, details=dict(details)))

    def log(self, level: LogLevel, message: str, **fields: Any) -> None:  # noqa: D102
        self._outbox.put("log", Log(level=level, message=message, fields=fields))

    def paused(self, step: int) -> None:  # noqa: D102
        self._outbox.put("paused", StepBody(step=step))

    def continued(self, step: int) -> None:  # noqa: D102
        self._outbox.put("continued", StepBody(step=step))
