"""On a CUDA device: every backend against fp64, repeatability, backward, PyTorch integration."""

import pytest
import torch
from cases import FAMILIES, errors, family, inputs, relative

from rcm_kernels import attention, attention_backward, attention_jvp, use_backend
from rcm_kernels.dispatch import choose
from rcm_kernels.plain import attention_backward as backward_by
from rcm_kernels.plain import choose_backward
from rcm_kernels.problem import Problem
from rcm_kernels.reference import eager, eager_backward

pytestmark = pytest.mark.gpu

BF16, FP16 = torch.bfloat16, torch.float16
LIMITS = {BF16: (4e-3, 5e-3, 2e-3), FP16: (1e-3, 1.5e-3, 1e-3)}


def backends():
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
    return ["hopper", "triton"] if hopper else ["triton"]


def assert_close(result, args, mask=None, dtype=BF16):
    found = errors(result, args, mask=mask)
    limit_out, limit_tangent, limit_lse = LIMITS[dtype]
    assert found["out"] < limit_out, found
    assert found["lse"] < limit_lse, found
    if "tangent" in found:
        assert found["tangent"] < limit_tangent, found
        # Of few numbers the error itself is noisy: a tenth above the emulation is asked of full tiles.
        room = 1.1 if min(args[0].shape[2], args[1].shape[2]) >= 128 else 1.5
        assert found["tangent"] < room * found["emulated"] + 1e-4, found
        assert found["mu"] < 5e-3, found


LENGTHS = [
    (1, 1),
    (1, 7),
    (7, 63),
    (63, 64),
    (64, 65),
    (65, 129),
    (127, 1),
    (129, 200),
    (200, 333),
    (999, 65),
    (257, 999),
]


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("pattern", ["qkv", "q"])
def test_tiny_and_ragged_lengths(backend, dim, pattern):
    for i, (queries, keys) in enumerate(LENGTHS):
        args = inputs(1 + i % 3, 2, queries, keys, dim, dtype=BF16, device="cuda", pattern=pattern, seed=i)
        with use_backend(backend):
            result = attention_jvp(*args)
        if keys == 1 and pattern == "q":  # one key: the output cannot move
            assert result.tangent.abs().max() < 1e-2
        else:
            assert_close(result, args)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("dim", [64, 96, 128])
@pytest.mark.parametrize("mask", ["causal", ("block-causal", 7), ("block-causal", 100)])
@pytest.mark.parametrize("pattern", ["qkv", "q"])
def test_masks(backend, dim, mask, pattern):
    for queries, keys in ((200, 333), (333, 200), (512, 512), (65, 65)):
        args = inputs(2, 3, queries, keys, dim, dtype=BF16, device="cuda", pattern=pattern)
        with use_backend(backend):
            assert_close(attention_jvp(*args, mask=mask), args, mask)


@pytest.mark.parametrize("dim", [32, 64, 96, 128, 256])
@pytest.mark.parametrize("pattern", ["", "q", "k", "v", "qk", "qv", "kv", "qkv"])
def test_portable_kernel_takes_every_head_dim_and_pattern(dim, pattern):
    args = inputs(1, 2, 200, 300, dim, dtype=BF16, device="cuda", pattern=pattern)
    with use_backend("triton"):
        result = attention_jvp(*args)
    assert_close(result, args)
    assert (result.tangent is None) == (pattern == "")


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("layout", ["bhld", "blhd", "packed"])
def test_layouts_and_fp16(backend, layout):
    for dtype in (BF16, FP16):
        args = inputs(2, 4, 300, 300, 128, dtype=dtype, device="cuda", layout=layout)
        with use_backend(backend):
            assert_close(attention_jvp(*args), args, dtype=dtype)


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("name", FAMILIES)
def test_input_families(backend, name):
    args = family(name, 1, 2, 4096, 128, dtype=BF16, device="cuda")
    with use_backend(backend):
        assert_close(attention_jvp(*args), args)


