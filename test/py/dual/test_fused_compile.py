"""Compiled block bodies through the kernels' CPU form: one graph a body, the gradients of eager code.

`compute.compile` is not offered: on an H200 the fused kernels alone are as fast (docs/results/network.md), and a
compiled body can neither keep results nor take them, so it goes with none and block checkpointing only.
"""

from __future__ import annotations

import pytest
import torch
from networks import small_wan
from networks.checks import assert_equal_gradients, gradients, loss_of

from rcm_sidecar.dual import attention, fused


@pytest.fixture(autouse=True)
def through_kernels(monkeypatch):
    monkeypatch.setattr(fused, "runs_fused", lambda x: True)
    monkeypatch.setattr(attention, "runs_fused", lambda q: True)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def step(mode, compiled, tangents=True):
    """Gradients of one forward and backward; a body that is not one whole graph raises."""
    net = small_wan.small_network(num_layers=1)
    net.activation_checkpointing = mode
    if compiled:
        for block in net.blocks:
            block._body = torch.compile(block._body, dynamic=False, fullgraph=True, backend="aot_eager")
    x, t, text, tx, tt = small_wan.small_inputs()
    out = small_wan.derivative(net, x, t, text, tx, tt).primal if tangents else net(x, t, text)
    loss_of(out).backward()
    return gradients(net)


@pytest.mark.parametrize(
    ("mode", "tangents"),
    [("block", True), *(pytest.param(*case, marks=pytest.mark.long) for case in (("none", True), ("none", False)))],
)
def test_a_compiled_body_is_one_graph_with_the_eager_gradients(mode, tangents):
    assert_equal_gradients(step(mode, True, tangents), step(mode, False, tangents))


@pytest.mark.parametrize("mode", ["asymmetric", "selective"])
def test_a_compiled_body_does_not_go_with_kept_results(mode):
    """A compiled dual forward saves what its own graph needs, more than a recomputation that is handed O and LSE."""
    with pytest.raises(RuntimeError, match="a compiled body cannot keep any"):
        step(mode, compiled=True)
