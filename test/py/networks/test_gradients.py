"""Gradients with a tangent pass under each kind of checkpointing, and what one sCM step costs, of both families."""

from __future__ import annotations

import weakref
from collections import Counter

import pytest
import torch
from networks.checks import MODES, TOLERANCE, CountOps, assert_equal_gradients, gradients, loss_of
from networks.small_wan import derivative, relative

from rcm_sidecar.dual import Dual, attention
from rcm_sidecar.dual.kept import KeptResults


def plain_gradients(family, frozen, repeats=1):
    """Of the twin, which knows nothing of Duals or checkpoints."""
    net = family.network(frozen=frozen)
    x, t, text, *_ = family.small.small_inputs()
    for repeat in range(repeats):
        velocity = family.twin.velocity(dict(net.named_parameters()), net.config, x + repeat, t, text)
        loss_of(velocity).backward()
    return gradients(net)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("frozen", [False, True], ids=["all", "embeddings-frozen"])
@pytest.mark.parametrize("tangents", [False, True], ids=["plain", "dual"])
def test_gradient_of_the_primal(family, mode, frozen, tangents):
    net = family.network(mode, frozen)
    x, t, text, tx, tt = family.small.small_inputs()
    velocity = derivative(net, x, t, text, tx, tt).primal if tangents else net(x, t, text)
    loss_of(velocity).backward()
    assert_equal_gradients(gradients(net), plain_gradients(family, frozen))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("frozen", [False, True], ids=["all", "embeddings-frozen"])
def test_two_accumulated_backwards(family, mode, frozen):
    net = family.network(mode, frozen)
    x, t, text, tx, tt = family.small.small_inputs()
    # Both graphs live at once and are walked in turn: nothing a block keeps may be shared between calls.
    losses = [loss_of(derivative(net, x + repeat, t, text, tx, tt).primal) for repeat in range(2)]
    for loss in losses:
        loss.backward()
    assert_equal_gradients(gradients(net), plain_gradients(family, frozen, repeats=2))


@pytest.mark.parametrize("mode", MODES)
def test_two_backwards_through_one_graph(family, mode):
    net = family.network(mode)
    loss = loss_of(derivative(net, *family.small.small_inputs()).primal)
    loss.backward(retain_graph=True)
    once = {name: gradient.clone() for name, gradient in gradients(net).items()}
    loss.backward()
    assert_equal_gradients(gradients(net), {name: 2 * gradient for name, gradient in once.items()})


@pytest.mark.parametrize("mode", MODES)
def test_gradient_reaches_the_input(family, mode):
    net = family.network(mode)
    x, t, text, tx, tt = family.small.small_inputs()
    results = []
    for tangents in (False, True):
        leaf, states = x.clone().requires_grad_(), text.clone().requires_grad_()
        velocity = net(Dual(leaf, tx), Dual(t, tt), states).primal if tangents else net(leaf, t, states)
        loss_of(velocity).backward()
        results.append((leaf.grad, states.grad))
    for plain, dual in zip(*results, strict=True):
        assert relative(dual, plain) < TOLERANCE


@pytest.mark.parametrize("mode", MODES)
def test_checkpointing_changes_no_value(family, mode):
    inputs = family.small.small_inputs()
    wanted, out = (derivative(family.network(chosen), *inputs) for chosen in ("none", mode))
    assert torch.equal(out.primal, wanted.primal)
    assert torch.equal(out.tangent, wanted.tangent)


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputed_activations_are_bit_equal(family, mode, dtype):
    net = family.small.small_network(torch.float32).to(dtype)
    net.activation_checkpointing = mode
    seen = {}

    def watch(name):
        def hook(_module, _inputs, out):
            seen.setdefault(name, []).append(out.primal if isinstance(out, Dual) else out)

        return hook

    for name, module in net.blocks.named_modules():
        if name.count(".") >= 1 and not isinstance(module, torch.nn.Sequential):
            module.register_forward_hook(watch(name))
    loss_of(derivative(net, *family.small.small_inputs(torch.float32)).primal).backward()
    # A norm without weights may serve a block several times; what ran an odd number of times ran in the forward only.
    recomputed = {name: values for name, values in seen.items() if len(values) % 2 == 0}
    # Early stop may leave out what only feeds the block's output; everything else is computed twice.
    assert len(recomputed) >= len(seen) - net.config.num_layers
    assert len(recomputed) > 20
    for name, values in recomputed.items():
        for first, second in zip(values[: len(values) // 2], values[len(values) // 2 :], strict=True):
            assert torch.equal(first, second), name


@pytest.fixture
def attention_calls(monkeypatch):
    calls = Counter()

    def counting(name):
        original = getattr(attention, name)

        def call(*args):
            calls[name] += 1
            return original(*args)

        monkeypatch.setattr(attention, name, call)

    for name in ("forward_kernel", "backward_kernel"):
        counting(name)
    return calls


@pytest.mark.parametrize("mode", MODES)
def test_cost_of_one_scm_step(family, mode, attention_calls):
    """One dual forward, one recomputation, one backward; no second student pass and no tangent computed twice."""
    net = family.network(mode)
    inputs = family.small.small_inputs()
    layers = net.config.num_layers
    with CountOps() as forward:
        out = derivative(net, *inputs)
    assert attention_calls == {"forward_kernel": 2 * layers}
    assert forward.gemms == family.forward_gemms(layers)
    with CountOps() as backward:
        loss_of(out.primal).backward()
    recomputed = 0 if mode in ("none", "selective") else family.recomputed_gemms(layers)
    assert backward.gemms == family.backward_gemms(layers) + recomputed
    again = 2 * layers if mode == "block" else 0
    assert attention_calls == {"forward_kernel": 2 * layers + again, "backward_kernel": 2 * layers}
    # Attention's own products: a backward has 5, an eager forward of a primal 2, none where its results are kept.
    assert backward.counts["bmm"] + backward.counts["baddbmm"] == 5 * 2 * layers + 2 * again


def test_a_forward_without_gradient_keeps_and_recomputes_nothing(family, attention_calls):
    net = family.network("asymmetric")
    with torch.no_grad():
        out = derivative(net, *family.small.small_inputs())
    assert not out.primal.requires_grad
    assert attention_calls == {"forward_kernel": 2 * net.config.num_layers}


@pytest.mark.parametrize("mode", MODES[1:])
def test_a_checkpointed_block_does_not_hold_the_tangents(family, mode):
    net = family.network(mode)
    watched = []
    net.blocks[0].register_forward_hook(lambda _m, _i, out: watched.append(weakref.ref(out.tangent)))
    out = derivative(net, *family.small.small_inputs())
    assert watched[0]() is None
    assert out.primal.requires_grad


def test_a_recomputation_that_makes_other_calls_is_an_error():
    kept = KeptResults(["attention"])
    out, lse = torch.ones(1, 1, 2, 4), torch.zeros(1, 1, 2)
    with kept.recording():
        kept.record("attention", out, lse)
        kept.record("product", out)
    for _ in range(2):
        with kept.replaying():
            assert kept.replay("product") is None, "of a kind that is not kept"
            assert kept.replay("attention") == (out, lse)
            with pytest.raises(RuntimeError, match="a result of attention"):
                kept.replay("attention")
    both = KeptResults(["attention", "product"])
    both.record("product", out)
    with both.replaying(), pytest.raises(RuntimeError, match="a result of attention"):
        both.replay("attention")


def test_a_block_that_keeps_nothing_of_what_it_should_is_an_error():
    with pytest.raises(RuntimeError, match="a compiled body cannot keep any"), KeptResults(["attention"]).recording():
        pass
