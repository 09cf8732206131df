"""The networks that are measured, at their real sizes, with random weights made on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rcm_sidecar.networks import Network, build

SEED = 0


@dataclass(frozen=True, slots=True)
class Case:
    """A network at one size.

    Attributes:
        network: Registry name.
        latent: (frames, rows, columns) of the latent.
        layers: Number of blocks, None for all of the network's.
        batch: Samples of a pass.
        overrides: Further sizes; for the smoke cases only.
    """

    network: str
    latent: tuple[int, int, int]
    layers: int | None = None
    batch: int = 1
    overrides: tuple[tuple[str, int], ...] = ()


# Wan: 832x480, 77 frames, 31,200 tokens. Cosmos: 1360x768, 4,080 tokens.
CASES = {
    "wan2.1-1.3b": Case("wan2.1-t2v-1.3b", (20, 60, 104)),
    "wan2.1-14b-block": Case("wan2.1-t2v-14b", (20, 60, 104), layers=1),
    "wan2.1-14b": Case("wan2.1-t2v-14b", (20, 60, 104)),
    "cosmos-2b": Case("cosmos-predict2-t2i-2b", (1, 96, 170)),
    "cosmos-2b-batch-8": Case("cosmos-predict2-t2i-2b", (1, 96, 170), batch=8),
    "cosmos-14b": Case("cosmos-predict2-t2i-14b", (1, 96, 170)),
    "smoke": Case("wan2.1-tiny", (2, 8, 8), overrides=(("text_len", 16),)),
    "smoke-cosmos": Case("cosmos-predict2-tiny", (1, 8, 8), batch=2, overrides=(("text_len", 16),)),
}


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a network and the sCM loss are called with, for B samples; everything random.

    Attributes:
        x: Noisy latent [B, C, T, H, W], float32.
        t: Network time [B], float32.
        text: Text states [B, 512, text_dim], bf16.
        negative: Of the negative prompt, like `text`.
        tx: Tangent of `x`.
        tt: Tangent of `t`.
        u: TrigFlow time [B].
    """

    x: Tensor
    t: Tensor
    text: Tensor
    negative: Tensor
    tx: Tensor
    tt: Tensor
    u: Tensor


def make_network(
    case: Case, layers: int | None, device: torch.device, storage: torch.dtype = torch.bfloat16
) -> Network:
    """The network with every parameter random (a zero head would make all gradients zero), frozen.

    Args:
        case: Which.
        layers: Number of blocks, None for the case's.
        device: Where it is built.
        storage: Dtype of the parameters; those of the time path and the head are float32.
    """
    generator = torch.Generator(device).manual_seed(SEED)
    net = build(case.network, device=device, dtype=storage, generator=generator, **_sizes(case, layers))
    for name in net.wide_parts:
        net.get_submodule(name).float()
    for parameter in net.parameters():
        if not parameter.detach().any():
            parameter.data.normal_(std=0.02, generator=generator)
    return net.requires_grad_(False)


def outline(case: Case, layers: int | None) -> Network:
    """The network's shapes, without memory."""
    return build(case.network, device="meta", **_sizes(case, layers))


def make_inputs(net: Network, case: Case, device: torch.device) -> Inputs:
    """Inputs for `net`, the same for each call."""
    generator = torch.Generator(device).manual_seed(SEED + 1)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    latent = (case.batch, net.spec.in_dim, *case.latent)
    states = (case.batch, net.spec.text_len, net.spec.text_dim)
    scale = net.spec.time_scale
    return Inputs(
        x=randn(*latent),
        t=torch.full((case.batch,), 0.6 * scale, device=device),
        text=randn(*states).bfloat16(),
        negative=randn(*states).bfloat16(),
        tx=randn(*latent),
        tt=torch.full((case.batch,), 0.24 * scale, device=device),
        u=torch.full((case.batch,), 0.9, device=device),
    )


def token_count(net: Network, case: Case) -> int:
    """Tokens of one sample."""
    frames, rows, columns = (size // part for size, part in zip(case.latent, net.spec.patch, strict=True))
    return frames * rows * columns


def _sizes(case: Case, layers: int | None) -> dict[str, Any]:
    count = layers or case.layers
    return {**dict(case.overrides), **({} if count is None else {"num_layers": count})}