@pytest.mark.parametrize("backend", backends())
def test_extreme_values(backend):
    args = list(inputs(1, 2, 300, 400, 128, dtype=BF16, device="cuda"))
    peaky = [args[0] * 30, args[1] * 30, *args[2:]]
    equal = [args[0], args[1][:, :, :1].expand_as(args[1]).contiguous(), *args[2:]]
    negative = [args[0].abs() * 20, -args[1].abs() * 20, *args[2:]]
    large = [args[0], args[1], args[2] * 1e30, *args[3:5], args[5] * 1e30]
    for case in (peaky, equal, negative, large):
        with use_backend(backend):
            found = errors(attention_jvp(*case), case)
        assert found["out"] < 5e-3 and found["tangent"] < max(8e-3, 1.2 * found["emulated"]), found


@pytest.mark.parametrize(
    "shape", [(1, 24, 2304, 2304, 64), (1, 16, 4096, 4096, 128), (1, 40, 1024, 8192, 128), (1, 12, 4000, 512, 128)]
)
@pytest.mark.parametrize("pattern", ["qkv", "q"])
def test_twenty_repeats_are_bitwise_equal(shape, pattern):
    args = inputs(*shape, dtype=BF16, device="cuda", pattern=pattern)
    first = attention_jvp(*args)
    assert_close(first, args)
    for _ in range(20):
        poison = [torch.full_like(x, float("nan")) for x in first]  # what the allocator hands out next is not zeros
        del poison
        again = attention_jvp(*args)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.skipif("hopper" not in backends(), reason="the split belongs to the Hopper kernel")
@pytest.mark.parametrize(
    "shape", [(1, 24, 2304, 2304, 64), (1, 3, 300, 9000, 128), (1, 1, 1, 5000, 128), (2, 5, 700, 999, 64)]
)
def test_split_last_wave(shape):
    from rcm_kernels import hopper_launch as hopper
    from rcm_kernels.dispatch import hopper_tile

    for pattern in ("qkv", "q"):
        args = inputs(*shape, dtype=BF16, device="cuda", pattern=pattern, layout="blhd")
        problem = Problem(*shape, shape[-1] ** -0.5, 0)
        tile = hopper_tile(problem, pattern == "qkv")
        for split in (True, False):
            assert_close(hopper.launch(*args, problem, **tile, split=split), args)


def test_long_sequence_and_frames():
    args = inputs(1, 2, 32760, 32760, 128, dtype=BF16, device="cuda", layout="blhd")
    assert_close(attention_jvp(*args), args)
    mask = ("block-causal", 1560)
    assert_close(attention_jvp(*args, mask=mask), args, mask)


def test_more_than_2_to_the_31_elements():
    q = torch.randn(4, 131072, 40, 128, device="cuda", dtype=BF16).transpose(1, 2)  # 2.7e9 elements
    k = torch.randn(4, 300, 40, 128, device="cuda", dtype=BF16).transpose(1, 2)
    args = (q, k, k.flip(2).contiguous(), q, None, None)
    assert_close(attention_jvp(*args), args)
    del q, args
    torch.cuda.empty_cache()


