"""Frames written by each language and read by the other. RCM_TEST_WRITE=1 writes Python's files anew."""

import json
import math
import os
from pathlib import Path

import msgspec
import pytest

from rcm_sidecar import protocol, wire

GOLDEN = Path(__file__).resolve().parents[2] / "fixtures" / "golden"
SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf, "-0": -0.0}
GROUPS = {
    "controlToNode": protocol.CONTROL_TO_NODE,
    "controlToPython": protocol.CONTROL_TO_PYTHON,
    "events": protocol.EVENTS,
    "blobs": protocol.BLOBS,
}
PIXELS = wire.tensor("pixels", memoryview(bytes([0, 1, 2, 3, 4, 5, 6, 255])).cast("B", (1, 2, 2, 2, 1)))


def revive(value):
    if isinstance(value, str):
        return SPECIAL.get(value, value)
    if isinstance(value, list):
        return [revive(item) for item in value]
    return {key: revive(item) for key, item in value.items()} if isinstance(value, dict) else value


EXAMPLES = [
    pytest.param(group, kind, revive(body), id=f"{group}.{kind}")
    for group, kinds in json.loads((GOLDEN / "examples.json").read_text(encoding="utf8")).items()
    for kind, body in kinds.items()
]


def frames_of(group, kind, body):
    return wire.encode(
        kind,
        msgspec.convert(body, GROUPS[group][kind]),
        request="7" if group == "controlToPython" and kind != "welcome" else None,
        answers="7" if kind in ("ok", "error") else None,
        run="run-1" if group in ("events", "blobs") else None,
        seq=41 if group == "events" else None,
        tensors=(PIXELS,) if group == "blobs" else (),
        now=1763836621.25,
    )


@pytest.mark.parametrize(("group", "kind", "body"), EXAMPLES)
def test_python_writes_as_ever(group, kind, body):
    file = GOLDEN / "python" / f"{group}.{kind}.msgpack"
    envelope = bytes(frames_of(group, kind, body)[0])
    if os.environ.get("RCM_TEST_WRITE") == "1":
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(envelope)
    assert envelope.hex() == file.read_bytes().hex()


@pytest.mark.parametrize(("group", "kind", "body"), EXAMPLES)
def test_python_reads_what_node_wrote(group, kind, body):
    file = GOLDEN / "node" / f"{group}.{kind}.msgpack"
    tensors = [bytes(PIXELS.data)] if group == "blobs" else []
    message = wire.decode([file.read_bytes(), *tensors], GROUPS[group])
    expected = msgspec.convert(body, GROUPS[group][kind])
    assert repr(message.body).replace("-0.0", "0.0") == repr(expected).replace("-0.0", "0.0")
    assert message.envelope.ts == 1763836621.25
    if group == "blobs":
        assert bytes(message.tensors[0].data) == bytes(PIXELS.data)
