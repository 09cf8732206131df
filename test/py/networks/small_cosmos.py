"""A small Cosmos-Predict2 network with every parameter random, and inputs for it. For tests only."""

from __future__ import annotations

import torch

from rcm_sidecar.networks import build

SIZES = dict(dim=32, num_heads=2, num_layers=2, mlp_ratio=1.5, text_dim=10, adaln_lora_dim=6, in_dim=3, out_dim=2)


def small_network(dtype=torch.float64, seed=0, **overrides):
    """No parameter is zero, so nothing passes because an output is zero."""
    net = build("cosmos-predict2-tiny", dtype=dtype, **{**SIZES, **overrides})
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.copy_(noise * parameter.shape[1] ** -0.5 if parameter.dim() > 1 else 1 + 0.3 * noise)
    return net


def small_inputs(dtype=torch.float64, batch=2, seed=1, frames=1):
    """x [B,3,T,4,6], t [B] in 0..1, text [B,5,10], tx, tt."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    t = torch.tensor([0.77725, 0.3126], dtype=dtype)[:batch]
    return randn(batch, 3, frames, 4, 6), t, randn(batch, 5, 10), randn(batch, 3, frames, 4, 6), 0.3 * randn(batch)
