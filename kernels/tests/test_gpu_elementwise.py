"""The elementwise kernels on a CUDA device: fp64, every part and tangent, repeatability, PyTorch integration."""

import elementwise_cases as cases
import launches
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rcm_kernels import LayerNormTangents, activation_jvp, layer_norm_jvp, rms_norm_jvp
from rcm_kernels import elementwise_reference as reference

pytestmark = pytest.mark.gpu

BF16, FP16, F32 = torch.bfloat16, torch.float16, torch.float32
# Rounding normal numbers costs 1.66e-3 in bf16 and 2.1e-4 in fp16; a norm sees a rounded residual and is rounded again.
LIMITS = {BF16: 2.8e-3, FP16: 3.5e-4, F32: 1e-6}
# That is the mean over many numbers. One number alone may be half a unit in the last place off.
FEW = {BF16: 2**-8, FP16: 2**-11, F32: 1e-6}
PARTS = ["", "fs", "ygfs", "yfs", "yg", "y"]
# Each row length, dtype and set of parts is a compilation: all sets for two, two sets for the others.
NORMS = [
    *((dim, dtype, parts) for dim, dtype in ((24, F32), (1536, BF16)) for parts in PARTS),
    *((dim, dtype, parts) for dim, dtype in ((1000, FP16), (2048, BF16), (5120, BF16), (8192, F32))
      for parts in ("ygfs", "fs")),
]  # fmt: skip
many = settings(deadline=None, max_examples=24, derandomize=True)


def judge(errors, dtype, limits=LIMITS):
    assert max(errors.values()) < limits[dtype], errors


@pytest.mark.parametrize(("dim", "dtype", "parts"), NORMS)
def test_layer_norm(dim, dtype, parts):
    norm = parts not in ("yg", "y")
    for batch, length, width in ((1, 37, 1), (3, 5, 3)):
        args = cases.layer_norm_inputs(batch, length, dim, dtype=dtype, device="cuda", parts=parts, width=width)
        judge(cases.layer_norm_errors(launches.layer_norm, args, norm=norm), dtype)
        if parts not in ("y", ""):
            judge(cases.layer_norm_backward_errors(launches.layer_norm_backward, args, norm=norm), dtype)


@many
@given(st.sampled_from(PARTS), st.lists(st.sampled_from("xygfs"), unique=True), st.integers(1, 3), st.integers(1, 40),
       st.sampled_from([48, 300]), st.integers(0, 1000))  # fmt: skip
def test_layer_norm_with_any_tangents(parts, tangents, batch, length, dim, seed):
    norm = parts not in ("yg", "y")
    args = cases.layer_norm_inputs(batch, length, dim, dtype=F32, device="cuda", parts=parts,
                                   tangents="".join(tangents), seed=seed)  # fmt: skip
    judge(cases.layer_norm_errors(launches.layer_norm, args, norm=norm), F32)


# heads, head dim, interleaved, norm over the whole row, rotation, dtype
HEADS = [
    *((12, 128, True, full, table, BF16) for full in (True, False) for table in (True, False)),
    *((2, 10, False, full, table, F32) for full in (True, False) for table in (True, False)),
    (16, 128, False, False, True, BF16),
    (16, 128, False, False, False, FP16),
    (40, 128, True, True, True, BF16),
    (40, 128, False, False, True, BF16),
    (1, 1536, True, True, False, BF16),
    (3, 72, True, False, True, F32),
]


@pytest.mark.parametrize(("heads", "dim", "interleaved", "full", "table", "dtype"), HEADS)
def test_rms_norm(heads, dim, interleaved, full, table, dtype):
    for batch, length, width in ((1, 37, 1), (3, 5, 3)):
        args = cases.rms_inputs(
            batch, length, heads, dim, dtype=dtype, device="cuda", full=full, table=table, width=width
        )
        judge(cases.rms_errors(launches.rms_norm, args, interleaved), dtype)
        judge(cases.rms_backward_errors(launches.rms_norm_backward, args, interleaved), dtype)


