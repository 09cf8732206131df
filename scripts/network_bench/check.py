"""Precision of a bf16 network against float64 with the same weights: through the kernels, and in eager torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from network_bench.cases import CASES, Case, Inputs, make_inputs, make_network
from rcm_sidecar.dual import Dual, attention, fused
from rcm_sidecar.networks import Network

WORST_RATIO = 1.1
LAYERS = 2
# Real width, a few hundred tokens.
CHECKED = {
    "wan2.1-1.3b": dataclasses.replace(CASES["wan2.1-1.3b"], latent=(2, 30, 26)),
    "cosmos-2b": dataclasses.replace(CASES["cosmos-2b"], latent=(1, 40, 40)),
}


def check(device: torch.device, cases: dict[str, Case] = CHECKED) -> list[dict[str, Any]]:
    """A row a network: relative errors of velocity and derivative, by both ways of computing them.

    Args:
        device: On a CPU the kernels' CPU form is checked.
        cases: By name.
    """
    rows = []
    for name, case in cases.items():
        net = make_network(case, LAYERS, device)
        given = make_inputs(net, case, device)
        ways = {}
        for way in ("kernels", "eager"):
            with computed_by(way, device):
                ways[way] = derivative(net, given)
        with computed_by("eager", device):
            exact = derivative(net.double(), Inputs(*(x.double() for x in dataclasses.astuple(given))))
        row: dict[str, Any] = {"case": name, "check": {}}
        for part in ("primal", "tangent"):
            errors = {way: relative(getattr(out, part), getattr(exact, part)) for way, out in ways.items()}
            row["check"][part] = {**errors, "ratio": errors["kernels"] / errors["eager"]}
        rows.append(row)
    return rows


def check_lines(row: dict[str, Any]) -> list[str]:
    """A line for the velocity and one for its derivative."""
    return [
        f"{row['case']:18s} {name:10s} error against float64: kernels {found['kernels']:.3e}, "
        f"eager {found['eager']:.3e}, ratio {found['ratio']:.3f}"
        for name, found in row["check"].items()
    ]


def assert_precise(rows: list[dict[str, Any]]) -> None:
    """Raise AssertionError where the kernels are worse than `WORST_RATIO` times eager bf16."""
    for row in rows:
        for part, found in row["check"].items():
            assert found["ratio"] <= WORST_RATIO, (row["case"], part, found)


@torch.no_grad()
def derivative(net: Network, given: Inputs) -> Dual:
    """Velocity and directional derivative."""
    return cast(Dual, net(Dual(given.x, given.tx), Dual(given.t, given.tt), given.text))


@contextmanager
def computed_by(way: str, device: torch.device) -> Iterator[None]:
    """Let `kernels` or `eager` code compute what is inside."""
    kept = fused.runs_fused, attention.runs_fused
    if way == "eager" or device.type == "cpu":
        answer = way == "kernels"
        fused.runs_fused = attention.runs_fused = lambda _: answer
    try:
        yield
    finally:
        fused.runs_fused, attention.runs_fused = kept


def relative(actual: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of `exact`."""
    return ((actual.double() - exact).norm() / exact.norm()).item()
