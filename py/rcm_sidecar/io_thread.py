"""The thread that owns the control and event sockets: it sends events, beats each second and serves requests.

No other thread touches these sockets. Others put things into queues and wake it through a pipe. It runs no user code,
so a cancel is taken while the job computes.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import zmq

from rcm_sidecar.outbox import Outbox
from rcm_sidecar.protocol import CONTROL_TO_PYTHON, Body, Bye, Heartbeat, Limits, Undelivered
from rcm_sidecar.wire import Message, WireError, decode, encode

STALL_SECONDS = 30.0
"""How long Node may leave events unread before they go to a file."""


class Host(Protocol):
    """What the thread needs from the server."""

    def serve(self, message: Message) -> None:
        """Handle one request; must return at once."""
        ...

    def heartbeat(self) -> Heartbeat:
        """State for the heartbeat."""
        ...

    def spill_folder(self) -> Path | None:
        """Where events may be written when Node does not read, or None."""
        ...

    def run_id(self) -> str | None:
        """Run the events belong to."""
        ...


class IoThread(threading.Thread):
    """See the module.

    Args:
        control: Connected DEALER; belongs to this thread from `start()` on.
        event: Connected PUSH; likewise.
        stall_seconds: Patience before events go to a file.
    """

    def __init__(
        self, control: zmq.Socket[bytes], event: zmq.Socket[bytes], host: Host, limits: Limits, stall_seconds: float
    ) -> None:
        super().__init__(name="io", daemon=True)
        self._control = control
        self._event = event
        self._host = host
        self._beat_seconds = limits.heartbeat_interval_ms / 1000
        self._stall_seconds = stall_seconds
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        os.set_blocking(self._wake_read, False)
        self.outbox = Outbox(limits.metric_interval_ms / 1000, self.wake)
        self._replies: deque[list[bytes | memoryview]] = deque()
        self._seq = 0
        self._blocked_since: float | None = None
        self._spill: FileIO | None = None
        self._spill_path = ""
        self._notice: Undelivered | None = None
        self._leave_at: float | None = None
        self._bye: Bye | None = None

    # For other threads

    def wake(self) -> None:
        """Make the thread look at its queues."""
        try:
            os.write(self._wake_write, b"!")
        except (BlockingIOError, OSError):
            pass

    def reply(self, kind: str, body: Body, answers: str | None = None) -> None:
        """Send a control message."""
        self._replies.append(encode(kind, body, answers=answers))
        self.wake()

    def finish(self, bye: Bye, deadline_seconds: float) -> None:
        """Send what waits (as long as the deadline allows), say bye, close the sockets and end; blocks until then."""
        self._bye = bye
        self._leave_at = time.monotonic() + deadline_seconds
        self.wake()
        self.join(deadline_seconds + 1)

    # The loop

    def run(self) -> None:
        """Serve until `finish`."""
        poller = zmq.Poller()
        poller.register(self._control, zmq.POLLIN)
        poller.register(self._wake_read, zmq.POLLIN)
        next_beat = time.monotonic()
        while not self._may_leave():
            now = time.monotonic()
            if now >= next_beat:
                self._send_control(encode("heartbeat", self._host.heartbeat()))
                next_beat = max(next_beat + self._beat_seconds, now)
            self._send_replies()
            self._send_events()
            self._watch_event_socket(poller)
            due = self._due_in(time.monotonic())
            timeout = max(0.0, min(next_beat - time.monotonic(), due if due is not None else self._beat_seconds))
            ready = dict(poller.poll(int(timeout * 1000) + (timeout > 0)))
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            if self._control in ready:
                self._receive()
        self._send_replies()
        if self._bye is not None:
            self._send_control(encode("bye", self._bye))
        self._control.close(linger=1000)
        self._event.close(linger=1000)

    def _may_leave(self) -> bool:
        if self._leave_at is None:
            return False
        return time.monotonic() >= self._leave_at or (len(self.outbox) == 0 and self._notice is None)

    def _due_in(self, now: float) -> float | None:
        """While Node does not read, wait for the socket (it is polled), not for the outbox."""
        if self._blocked_since is None:
            return self.outbox.due_in(now)
        return max(0.0, self._blocked_since + self._stall_seconds - now) if self._spill is None else 0.25

    def _watch_event_socket(self, poller: zmq.Poller) -> None:
        if self._blocked_since is None:
            if self._event in poller:
                poller.unregister(self._event)
        else:
            poller.register(self._event, zmq.POLLOUT)

    def _send_control(self, frames: list[bytes | memoryview]) -> None:
        """Send without waiting: a full control queue means Node stands still, and the heartbeat may be lost."""
        try:
            self._control.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            pass

    def _send_replies(self) -> None:
        while self._replies:
            try:
                self._control.send_multipart(self._replies[0], zmq.NOBLOCK)
            except zmq.Again:
                return
            self._replies.popleft()

    def _receive(self) -> None:
        while True:
            try:
                frames = self._control.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = decode(frames, CONTROL_TO_PYTHON)
            except WireError as error:
                self._host_protocol_error(error)
                continue
            self._host.serve(message)

    def _host_protocol_error(self, error: WireError) -> None:
        from rcm_sidecar.error_report import error_body

        self.reply("error", error_body(error, code="E_PROTOCOL"))

    # Events

    def _send_events(self) -> None:
        if self._notice is not None and self._try_send("undelivered", self._notice):
            self._notice = None
        while self._notice is None:
            item = self.outbox.take(time.monotonic())
            if item is None:
                return
            if not self._try_send(*item):
                self.outbox.put_back(item)
                break
        self._spill_if_stalled()

    def _try_send(self, kind: str, body: Body) -> bool:
        frames = encode(kind, body, seq=self._seq, run=self._host.run_id())
        try:
            self._event.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            if self._blocked_since is None:
                self._blocked_since = time.monotonic()
            return False
        self._seq += 1
        self._blocked_since = None
        return True

    def _spill_if_stalled(self) -> None:
        """Node has not read for long: write what waits to a file, so that memory stays bounded and nothing is lost."""
        now = time.monotonic()
        if self._blocked_since is None or now < self._blocked_since + self._stall_seconds:
            return
        folder = self._host.spill_folder()
        if folder is None:
            self._blocked_since = now
            return
        while (item := self.outbox.take(now)) is not None:
            if not self._write_to_file(folder, *item):
                self.outbox.put_back(item)
                self._blocked_since = now
                return

    def _write_to_file(self, folder: Path, kind: str, body: Body) -> bool:
        """Append one event to the file; False (and nothing changed) when the disk does not take it."""
        at = None
        try:
            file = self._open_spill(folder)
            at = file.tell()
            file.write(b"".join(encode(kind, body, seq=self._seq, run=self._host.run_id())))
            file.flush()
        except OSError:
            if at is not None:
                file.truncate(at)
                file.seek(at)
            return False
        first = self._seq if self._notice is None else self._notice.first
        self._notice = Undelivered(first=first, last=self._seq, path=self._spill_path)
        self._seq += 1
        return True

    def _open_spill(self, folder: Path) -> FileIO:
        """The file of this sidecar; what an earlier one left in it has been read or belongs to a run that died."""
        if self._spill is None:
            path = folder / "undelivered.msgpack"
            self._spill = path.open("wb", buffering=0)
            self._spill_path = str(path)
        return self._spill


def connect(context: zmq.Context[Any], kind: int, address: str, high_water: int) -> zmq.Socket[bytes]:
    """A connected socket with a bounded queue that does not hold up the end of the process."""
    socket: zmq.Socket[bytes] = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, high_water)
    socket.setsockopt(zmq.RCVHWM, high_water)
    socket.connect(address)
    return socket
