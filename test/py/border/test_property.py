"""Messages made by hypothesis survive Python -> Node -> Python."""

import math
import shutil
import struct
import subprocess
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rcm_sidecar import protocol

ECHO = Path(__file__).resolve().parents[2] / "fixtures" / "echo.mjs"


@pytest.fixture(scope="module")
def echo():
    node = shutil.which("node")
    assert node is not None, "the tests need node on PATH"
    process = subprocess.Popen([node, str(ECHO)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def send(data):
        process.stdin.write(struct.pack("<I", len(data)) + data)
        process.stdin.flush()
        (size,) = struct.unpack("<I", process.stdout.read(4))
        return process.stdout.read(size)

    yield send
    process.stdin.close()
    process.wait(10)


# JavaScript has no -0 for Python to read back: msgpackr writes it as 0.
reals = st.floats().map(lambda value: value + 0.0)
counts = st.integers(0, 2**32 - 1)
# JavaScript strings are UTF-16 and `__proto__` is renamed by msgpackr on purpose.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda text: text != "__proto__")
leaves = st.none() | st.booleans() | texts | reals | st.integers(-(2**31), 2**32 - 1)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))
maps = st.dictionaries(texts, values, max_size=4)

bodies = st.one_of(
    st.builds(
        protocol.MetricItem, step=counts, phase=texts, time=reals, values=st.dictionaries(texts, reals, max_size=5)
    ).map(lambda item: protocol.MetricBatch(items=(item,))),
    st.builds(protocol.Log, level=st.sampled_from(["debug", "error"]), message=texts, fields=maps),
    st.builds(protocol.Alarm, code=texts, message=texts, step=counts, details=maps),
    st.builds(
        protocol.MetricValue,
        value=reals | st.none(),
        low=reals | st.none(),
        high=st.none(),
        reason=texts | st.just(msgspec.UNSET),
    ),
    st.builds(protocol.Ok, value=maps),
)


def same(left, right):
    """Equal, NaN to itself; a whole float may come back as an int where the field is free."""
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return isinstance(right, list | tuple) and len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float) and math.isnan(left):
        return isinstance(right, float) and math.isnan(right)
    return left == right and isinstance(left, bool) == isinstance(right, bool)


def crosses(value):
    """Node sends no whole number in [2**32, 2**53]: its codec refuses it, see test/unit/protocol/codec.test.ts."""
    if isinstance(value, dict):
        return all(map(crosses, value.values()))
    if isinstance(value, list | tuple):
        return all(map(crosses, value))
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return not whole or -(2**31) <= value < 2**32


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies)
def test_a_body_survives_the_round_trip(echo, body):
    plain = msgspec.to_builtins(body)
    if not crosses(plain):
        return
    back = echo(msgspec.msgpack.encode(body))
    assert not back.startswith(b"!"), back
    assert same(plain, msgspec.to_builtins(msgspec.msgpack.decode(back, type=type(body))))