@pytest.mark.parametrize("backend", ["cudnn", "flash"])
@pytest.mark.parametrize("layout", ["bhld", "blhd", "packed"])
@pytest.mark.parametrize("frame", [0, 1, 130])
def test_backward_from_our_output(backend, layout, frame):
    """Layouts of both kinds run in one process: cuDNN's plan cache must not mix them up."""
    if backend == "cudnn" and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("cuDNN's attention backward is used on Hopper and newer")
    mask = None if frame == 0 else ("block-causal", frame)
    args = inputs(1, 4, 500, 500, 128, dtype=BF16, device="cuda", layout=layout)
    result = attention_jvp(*args, mask=mask)
    for grad_layout in ("bhld", "blhd"):
        grad = inputs(1, 4, 500, 500, 128, dtype=BF16, device="cuda", layout=grad_layout, seed=5)[0]
        q, k, v = args[:3]
        options = {"scale": 128**-0.5, "frame": frame}
        got = backward_by(grad, q, k, v, result.out, result.lse, backend=backend, **options)
        wide = [x.double() for x in (grad, q, k, v)]
        exact = eager(*wide[1:], **options)
        expected = eager_backward(*wide, exact.out, exact.lse, **options)
        for a, b in zip(got, expected, strict=True):
            assert relative(a, b) < 6e-3


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("frame", [0, 130])
@pytest.mark.parametrize("length", [500, 4096])
def test_a_deterministic_backward_repeats_its_bits(length, frame, deterministic):
    """Two heads: several programs share each row of dQ, which is where an order could differ."""
    mask = None if frame == 0 else ("block-causal", frame)
    q, k, v, *_ = inputs(1, 2, length, length, 128, dtype=BF16, device="cuda")
    grad = inputs(1, 2, length, length, 128, dtype=BF16, device="cuda", seed=5)[0]
    out, _, lse, _ = attention_jvp(q, k, v, mask=mask)
    assert choose_backward(q, k, frame) == "flash"
    first = attention_backward(grad, q, k, v, out, lse, mask=mask)
    for _ in range(10):
        again = attention_backward(grad, q, k, v, out, lse, mask=mask)
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))
    torch.use_deterministic_algorithms(False)
    for a, b in zip(attention_backward(grad, q, k, v, out, lse, mask=mask), first, strict=True):
        assert relative(a, b.double()) < 1e-2


def test_autograd_compile_and_checkpoint():
    q, k, v, tq, tk, tv = inputs(1, 2, 256, 256, 64, dtype=BF16, device="cuda")
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]

    def step(a, b, c):
        out, tangent, _, _ = attention_jvp(a, b, c, tq, tk, tv)
        return out.float().square().sum() + tangent.detach().float().sum()

    step(*leaves).backward()
    plain = [x.grad.clone() for x in leaves]
    for x in leaves:
        x.grad = None
    torch.compile(step, fullgraph=True)(*leaves).backward()
    assert all(relative(x.grad, g) < 1e-2 for x, g in zip(leaves, plain, strict=True))


def test_forward_mode_door_and_autocast():
    q, k, v, tq, tk, tv = inputs(1, 2, 256, 300, 64, dtype=torch.float32, device="cuda")
    with torch.autocast("cuda", dtype=BF16):
        out, tangent = torch.func.jvp(lambda *x: attention(*x), (q, k, v), (tq, tk, tv))
        direct = attention_jvp(q, k, v, tq, tk, tv)
    assert out.dtype == BF16 and relative(tangent, direct.tangent) < 1e-2
    assert_close(direct, tuple(x.to(BF16) for x in (q, k, v, tq, tk, tv)))


def test_other_devices_streams_and_choice():
    args = inputs(1, 2, 256, 256, 128, dtype=BF16, device="cuda")
    first = attention_jvp(*args)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        second = attention_jvp(*args)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert choose(args[0], args[3], args[4], args[5]) == backends()[0]
    assert choose(args[0].float(), None, None, None) == "eager"


def test_errors_name_the_argument():
    q, k, v, tq, tk, tv = inputs(1, 2, 64, 64, 128, dtype=BF16, device="cuda")
    with pytest.raises(ValueError, match="^k: expected device"):
        attention_jvp(q, k.cpu(), v)
    with pytest.raises(ValueError, match="^q: head dim 72"):
        attention_jvp(*(x[..., :72].contiguous() for x in (q, k, v, tq)))
    odd = torch.randn(1, 2, 64, 132, device="cuda", dtype=BF16)[..., 1:129]
    with pytest.raises(ValueError, match="^tq: "):
        attention_jvp(q, k, v, odd, tk, tv)
