"""Gradients of Cosmos-Predict2 with a tangent pass under each kind of checkpointing, and what one sCM step costs."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from networks import cosmos_twin
from networks.checks import MODES, CountOps, assert_equal_gradients, gradients, loss_of
from networks.small_cosmos import small_inputs, small_network
from networks.small_wan import derivative, relative

from rcm_sidecar.dual import Dual, attention

EMBEDDINGS = ("x_embedder", "t_embedder", "t_embedding_norm")


def network(mode="none", frozen=False):
    net = small_network()
    net.activation_checkpointing = mode
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(not (frozen and name.startswith(EMBEDDINGS)))
    return net


def plain_gradients(frozen, repeats=1):
    """Of the twin, which knows nothing of Duals or checkpoints."""
    net = network(frozen=frozen)
    x, t, text, *_ = small_inputs()
    for repeat in range(repeats):
        velocity = cosmos_twin.velocity(dict(net.named_parameters()), net.config, x + repeat, t, text)
        loss_of(velocity).backward()
    return gradients(net)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("frozen", [False, True], ids=["all", "embeddings-frozen"])
@pytest.mark.parametrize("tangents", [False, True], ids=["plain", "dual"])
def test_gradient_of_the_primal(mode, frozen, tangents):
    net = network(mode, frozen)
    x, t, text, tx, tt = small_inputs()
    velocity = derivative(net, x, t, text, tx, tt).primal if tangents else net(x, t, text)
    loss_of(velocity).backward()
    assert_equal_gradients(gradients(net), plain_gradients(frozen))


def test_columns_of_the_padding_mask_get_zero_gradient():
    net = network()
    loss_of(derivative(net, *small_inputs()).primal).backward()
    gradient = net.x_embedder.proj[1].weight.grad
    assert gradient.shape == (32, 16)
    assert gradient[:, 12:].abs().max() == 0
    assert gradient[:, :12].abs().min() > 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("frozen", [False, True], ids=["all", "embeddings-frozen"])
def test_two_accumulated_backwards(mode, frozen):
    net = network(mode, frozen)
    x, t, text, tx, tt = small_inputs()
    losses = [loss_of(derivative(net, x + repeat, t, text, tx, tt).primal) for repeat in range(2)]
    for loss in losses:
        loss.backward()
    assert_equal_gradients(gradients(net), plain_gradients(frozen, repeats=2))


@pytest.mark.parametrize("mode", MODES)
def test_gradient_reaches_the_inputs(mode):
    net = network(mode)
    x, t, text, tx, tt = small_inputs()
    results = []
    for tangents in (False, True):
        leaf, states = x.clone().requires_grad_(), text.clone().requires_grad_()
        velocity = net(Dual(leaf, tx), Dual(t, tt), states).primal if tangents else net(leaf, t, states)
        loss_of(velocity).backward()
        results.append((leaf.grad, states.grad))
    for plain, dual in zip(*results, strict=True):
        assert relative(dual, plain) < 1e-12


@pytest.mark.parametrize("mode", MODES)
def test_checkpointing_changes_no_value(mode):
    wanted, out = (derivative(network(chosen), *small_inputs()) for chosen in ("none", mode))
    assert torch.equal(out.primal, wanted.primal)
    assert torch.equal(out.tangent, wanted.tangent)


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
    net = network(mode)
    layers = net.config.num_layers
    with CountOps() as forward:
        out = derivative(net, *small_inputs())
    assert attention_calls == {"forward_kernel": 2 * layers}
    # A block: q k v o, q o, the feed-forward pair and three bottleneck pairs with tangents, text k and v without.
    # Outside: patch, the time embedding's pair, the final bottleneck's pair and the head, all with tangents.
    assert forward.gemms == (2 * 14 + 2) * layers + 2 * 6
    with CountOps() as backward:
        loss_of(out.primal).backward()
    # Two products a linear layer; one for text k and v, patch, the first time layer: their inputs need no gradient.
    products = (2 * 14 + 2) * layers + 2 * 6 - 2
    recomputed = 0 if mode == "none" else 16 * layers
    assert backward.gemms == products + recomputed
    again = 2 * layers if mode == "block" else 0
    assert attention_calls == {"forward_kernel": 2 * layers + again, "backward_kernel": 2 * layers}
