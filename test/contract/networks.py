"""Answers the contract test of the networks: facts of every named one, and what `build` makes of other sizes."""

import dataclasses
import json
import sys
from typing import Any

import msgspec

from rcm_sidecar.config import NetworkOverrides
from rcm_sidecar.encoders.model_folder import _PLACES
from rcm_sidecar.errors import ConfigError
from rcm_sidecar.networks import build, names


def facts(name: str) -> dict[str, Any]:
    """Sizes, spec, parameters and the layers that can have adapters of a named network."""
    net = build(name, device="meta")
    spec, sizes = dataclasses.asdict(net.spec), dataclasses.asdict(net.config)
    block = net.blocks[0]
    narrowest = {
        target: min(min(block.get_submodule(layer).weight.shape) for layer in layers)
        for target, layers in net.lora_targets.items()
    }
    layers = [block.get_submodule(layer).weight.shape for names in net.lora_targets.values() for layer in names]
    wide = sum(count(net.get_submodule(name)) for name in net.wide_parts)
    parts = {"block": count(block), "wide": wide, "rest": count(net) - wide - len(net.blocks) * count(block)}
    return {
        "sizes": sizes,
        "spec": spec,
        "parameters": parts,
        "narrowest": narrowest,
        "places": _PLACES[net.spec.family],
        "layers": sorted([shape[1], shape[0]] for shape in layers),
    }


def count(module: Any) -> int:
    """Its parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def verdict(case: dict[str, Any]) -> str | int:
    """The number of parameters, or the code of the error."""
    overrides = msgspec.convert(case["overrides"], NetworkOverrides)
    try:
        net = build(case["name"], device="meta", **overrides.arguments())
    except ConfigError as error:
        return error.code
    return count(net)


cases = json.load(sys.stdin)
print(json.dumps({"facts": {name: facts(name) for name in names()}, "verdicts": [verdict(case) for case in cases]}))
