"""Events on their way to Node: everything is kept except progress, of which only the newest is.

Filled by any thread, emptied by the I/O thread. Metrics are joined into batches, at most one message per interval; a
batch also goes out before any other event, so that the order of events is the order in which they happened.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from rcm_sidecar.protocol import Body, EndBody, MetricBatch, MetricItem, Progress

MAX_BATCH_ITEMS = 5000


class Outbox:
    """The queue of one sidecar.

    Args:
        interval_seconds: Least time between two metric messages, and between two progress messages.
        wake: Called after something was added, to wake the I/O thread.
    """

    def __init__(self, interval_seconds: float, wake: Callable[[], None]) -> None:
        self.interval_seconds = interval_seconds
        self.dropped = 0
        self._wake = wake
        self._lock = threading.Lock()
        self._queue: deque[tuple[str, Body]] = deque()
        self._metrics: deque[MetricItem] = deque()
        self._progress: Progress | None = None
        self._metrics_due = 0.0
        self._progress_due = 0.0

    def put(self, kind: str, body: Body) -> None:
        """Queue a lossless event behind everything that came before it."""
        with self._lock:
            while self._metrics:
                self._queue.append(("metric", self._batch()))
            if isinstance(body, EndBody) and self._progress is not None:
                self._queue.append(("progress", self._progress))
                self._progress = None
            self._queue.append((kind, body))
        self._wake()

    def metric(self, item: MetricItem) -> None:
        """Add to the current batch."""
        with self._lock:
            self._metrics.append(item)
            first = len(self._metrics) == 1
        if first:
            self._wake()

    def progress(self, body: Progress) -> None:
        """Replace the progress that waits."""
        with self._lock:
            first = self._progress is None
            self.dropped += 0 if first else 1
            self._progress = body
        if first:
            self._wake()

    def take(self, now: float) -> tuple[str, Body] | None:
        """The next event to send at the monotonic time `now`, or None when nothing is due."""
        with self._lock:
            if self._queue:
                return self._queue.popleft()
            if self._metrics and now >= self._metrics_due:
                self._metrics_due = now + self.interval_seconds
                return "metric", self._batch()
            if self._progress is not None and now >= self._progress_due:
                self._progress_due = now + self.interval_seconds
                body, self._progress = self._progress, None
                return "progress", body
            return None

    def put_back(self, item: tuple[str, Body]) -> None:
        """Return what could not be sent to the front."""
        with self._lock:
            self._queue.appendleft(item)

    def due_in(self, now: float) -> float | None:
        """Seconds until something can be sent, None when nothing waits."""
        with self._lock:
            if self._queue:
                return 0.0
            times = [self._metrics_due] if self._metrics else []
            if self._progress is not None:
                times.append(self._progress_due)
            return max(0.0, min(times) - now) if times else None

    def __len__(self) -> int:
        """Events that wait, metrics counted one by one."""
        with self._lock:
            return len(self._queue) + len(self._metrics) + (self._progress is not None)

    def _batch(self) -> MetricBatch:
        count = min(len(self._metrics), MAX_BATCH_ITEMS)
        return MetricBatch(items=tuple(self._metrics.popleft() for _ in range(count)))