COUNTS = [*((count, dtype) for dtype in (BF16, FP16, F32) for count in (7, 100_003)), (1, BF16), (2048, BF16)]


@pytest.mark.parametrize(("count", "dtype"), COUNTS)
@pytest.mark.parametrize("kind", ["gelu_tanh", "gelu_erf", "silu"])
def test_activation(count, dtype, kind):
    generator = torch.Generator("cuda").manual_seed(count)
    x, tx = (cases.randn(generator, count, dtype=dtype, device="cuda") for _ in range(2))
    limits = FEW if count < 1000 else LIMITS
    for scale in (1.0, 5.0):
        judge(cases.activation_errors(launches.activation, x * scale, tx, kind), dtype, limits)
        judge(cases.activation_errors(launches.activation, x * scale, None, kind), dtype, limits)


def test_tails_of_the_activations_keep_their_relative_precision():
    x = torch.linspace(-12, 12, 4001, device="cuda")
    for kind in ("gelu_tanh", "silu"):
        got = launches.activation(x, torch.ones_like(x), kind)
        exact = reference.activation(x.double(), torch.ones_like(x).double(), kind)
        away = exact[0].abs() > 1e-30
        assert ((got[0] - exact[0]).abs() / exact[0].abs())[away].max() < 1e-4
        assert (got[1] - exact[1]).abs().max() < 1e-5


