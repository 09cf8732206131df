"""Gradients with a tangent pass, under each kind of checkpointing, and what one sCM step costs."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from networks import wan_twin
from networks.checks import MODES, TOLERANCE, CountOps, assert_equal_gradients, gradients, loss_of
from networks.small_wan import derivative, relative, small_inputs, small_network

from rcm_sidecar.dual import Dual, attention

EMBEDDINGS = ("patch_embedding", "text_embedding", "time_embedding", "time_projection")


def freeze_embeddings(net):
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(not name.startswith(EMBEDDINGS))


def plain_gradients(frozen, repeats=1):
    """Of the twin, which knows nothing of Duals or checkpoints."""
    net = small_network()
    if frozen:
        freeze_embeddings(net)
    x, t, text, *_ = small_inputs()
    for repeat in range(repeats):
        velocity = wan_twin.velocity(dict(net.named_parameters()), net.config, x + repeat, t, text)
        loss_of(velocity).backward()
    return gradients(net)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("frozen", [False, True], ids=["all", "embeddings-frozen"])
@pytest.mark.parametrize("tangents", [False, True], ids=["plain", "dual"])
def test_gradient_of_the_primal(mode, frozen, tangents):
    net = small_network()
    net.activation_checkpointing = mode
    if frozen:
        freeze_embeddings(net)
    x, t, text, tx, tt = small_inputs()
    velocity = derivative(net, x, t, text, tx, tt).primal if tangents else net(x, t, text)
    loss_of(velocity).backward()
    assert_equal_gradients(gradients(net), plain_gradients(frozen))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("frozen", [False, True], ids=["all", "embeddings-frozen"])
def test_two_accumulated_backwards(mode, frozen):
    net = small_network()
    net.activation_checkpointing = mode
    if frozen:
        freeze_embeddings(net)
    x, t, text, tx, tt = small_inputs()
    # Both graphs live at once and are walked in turn: nothing a block keeps may be shared between calls.
    losses = [loss_of(derivative(net, x + repeat, t, text, tx, tt).primal) for repeat in range(2)]
    for loss in losses:
        loss.backward()
    assert_equal_gradients(gradients(net), plain_gradients(frozen, repeats=2))


@pytest.mark.parametrize("mode", MODES)
def test_two_backwards_through_one_graph(mode):
    net = small_network()
    net.activation_checkpointing = mode
    loss = loss_of(derivative(net, *small_inputs()).primal)
    loss.backward(retain_graph=True)
    once = {name: gradient.clone() for name, gradient in gradients(net).items()}
    loss.backward()
    assert_equal_gradients(gradients(net), {name: 2 * gradient for name, gradient in once.items()})


@pytest.mark.parametrize("mode", MODES)
def test_gradient_reaches_the_input(mode):
    net = small_network()
    net.activation_checkpointing = mode
    x, t, text, tx, tt = small_inputs()
    results = []
    for tangents in (False, True):
        leaf, states = x.clone().requires_grad_(), text.clone().requires_grad_()
        velocity = net(Dual(leaf, tx), Dual(t, tt), states).primal if tangents else net(leaf, t, states)
        loss_of(velocity).backward()
        results.append((leaf.grad, states.grad))
    for plain, dual in zip(*results, strict=True):
        assert relative(dual, plain) < TOLERANCE


@pytest.mark.parametrize("mode", MODES)
def test_checkpointing_changes_no_value(mode):
    net = small_network()
    wanted = derivative(net, *small_inputs())
    net.activation_checkpointing = mode
    out = derivative(net, *small_inputs())
    assert torch.equal(out.primal, wanted.primal)
    assert torch.equal(out.tangent, wanted.tangent)


@pytest.mark.parametrize("mode", ["block", "asymmetric"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputed_activations_are_bit_equal(mode, dtype):
    net = small_network(torch.float32).to(dtype)
    net.activation_checkpointing = mode
    seen = {}

    def watch(name):
        def hook(_module, _inputs, out):
            seen.setdefault(name, []).append(out.primal if isinstance(out, Dual) else out)

        return hook

    for name, module in net.blocks.named_modules():
        if name.count(".") >= 1 and not isinstance(module, torch.nn.Sequential):
            module.register_forward_hook(watch(name))
    loss_of(derivative(net, *small_inputs(torch.float32)).primal).backward()
    recomputed = {name: values for name, values in seen.items() if len(values) == 2}
    # Early stop may leave out what only feeds the block's output; everything else is computed twice.
    assert len(recomputed) >= len(seen) - net.config.num_layers
    assert len(recomputed) > 20
    for name, (first, second) in recomputed.items():
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
def test_cost_of_one_scm_step(mode, attention_calls):
    """One dual forward, one recomputation, one backward; no second student pass and no tangent computed twice."""
    net = small_network()
    net.activation_checkpointing = mode
    inputs = small_inputs()
    layers = net.config.num_layers
    with CountOps() as forward:
        out = derivative(net, *inputs)
    assert attention_calls == {"forward_kernel": 2 * layers}
    # A block: q k v o, q o and the feed-forward pair with tangents, text k and v without. Outside: patch, the time
    # embedding's pair, its projection and the head with tangents, the text embedding's pair without.
    assert forward.gemms == (2 * 8 + 2) * layers + 2 * 5 + 2
    with CountOps() as backward:
        loss_of(out.primal).backward()
    # Two products a linear layer; none for the inputs of the patch, time and text embeddings, which need no gradient.
    products = 2 * 10 * layers + 2 * 7 - 3
    recomputed = 0 if mode == "none" else 10 * layers
    assert backward.gemms == products + recomputed
    again = 2 * layers if mode == "block" else 0
    assert attention_calls == {"forward_kernel": 2 * layers + again, "backward_kernel": 2 * layers}
    # Attention's own products: a backward has 5, an eager forward of a primal 2, and an asymmetric step none of these.
    assert backward.counts["bmm"] + backward.counts["baddbmm"] == 5 * 2 * layers + 2 * again


def test_a_forward_without_gradient_keeps_and_recomputes_nothing(attention_calls):
    net = small_network()
    net.activation_checkpointing = "asymmetric"
    with torch.no_grad():
        out = derivative(net, *small_inputs())
    assert not out.primal.requires_grad
    assert attention_calls == {"forward_kernel": 2 * net.config.num_layers}


def test_a_checkpointed_block_does_not_hold_the_tangents():
    import weakref

    net = small_network()
    net.activation_checkpointing = "asymmetric"
    watched = []
    net.blocks[0].register_forward_hook(lambda _m, _i, out: watched.append(weakref.ref(out.tangent)))
    out = derivative(net, *small_inputs())
    assert watched[0]() is None
    assert out.primal.requires_grad


def test_kept_attention_in_another_order_is_an_error():
    kept = attention.KeptAttention(keep=True)
    out, lse = torch.ones(1, 1, 2, 4), torch.zeros(1, 1, 2)
    kept.record(out, lse)
    with kept.recomputation():
        assert kept.replay()[0] is out
        with pytest.raises(IndexError):
            kept.replay()
    with kept.recomputation():
        assert kept.replay()[1] is lse
