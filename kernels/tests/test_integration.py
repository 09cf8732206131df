"""PyTorch integration on the CPU: operators, autograd, FLOP counts, compile, checkpointing, autocast, vmap."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import inputs
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

from rcm_kernels import (
    LayerNormTangents,
    activation_jvp,
    attention,
    attention_backward,
    attention_jvp,
    layer_norm_jvp,
    rms_norm_jvp,
)

F64 = torch.float64
ops = torch.ops.rcm_kernels


def leaves(*tensors):
    return [x.clone().requires_grad_() for x in tensors]


@pytest.mark.parametrize("pattern", ["", "q", "v", "qkv"])
def test_operators_pass_opcheck(pattern):
    q, k, v, tq, tk, tv = inputs(1, 2, 6, 8, 16, dtype=F64, pattern=pattern)
    q, k, v = leaves(q, k, v)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    if pattern == "":
        torch.library.opcheck(ops.attn.default, (q, k, v, 0.25, 0), test_utils=checks)
    elif pattern == "q":
        torch.library.opcheck(ops.attn_jvp_q.default, (q, k, v, tq, 0.25, 3), test_utils=checks)
    elif pattern == "qkv":
        torch.library.opcheck(ops.attn_jvp.default, (q, k, v, tq, tk, tv, 0.25, 0), test_utils=checks)
    else:
        torch.library.opcheck(ops.attn_jvp_some.default, (q, k, v, None, None, tv, 0.25, 0), test_utils=checks)


@pytest.mark.parametrize("layout", ["bhld", "blhd", "packed"])
def test_fake_strides_equal_real_strides(layout):
    from torch._subclasses.fake_tensor import FakeTensorMode

    def run(*args):
        result = attention_jvp(*args)
        gradients = attention_backward(result.out, *args[:3], result.out, result.lse)
        return (*result, *attention_jvp(*args[:3])[:1], *gradients)

    args = inputs(2, 3, 6, 6, 16, dtype=torch.float32, layout=layout)
    real = run(*args)
    with FakeTensorMode() as mode:
        fake = run(*(mode.from_tensor(x) for x in args))
    for one, other in zip(fake, real, strict=True):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())


@pytest.mark.parametrize("pattern", ["q", "kv", "qkv"])
def test_gradient_of_the_primal_is_that_of_plain_attention(pattern):
    q, k, v, tq, tk, tv = inputs(2, 2, 6, 8, 16, dtype=F64, pattern=pattern)
    one, two = leaves(q, k, v), leaves(q, k, v)
    attention_jvp(*one, tq, tk, tv).out.square().sum().backward()
    (torch.softmax(two[0] @ two[1].mT / 4, -1) @ two[2]).square().sum().backward()
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_gradients_of_tangent_lse_and_mu_raise():
    q, k, v, tq, tk, tv = inputs(1, 2, 6, 8, 16, dtype=F64)
    for i, name in ((1, "tangent"), (2, "log-sum-exp"), (3, "mu")):
        result = attention_jvp(*leaves(q, k, v), tq, tk, tv)
        with pytest.raises(RuntimeError, match=f"the {name} has no gradient"):
            (result.out.sum() + result[i].sum()).backward()
    with pytest.raises(RuntimeError, match="the log-sum-exp has no gradient"):
        attention_jvp(*leaves(q, k, v)).lse.sum().backward()


def test_second_derivative_raises():
    q, k, v = leaves(*inputs(1, 1, 4, 4, 16, dtype=F64)[:3])
    (grad,) = torch.autograd.grad(attention(q, k, v).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


def test_gradient_through_the_forward_mode_tangent_raises():
    q, k, v, tq, tk, tv = inputs(1, 1, 4, 4, 16, dtype=F64)

    def loss(x):
        return torch.func.jvp(attention, (x, k, v), (tq, tk, tv))[1].sum()

    with pytest.raises(RuntimeError):
        torch.func.grad(loss)(q)


def test_flops_follow_the_pattern_and_the_mask():
    unit = 2 * 2 * 3 * 10 * 8 * 16
    for pattern, products in {"": 2, "q": 4, "k": 4, "v": 3, "qk": 5, "kv": 5, "qkv": 6}.items():
        args = inputs(2, 3, 10, 8, 16, dtype=torch.float32, pattern=pattern)
        with FlopCounterMode(display=False) as counter:
            attention_jvp(*args)
        assert counter.get_total_flops() == products * unit, pattern
    args = inputs(1, 1, 8, 8, 16, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        attention_jvp(*args, mask="causal")
    assert counter.get_total_flops() == 12 * 16 * 36
    q, k, v = leaves(*args[:3])
    with FlopCounterMode(display=False) as counter:
        attention(q, k, v).sum().backward()
    assert counter.get_total_flops() == (4 + 10) * 16 * 64


def test_compile_fullgraph_runs_the_operator_once():
    q, k, v, tq, tk, tv = inputs(1, 2, 6, 8, 16, dtype=torch.float32)
    graphs = []

    def collect(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    from functorch.compile import aot_function, make_boxed_func

    def step(a, b, c, ta, tb, tc):
        out, tangent, _, _ = attention_jvp(a, b, c, ta, tb, tc)
        return out * 2, tangent.detach()

    compiled = aot_function(
        step,
        fw_compiler=lambda g, x: make_boxed_func(collect(g, x)),
        bw_compiler=lambda g, x: make_boxed_func(collect(g, x)),
    )
    inputs_ = leaves(q, k, v)
    out, tangent = compiled(*inputs_, tq, tk, tv)
    out.sum().backward()
    forward, backward = graphs
    assert sum("attn_jvp" in name for name in forward) == 1
    assert sum("attn_jvp" in name for name in backward) == 0 and sum("attn_backward" in n for n in backward) == 1
    plain = leaves(q, k, v)
    eager_out, eager_tangent = step(*plain, tq, tk, tv)
    eager_out.sum().backward()
    torch.testing.assert_close((out, tangent), (eager_out, eager_tangent))
    torch.testing.assert_close(inputs_[0].grad, plain[0].grad)


def test_dynamo_traces_without_breaks():
    q, k, v, tq, tk, tv = inputs(1, 2, 6, 8, 16, dtype=torch.float32)
    compiled = torch.compile(
        lambda *x: attention_jvp(*x, mask=("block-causal", 3)), fullgraph=True, backend="aot_eager"
    )
    for a, b in zip(
        compiled(q, k, v, tq, tk, tv), attention_jvp(q, k, v, tq, tk, tv, mask=("block-causal", 3)), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("pattern", ["", "q", "v", "qkv"])
def test_compile_takes_results_that_are_not_detached(pattern):
    """A compiled backward is traced with a gradient for every result; only one that is not zero is an error."""
    args = inputs(1, 2, 6, 8, 16, dtype=torch.float32, pattern=pattern)
    compiled = torch.compile(attention_jvp, fullgraph=True, backend="aot_eager")
    one, two = leaves(*args[:3]), leaves(*args[:3])
    compiled(*one, *args[3:]).out.square().sum().backward()
    attention_jvp(*two, *args[3:]).out.square().sum().backward()
    for a, b in zip(one, two, strict=True):
        assert b.grad.abs().sum() > 0
        torch.testing.assert_close(a.grad, b.grad)
    for i, name in ((1, "tangent"), (2, "log-sum-exp"), (3, "mu")):
        if pattern or i == 2:
            result = compiled(*leaves(*args[:3]), *args[3:])
            with pytest.raises(RuntimeError, match=f"the {name} has no gradient"):
                (result.out.sum() + result[i].sum()).backward()


def test_compile_raises_for_a_tangent_that_stays_inside():
    args = inputs(1, 2, 6, 8, 16, dtype=torch.float32)
    compiled = torch.compile(lambda *x: attention_jvp(*x).tangent.sum(), fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match="the tangent has no gradient"):
        compiled(*leaves(*args[:3]), *args[3:]).backward()


def _layer_norm(x, rate):
    found = layer_norm_jvp(x, x.sin(), tangents=LayerNormTangents(x=rate, y=rate))
    return found.residual + found.out, found.residual_tangent, found.tangent


def _rms_norm(x, rate):
    return rms_norm_jvp(x.unflatten(-1, (2, 4)), torch.ones(8), tangent=rate.unflatten(-1, (2, 4)))


def _activations(x, rate):
    y, ty = activation_jvp(x, "gelu_tanh", rate)
    return activation_jvp(y, "silu", ty)


@pytest.mark.parametrize("step", [_layer_norm, _rms_norm, _activations])
def test_compiled_elementwise_tangents_raise_too(step):
    torch.manual_seed(0)
    x, rate = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    (one,), (two,) = leaves(x), leaves(x)
    compiled(one, rate)[0].square().sum().backward()
    step(two, rate)[0].square().sum().backward()
    torch.testing.assert_close(one.grad, two.grad)
    for i in range(1, len(step(x, rate))):
        result = compiled(*leaves(x), rate)
        with pytest.raises(RuntimeError, match="the tangent of .* has no gradient"):
            (result[0].sum() + result[i].sum()).backward()


class Count(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


def test_selective_checkpointing_keeps_the_operator():
    q, k, v, tq, tk, tv = inputs(1, 2, 6, 8, 16, dtype=F64)

    def block(a, b, c):
        out, tangent, _, _ = attention_jvp(a.sin(), b, c, tq, tk, tv)
        return out.sin(), tangent.detach()

    def policy(_, op, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE if op == ops.attn_jvp.default else CheckpointPolicy.PREFER_RECOMPUTE

    runs = {}
    for name, contexts in {
        "all": {},
        "kept": {"context_fn": lambda: create_selective_checkpoint_contexts(policy)},
    }.items():
        one = leaves(q, k, v)
        with Count() as count:
            checkpoint(block, *one, use_reentrant=False, **contexts)[0].sum().backward()
        runs[name] = sum("attn_jvp" in call for call in count.calls)
        two = leaves(q, k, v)
        block(*two)[0].sum().backward()
        torch.testing.assert_close([x.grad for x in one], [x.grad for x in two])
    assert runs == {"all": 2, "kept": 1}


def test_autocast_casts_all_but_fp64():
    args = inputs(1, 2, 6, 8, 16, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = attention_jvp(*args)
        assert result.out.dtype == result.tangent.dtype == torch.bfloat16
        mixed = attention_jvp(args[0].bfloat16(), *args[1:])
        assert torch.equal(mixed.out, result.out)
        assert attention_jvp(*(x.double() for x in args)).out.dtype == F64
    assert attention_jvp(*args).out.dtype == torch.float32


def test_inference_mode_and_vmap():
    args = inputs(2, 2, 6, 8, 16, dtype=torch.float32)
    with torch.inference_mode():
        attention_jvp(*args)
    with pytest.raises(RuntimeError, match="vmap"):
        torch.vmap(lambda x: attention_jvp(x, *args[1:3]).out)(args[0][None])
    with pytest.raises(RuntimeError, match="rcm_kernels: .* vmap; put the mapped dimension into the batch"):
        torch.vmap(lambda x: torch.func.jvp(lambda y: attention(y, *args[1:3]), (x,), (x,))[1])(args[0][None])


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_jacobian_of_the_forward_mode_door():
    q, k, v = inputs(1, 2, 3, 4, 2, dtype=F64)[:3]
    plain = torch.func.jacfwd(lambda x: torch.softmax(x @ k.mT / 2**0.5, -1) @ v)(q)
    torch.testing.assert_close(torch.func.jacfwd(lambda x: attention(x, k, v))(q), plain)


def test_import_needs_no_triton():
    code = (
        "import sys; sys.modules['triton'] = None; import torch, rcm_kernels as r; x = torch.randn(1, 1, 4, 8);"
        "r.attention_jvp(x, x, x, x); assert not any(m.startswith('rcm_kernels.attention_jvp') for m in sys.modules)"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
