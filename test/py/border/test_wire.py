import numpy as np
import pytest
import torch

from rcm_sidecar import protocol, wire

DTYPES = {
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float32: "f32",
    torch.float64: "f64",
    torch.bool: "bool",
}
BODY = protocol.SampleBody(step=0, kind="preview", title="", rows=(), columns=())


def round_trip(*tensors, frame_bytes=protocol.FRAME_BYTES):
    frames = wire.encode("sample", BODY, tensors=tensors, frame_bytes=frame_bytes)
    assert all(len(frame) <= frame_bytes for frame in frames[1:])
    return wire.decode([bytes(frame) for frame in frames], protocol.BLOBS, frame_bytes).tensors


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 0, 2), (2, 3, 5)], ids=str)
def test_torch_tensors_of_every_dtype_and_shape(dtype, shape):
    value = (torch.rand(shape) * 5).to(dtype)
    (back,) = round_trip(wire.tensor("x", value))
    assert (back.name, back.dtype, back.shape) == ("x", DTYPES[dtype], shape)
    data = torch.frombuffer(bytearray(back.data), dtype=dtype) if back.data.nbytes else torch.empty(0, dtype=dtype)
    assert torch.equal(data.reshape(shape), value)


def test_views_gradients_and_arrays():
    value = torch.arange(24.0, requires_grad=True).reshape(2, 3, 4).transpose(0, 2)
    (back,) = round_trip(wire.tensor("x", value))
    assert np.array_equal(np.frombuffer(back.data, "<f4").reshape(4, 3, 2), value.detach().numpy())
    array = np.arange(12, dtype=np.int16).reshape(3, 4)[:, ::2]
    (back,) = round_trip(wire.tensor("x", array))
    assert (back.dtype, back.shape) == ("i16", (3, 2))
    assert np.array_equal(np.frombuffer(back.data, "<i2").reshape(3, 2), array)


@pytest.mark.parametrize("value", [np.zeros(2, np.complex64), np.zeros(2, ">f4"), np.zeros(2, np.uint16)], ids=str)
def test_other_dtypes_are_refused(value):
    with pytest.raises(TypeError, match="cannot cross"):
        wire.tensor("x", value)


@pytest.mark.parametrize("size", [7, 8, 9, 15, 16, 17])
def test_frame_boundaries(size):
    data = memoryview(bytes(range(size)))
    first, second = round_trip(wire.tensor("a", data), wire.tensor("b", data), frame_bytes=8)
    assert bytes(first.data) == bytes(second.data) == bytes(range(size))


def test_frames_that_do_not_fit_are_refused():
    frames = [bytes(frame) for frame in wire.encode("sample", BODY, tensors=[wire.tensor("x", memoryview(b"abc"))])]
    for wrong in ([frames[0]], [*frames, b""], [frames[0], b"ab"], [frames[0], b"abcd"], [], [b"\xc1"]):
        with pytest.raises(wire.WireError):
            wire.decode(wrong, protocol.BLOBS)
