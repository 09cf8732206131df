"""What the tests of several networks measure: gradients, and the number of products and attention calls."""

from __future__ import annotations

from collections import Counter

import torch
from networks.small_wan import relative
from torch.utils._python_dispatch import TorchDispatchMode

MODES = ["none", "selective", "block", "asymmetric"]
TOLERANCE = 1e-12


def loss_of(velocity):
    """A scalar that weighs every element differently."""
    weights = torch.linspace(-1, 2, velocity.numel(), dtype=velocity.dtype).reshape(velocity.shape)
    return (velocity * weights).sum() + velocity.square().sum()


def gradients(net):
    """By name, of everything that trains."""
    return {name: parameter.grad for name, parameter in net.named_parameters() if parameter.requires_grad}


def assert_equal_gradients(actual, wanted, tolerance=TOLERANCE):
    """Present, not zero and equal; zero where `wanted` is."""
    assert actual.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert actual[name] is not None, f"{name} got no gradient"
        assert gradient.norm() > 0, f"{name} has a zero gradient: the test shows nothing"
        assert relative(actual[name], gradient) < tolerance, name


class CountOps(TorchDispatchMode):
    """Counts the aten ops inside it."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    @property
    def gemms(self):
        return self.counts["mm"] + self.counts["addmm"]
