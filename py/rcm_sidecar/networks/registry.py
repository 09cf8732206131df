"""Networks by name. A family adds one entry to `FAMILIES`; nothing else here knows a network."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import torch
from torch import nn

from rcm_sidecar.errors import ConfigError
from rcm_sidecar.networks import cosmos_predict2, wan2_1


class Family(Protocol):
    """One architecture: its named configurations and its constructor."""

    PRESETS: Mapping[str, Any]

    def make(self, name: str, config: Any) -> nn.Module:
        """The module with parameters allocated on the current default device, not yet initialised."""


FAMILIES: tuple[Any, ...] = (wan2_1, cosmos_predict2)
Network: TypeAlias = wan2_1.Wan21 | cosmos_predict2.CosmosPredict2


def names() -> tuple[str, ...]:
    """Every name `build` knows."""
    return tuple(name for family in FAMILIES for name in family.PRESETS)


def build(
    name: str,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **overrides: Any,
) -> Network:
    """Build a network with fresh weights.

    Args:
        name: One of `names()`.
        generator: Source of the initial weights; None means torch's global one. It must live on `device`.
        device: Where the parameters live, default the CPU. "meta" gives shapes without memory or initialisation.
        dtype: Of the parameters, default float32.
        overrides: Fields of the network's config in snake_case (`dim`, `num_heads`, ...). None removes an inherited
            override, also one that another network has and this one does not.

    Returns:
        The network; `net.spec` holds its facts, `net.config` its sizes.

    Raises:
        ConfigError: E_NETWORK_UNKNOWN, E_NETWORK_OVERRIDE (unknown name or wrong type) or E_NETWORK_SIZE.
    """
    family = _family_of(name)
    config = _overridden(name, family.PRESETS[name], overrides)
    with torch.device("meta"):
        net: Network = family.make(name, config)
    if dtype is not None:
        net = net.to(dtype)
    target = torch.device("cpu" if device is None else device)
    if target.type == "meta":
        return net
    net = net.to_empty(device=target)
    net.initialise(generator)
    return net


def _family_of(name: str) -> Any:
    for family in FAMILIES:
        if name in family.PRESETS:
            return family
    raise ConfigError("E_NETWORK_UNKNOWN", f"unknown network {name!r}", _nearest(name, names()))


def _overridden(name: str, preset: Any, overrides: Mapping[str, Any]) -> Any:
    fields = {field.name: getattr(preset, field.name) for field in dataclasses.fields(preset)}
    changes = {}
    for key, value in overrides.items():
        if value is None:
            continue
        if key not in fields:
            raise ConfigError("E_NETWORK_OVERRIDE", f"network {name} has no setting {key!r}", _nearest(key, fields))
        changes[key] = _coerced(name, key, value, fields[key])
    return dataclasses.replace(preset, **changes)


def _coerced(name: str, key: str, value: Any, default: Any) -> Any:
    """The value in the field's type; lists (JSON has no tuples) become tuples, whole numbers become floats."""
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        value = tuple(value)
        fits = len(value) == len(default) and all(type(a) is type(b) for a, b in zip(value, default, strict=True))
    elif isinstance(default, float) and type(value) is int:
        value, fits = float(value), True
    else:
        fits = type(value) is type(default)
    if not fits:
        raise ConfigError("E_NETWORK_OVERRIDE", f"network {name}: {key} must be like {default!r}, not {value!r}")
    return value


def _nearest(word: str, known: Any) -> str:
    known = list(known)
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {match[0]}?" if match else f"known: {', '.join(known)}"
