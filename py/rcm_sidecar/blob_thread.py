"""The thread that sends bulk data, in a ZeroMQ context of its own so that no event or cancel waits behind it."""

from __future__ import annotations

import queue
import threading

import zmq

from rcm_sidecar.io_thread import connect
from rcm_sidecar.protocol import Body
from rcm_sidecar.wire import WireTensor, encode

_HIGH_WATER = 2
_Item = tuple[str, Body, tuple[WireTensor, ...], str | None]


class BlobThread(threading.Thread):
    """Sends what `put` is given, in order."""

    def __init__(self, address: str, frame_bytes: int) -> None:
        super().__init__(name="blob", daemon=True)
        self._address = address
        self._frame_bytes = frame_bytes
        self._queue: queue.Queue[_Item | None] = queue.Queue()

    def put(self, kind: str, body: Body, tensors: tuple[WireTensor, ...], run: str | None) -> None:
        """Queue a message; its tensors must not change afterwards."""
        self._queue.put((kind, body, tensors, run))

    def finish(self, deadline_seconds: float) -> None:
        """Send what waits and end."""
        self._queue.put(None)
        self.join(deadline_seconds)

    def run(self) -> None:
        """Send until `finish`."""
        context = zmq.Context()
        socket = connect(context, zmq.PUSH, self._address, _HIGH_WATER)
        while (item := self._queue.get()) is not None:
            kind, body, tensors, run = item
            frames = encode(kind, body, tensors=tensors, run=run, frame_bytes=self._frame_bytes)
            socket.send_multipart(frames, copy=False)
        socket.close(linger=2000)
        context.term()
