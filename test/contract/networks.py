"""Answers the contract test of the networks: facts of every named one, and what `build` makes of other sizes."""

import dataclasses
import json
import sys
from typing import Any

import msgspec

from rcm_sidecar.config import NetworkOverrides
from rcm_sidecar.errors import ConfigError
from rcm_sidecar.networks import build, names


def facts(name: str) -> dict[str, Any]:
    """Sizes, spec and parameters of a named network."""
    net = build(name, device="meta")
    spec, sizes = dataclasses.asdict(net.spec), dataclasses.asdict(net.config)
    block = net.blocks[0]
    narrowest = {
        target: min(min(block.get_submodule(layer).weight.shape) for layer in layers)
        for target, layers in net.lora_targets.items()
    }
    parameters = sum(parameter.numel() for parameter in net.parameters())
    return {"sizes": sizes, "spec": spec, "parameters": parameters, "narrowest": narrowest}


def verdict(case: dict[str, Any]) -> str | int:
    """The number of parameters, or the code of the error."""
    overrides = msgspec.convert(case["overrides"], NetworkOverrides)
    try:
        net = build(case["name"], device="meta", **overrides.arguments())
    except ConfigError as error:
        return error.code
    return sum(parameter.numel() for parameter in net.parameters())


cases = json.load(sys.stdin)
print(json.dumps({"facts": {name: facts(name) for name in names()}, "verdicts": [verdict(case) for case in cases]}))
