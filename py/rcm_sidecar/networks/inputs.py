"""What every network checks before it runs: settings, and the shapes and dtypes of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Literal

import torch
from torch import Tensor

from rcm_sidecar.dual import DualOrTensor, primal_of
from rcm_sidecar.errors import ConfigError
from rcm_sidecar.networks.spec import NetworkSpec

Checkpointing = Literal["none", "selective", "block", "asymmetric"]
Role = Literal["student", "critic"]
Target = Literal["attention", "ffn"]


class Choice:
    """An attribute of a network that takes one of a few words, the first one until it is set.

    Setting another word raises ConfigError, E_CONFIG_VALUE, naming those that are known.
    """

    def __init__(self, *known: str) -> None:
        """Declare it in the body of a class."""
        self._known = known

    def __set_name__(self, owner: type, name: str) -> None:
        """Python tells the attribute's name."""
        self._name = name

    def __get__(self, net: Any, owner: type) -> Any:
        """The word; of the class itself, this declaration."""
        if net is None:
            return self
        return net.__dict__.get(self._name, self._known[0])

    def __set__(self, net: Any, value: Any) -> None:
        """Refuse what is not known."""
        if value not in self._known:
            what, known = self._name.replace("_", " "), ", ".join(self._known)
            raise ConfigError("E_CONFIG_VALUE", f"{what} {value!r} is unknown", f"known: {known}")
        net.__dict__[self._name] = value


def check_sizes(config: Any) -> None:
    """Refuse sizes that fit no network: all positive, a width that splits into heads of even size.

    Args:
        config: A dataclass of numbers and tuples of them with `dim` and `num_heads`.

    Raises:
        ConfigError: E_NETWORK_SIZE.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        if any(part <= 0 for part in (value if isinstance(value, tuple) else (value,))):
            raise ConfigError("E_NETWORK_SIZE", f"{field.name} must be positive, not {value!r}")
    if config.dim % config.num_heads or (config.dim // config.num_heads) % 2:
        raise ConfigError(
            "E_NETWORK_SIZE", f"dim {config.dim} does not split into {config.num_heads} heads of even size"
        )


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