@pytest.mark.parametrize("dim", [1536, 2048, 5120])
def test_a_primal_has_the_same_bits_with_and_without_tangents(dim):
    args = cases.layer_norm_inputs(1, 333, dim, dtype=BF16, device="cuda")
    both, alone = (launches.layer_norm(*args[:5], *t, True, True, 1e-6) for t in (args[5:], (None,) * 5))
    assert all(torch.equal(both[i], alone[i]) for i in (0, 1, 4))
    for interleaved in (True, False):
        x, tx, weight, table = cases.rms_inputs(1, 333, dim // 128, 128, dtype=BF16, device="cuda", full=interleaved)
        both, alone = (launches.rms_norm(x, t, weight, table, interleaved, 1e-6) for t in (tx, None))
        assert torch.equal(both[0], alone[0]) and torch.equal(both[2], alone[2])
    for kind in ("gelu_tanh", "gelu_erf", "silu"):
        assert torch.equal(launches.activation(x, tx, kind)[0], launches.activation(x, None, kind)[0])


def test_repeats_are_bitwise_equal():
    """Sums over rows too: no atomics."""
    args = cases.layer_norm_inputs(2, 3000, 1536, dtype=BF16, device="cuda")
    leaves = [a.clone().requires_grad_() for a in args[:5]]
    weight = torch.randn(1536, device="cuda").requires_grad_()

    def run():
        out = layer_norm_jvp(*leaves, LayerNormTangents(*args[5:]), one=True)
        second, _ = rms_norm_jvp(out.out.unflatten(-1, (12, 128)), weight)
        loss = second.float().square().sum() + out.residual.float().sin().sum()
        return [out.residual, out.out, out.residual_tangent, out.tangent, second,
                *torch.autograd.grad(loss, [*leaves, weight])]  # fmt: skip

    first = run()
    for _ in range(10):
        poison = [torch.full_like(a, float("nan")) for a in first]
        del poison
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_no_worse_than_the_eager_composition():
    """Tangent errors of the fused passes against those of rounding after every eager step."""
    x, y, g, f, s, tx, ty, tg, tf, ts = args = cases.layer_norm_inputs(1, 2000, 1536, dtype=BF16, device="cuda")
    exact = reference.layer_norm(*(cases.wide(a) for a in args), True, True, 1e-6)
    fused = launches.layer_norm(*args, True, True, 1e-6)
    r, _, tr, _, _ = reference.layer_norm(x, y, g, None, None, tx, ty, tg, None, None, False, True, 1e-6)
    _, n, _, tn, _ = reference.layer_norm(r, None, None, None, None, tr, None, None, None, None, True, True, 1e-6)
    eager = ((tn.float() * (1 + f) + n.float() * tf + ts).to(BF16), (n.float() * (1 + f) + s).to(BF16))
    assert cases.relative(fused[3], exact[3]) < 1.02 * cases.relative(eager[0], exact[3])
    assert cases.relative(fused[1], exact[1]) < 1.02 * cases.relative(eager[1], exact[1])


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_gradients_and_stacking_through_the_public_functions(dtype):
    args = cases.layer_norm_inputs(2, 300, 256, dtype=dtype, device="cuda")
    tangents = LayerNormTangents(*args[5:])
    leaves = [a.clone().requires_grad_() for a in args[:5]]
    wide = [a.detach().double().requires_grad_() for a in leaves]
    out = layer_norm_jvp(*leaves, tangents, one=True)
    r, z, *_ = reference.layer_norm(*wide, *(None,) * 5, True, True, 1e-6)
    weights = torch.linspace(-1, 1, z.numel(), device="cuda").reshape(z.shape)
    grads = torch.autograd.grad((out.out * weights).sum() + (out.residual * weights.flip(0)).sum(), leaves)
    exact = torch.autograd.grad((z * weights).sum() + (r * weights.flip(0)).sum(), wide)
    for one, other in zip(grads, exact, strict=True):
        assert cases.relative(one, other) < (8e-3 if dtype == BF16 else 1e-5)
    with torch.no_grad():
        quiet = layer_norm_jvp(*leaves, tangents, one=True)
    for value, tangent in ((quiet.residual, quiet.residual_tangent), (quiet.out, quiet.tangent)):
        assert tangent.data_ptr() == value.data_ptr() + value.numel() * value.element_size()
    assert torch.equal(quiet.out, out.out) and torch.equal(quiet.tangent, out.tangent)


def test_compile_without_breaks():
    args = cases.layer_norm_inputs(1, 256, 512, dtype=BF16, device="cuda")
    tangents = LayerNormTangents(*args[5:])
    leaves = [a.clone().requires_grad_() for a in args[:5]]
    weight = torch.ones(128, device="cuda", dtype=BF16).requires_grad_()

    def step(*leaves):
        out = layer_norm_jvp(*leaves, tangents, one=True)
        heads = out.out.unflatten(-1, (4, 128))
        normed, rate = rms_norm_jvp(heads, weight, tangent=out.tangent.detach().unflatten(-1, (4, 128)))
        value, rate = activation_jvp(normed, "gelu_tanh", rate.detach())
        return value.float().sum() + out.residual.float().square().sum(), rate.detach()

    loss, rate = step(*leaves)
    plain = torch.autograd.grad(loss, [*leaves, weight])
    compiled_loss, compiled_rate = torch.compile(step, fullgraph=True)(*leaves)
    compiled = torch.autograd.grad(compiled_loss, [*leaves, weight])
    assert torch.equal(rate, compiled_rate)
    for one, other in zip(compiled, plain, strict=True):
        assert cases.relative(one, other.double()) < 1e-2


def test_more_than_2_to_the_31_elements():
    x = torch.randn(1, 270_000, 8192, device="cuda", dtype=BF16)
    last = slice(-4, None)
    out = layer_norm_jvp(x).out
    exact = reference.layer_norm(x[:, last].double(), *(None,) * 9, True, False, 1e-6)[1]
    assert cases.relative(out[:, last], exact) < 3e-3
    del out
    value, _ = rms_norm_jvp(x.unflatten(-1, (64, 128)), torch.ones(128, device="cuda", dtype=BF16))
    ones = torch.ones(128, device="cuda").double()
    exact = reference.rms_norm(x[:, last].double().unflatten(-1, (64, 128)), None, ones, None, False, 1e-6)[0]
    assert cases.relative(value[:, last], exact) < 3e-3
    del value
    silu = activation_jvp(x, "silu")[0]
    assert torch.allclose(silu[:, last].float(), torch.nn.functional.silu(x[:, last].float()), atol=2e-2, rtol=1e-2)
