"""Messages to frames and back: an envelope in msgpack, then the bytes of tensors in frames of at most 4 MiB."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET

from rcm_sidecar.protocol import FRAME_BYTES, PROTOCOL_MAX, DtypeName, Envelope, TensorHeader

_ITEM_BYTES: dict[str, int] = {
    "u8": 1,
    "i8": 1,
    "i16": 2,
    "i32": 4,
    "i64": 8,
    "f16": 2,
    "bf16": 2,
    "f32": 4,
    "f64": 8,
    "bool": 1,
}

_TORCH_DTYPES: dict[str, DtypeName] = {
    "torch.uint8": "u8",
    "torch.int8": "i8",
    "torch.int16": "i16",
    "torch.int32": "i32",
    "torch.int64": "i64",
    "torch.float16": "f16",
    "torch.bfloat16": "bf16",
    "torch.float32": "f32",
    "torch.float64": "f64",
    "torch.bool": "bool",
}

_BUFFER_FORMATS: dict[tuple[str, int], DtypeName] = {
    ("u", 1): "u8",
    ("i", 1): "i8",
    ("i", 2): "i16",
    ("i", 4): "i32",
    ("i", 8): "i64",
    ("f", 2): "f16",
    ("f", 4): "f32",
    ("f", 8): "f64",
    ("?", 1): "bool",
}
_BUFFER_KINDS = {"B": "u", "b": "i", "h": "i", "i": "i", "l": "i", "q": "i", "e": "f", "f": "f", "d": "f", "?": "?"}

_encoder = msgspec.msgpack.Encoder()
_envelopes = msgspec.msgpack.Decoder(Envelope)
_bodies: dict[int, msgspec.msgpack.Decoder[Any]] = {}


class WireError(ValueError):
    """Frames that are not a message of this protocol."""


@dataclass(frozen=True)
class WireTensor:
    """A tensor at the border: `data` are its little-endian bytes in C order."""

    name: str
    dtype: DtypeName
    shape: tuple[int, ...]
    data: memoryview


@dataclass(frozen=True)
class Message:
    """A decoded message: the envelope without its body, the typed body, the tensors."""

    envelope: Envelope
    body: Any
    tensors: tuple[WireTensor, ...]


def tensor(name: str, value: Any) -> WireTensor:
    """Take a torch tensor (any device), a numpy array or any buffer to the border; copies only what is not contiguous.

    Raises:
        TypeError: a dtype the protocol does not have.
    """
    if hasattr(value, "detach"):
        return _torch_tensor(name, value)
    if sys.byteorder != "little":  # pragma: no cover
        raise TypeError("only little-endian machines are supported")
    view = memoryview(value)
    kind = _BUFFER_KINDS.get(view.format.lstrip("<=@|"))
    dtype = _BUFFER_FORMATS.get((kind or "", view.itemsize))
    if dtype is None or view.format.startswith((">", "!")):
        raise TypeError(f"tensor {name}: a buffer of format {view.format!r} cannot cross the border")
    data = view.cast("B") if view.c_contiguous and view.nbytes else memoryview(view.tobytes())
    return WireTensor(name, dtype, tuple(view.shape or ()), data)


def _torch_tensor(name: str, value: Any) -> WireTensor:
    dtype = _TORCH_DTYPES.get(str(value.dtype))
    if dtype is None:
        raise TypeError(f"tensor {name}: {value.dtype} cannot cross the border")
    flat = value.detach().cpu().contiguous().reshape(-1)
    data = memoryview(flat.view(sys.modules["torch"].uint8).numpy()) if flat.numel() else memoryview(b"")
    return WireTensor(name, dtype, tuple(value.shape), data)


def encode(
    kind: str,
    body: Any,
    *,
    request: str | None = None,
    answers: str | None = None,
    run: str | None = None,
    seq: int | None = None,
    tensors: Sequence[WireTensor] = (),
    frame_bytes: int = FRAME_BYTES,
    now: float | None = None,
) -> list[bytes | memoryview]:
    """Frames of one message: the envelope, then the tensors' bytes (views, no copy)."""
    headers: list[TensorHeader] = []
    frames: list[bytes | memoryview] = []
    for item in tensors:
        nbytes = len(item.data)
        if nbytes != math.prod(item.shape) * _ITEM_BYTES[item.dtype]:
            raise WireError(f"tensor {item.name}: {nbytes} bytes do not fit {item.dtype} {list(item.shape)}")
        first = len(frames) + 1
        frames.extend(item.data[at : at + frame_bytes] for at in range(0, nbytes, frame_bytes))
        header = TensorHeader(
            name=item.name, dtype=item.dtype, shape=item.shape, nbytes=nbytes, frames=(first, len(frames))
        )
        headers.append(header)
    envelope = Envelope(
        v=PROTOCOL_MAX,
        t=kind,
        ts=time.time() if now is None else now,
        b=msgspec.Raw(_encoder.encode(body)),
        id=UNSET if request is None else request,
        re=UNSET if answers is None else answers,
        run=UNSET if run is None else run,
        seq=UNSET if seq is None else seq,
        x=tuple(headers) if headers else UNSET,
    )
    return [_encoder.encode(envelope), *frames]


def decode(frames: Sequence[bytes | memoryview], types: Mapping[str, Any], frame_bytes: int = FRAME_BYTES) -> Message:
    """Check and type one message.

    Raises:
        WireError: not msgpack, another protocol, an unknown type, a body that does not fit, or wrong frames.
    """
    if not frames:
        raise WireError("an empty message")
    try:
        envelope = _envelopes.decode(frames[0])
    except msgspec.DecodeError as error:
        raise WireError(f"not an envelope: {error}") from error
    if envelope.v != PROTOCOL_MAX:
        raise WireError(f"protocol {envelope.v} instead of {PROTOCOL_MAX}")
    if envelope.t not in types:
        raise WireError(f"unknown message type {envelope.t!r}")
    try:
        body = _body_decoder(types[envelope.t]).decode(envelope.b)
    except msgspec.DecodeError as error:
        raise WireError(f"{envelope.t}: {error}") from error
    headers = () if envelope.x is UNSET else envelope.x
    return Message(envelope, body, _tensors(headers, frames[1:], frame_bytes))


def _body_decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    decoder = _bodies.get(id(kind))
    if decoder is None:
        decoder = _bodies[id(kind)] = msgspec.msgpack.Decoder(kind)
    return decoder


def _tensors(
    headers: Sequence[TensorHeader], frames: Sequence[bytes | memoryview], frame_bytes: int
) -> tuple[WireTensor, ...]:
    tensors: list[WireTensor] = []
    following = 1
    for header in headers:
        nbytes = math.prod(header.shape) * _ITEM_BYTES[header.dtype]
        first, last = header.frames
        if nbytes != header.nbytes or first != following or last != first - 1 + math.ceil(nbytes / frame_bytes):
            raise WireError(f"tensor {header.name}: its header does not fit its frames")
        parts = frames[first - 1 : last]
        data = memoryview(parts[0]) if len(parts) == 1 else memoryview(b"".join(parts))
        if len(data) != nbytes or any(len(part) > frame_bytes for part in parts):
            raise WireError(f"tensor {header.name}: {len(data)} of {nbytes} bytes came")
        tensors.append(WireTensor(header.name, header.dtype, header.shape, data))
        following = last + 1
    if following != len(frames) + 1:
        raise WireError(f"{len(frames)} frames came, {following - 1} belong to tensors")
    return tuple(tensors)
