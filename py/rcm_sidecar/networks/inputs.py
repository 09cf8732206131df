"""What every network checks before it runs: settings, and the shapes and dtypes of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from rcm_sidecar.dual import DualOrTensor, primal_of
from rcm_sidecar.errors import ConfigError
from rcm_sidecar.networks.spec import NetworkSpec

Checkpointing = Literal["none", "block", "asymmetric"]
Residual = Literal["fp32", "bf16"]
Role = Literal["student", "critic"]
Target = Literal["attention", "ffn"]


def one_of(what: str, value: Any, known: Sequence[str]) -> Any:
    """`value` when it is one of `known`.

    Raises:
        ConfigError: E_CONFIG_VALUE, naming what is known.
    """
    if value not in known:
        raise ConfigError("E_CONFIG_VALUE", f"{what} {value!r} is unknown", f"known: {', '.join(known)}")
    return value


def check_adapter(adapter: str | None, known: Sequence[str]) -> None:
    """Refuse a LoRA role the network has no adapters for.

    Raises:
        ConfigError: E_ADAPTER_UNKNOWN.
    """
    if adapter is not None and adapter not in known:
        hint = f"known: {', '.join(known)}" if known else None
        raise ConfigError("E_ADAPTER_UNKNOWN", f"this network has no adapter {adapter!r}", hint)


def check_inputs(spec: NetworkSpec, x: DualOrTensor, t: DualOrTensor, text: Tensor) -> None:
    """Refuse inputs that do not fit the network.

    Args:
        spec: Of the network.
        x: Should be [B, in_dim, T, H, W], sizes multiples of the patch and within `spec.max_latent`.
        t: Should be [B], float32 or float64.
        text: Should be [B, L, text_dim].

    Raises:
        ValueError: Shapes that do not fit.
        TypeError: Time in half precision (it would make the derivative wrong by half).
    """
    latent, time = primal_of(x), primal_of(t)
    if latent.dim() != 5 or latent.shape[1] != spec.in_dim:
        raise ValueError(f"x must be [B, {spec.in_dim}, T, H, W], not {list(latent.shape)}")
    if any(size % part for size, part in zip(latent.shape[2:], spec.patch, strict=True)):
        raise ValueError(f"x {list(latent.shape)} does not split into patches of {spec.patch}")
    if spec.max_latent and any(size > most for size, most in zip(latent.shape[2:], spec.max_latent, strict=True)):
        raise ValueError(f"x {list(latent.shape)} is larger than {spec.max_latent}, the last position of this network")
    if time.shape != latent.shape[:1]:
        raise ValueError(f"t must be [{latent.shape[0]}], not {list(time.shape)}")
    if time.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"t must be float32 or float64, not {time.dtype}")
    if text.dim() != 3 or text.shape[0] != latent.shape[0] or text.shape[2] != spec.text_dim:
        raise ValueError(f"text must be [{latent.shape[0]}, L, {spec.text_dim}], not {list(text.shape)}")
