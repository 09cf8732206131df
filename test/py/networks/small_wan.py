"""A small Wan2.1 network with every parameter random, and inputs for it. For tests only."""

from __future__ import annotations

import torch

from rcm_sidecar.dual import Dual
from rcm_sidecar.networks import build

SIZES = dict(dim=24, num_heads=2, num_layers=2, ffn_dim=40, text_dim=10, freq_dim=16, in_dim=3, out_dim=2)


def small_network(dtype=torch.float64, seed=0, **overrides):
    """No parameter is zero, so nothing passes because an output is zero."""
    net = build("wan2.1-tiny", dtype=dtype, **{**SIZES, **overrides})
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.3
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale)
    return net


def small_inputs(dtype=torch.float64, batch=2, seed=1):
    """x [B,3,2,4,6], t [B] in 0..1000, text [B,5,10], tx, tt."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    t = torch.tensor([777.25, 312.6], dtype=dtype)[:batch]
    return randn(batch, 3, 2, 4, 6), t, randn(batch, 5, 10), randn(batch, 3, 2, 4, 6), 100 * randn(batch)


def derivative(net, x, t, text, tx, tt):
    """The Dual velocity of `net`."""
    return net(Dual(x, tx), Dual(t, tt), text)


def relative(a, b):
    """Norm of the difference over the norm of `b`."""
    return ((a - b).norm() / b.norm()).item()
