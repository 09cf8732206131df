"""Networks that processes hold in parts, for the leading process to use as if it held them whole.

It draws samples, measures and writes exports by itself; only where it calls a network or needs all of a tensor do the
others take part, told by an order (`JobTeam.alone`). So no process ever holds a whole network, what fits no single GPU
can still be looked at, and one program decides what happens next: a cancel or a sample found in a cache cannot make
processes disagree about which collective comes next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rcm_sidecar.diffusion.guidance import Network
from rcm_sidecar.distributed.job_team import JobTeam
from rcm_sidecar.distributed.tensors import whole

Result = TypeVar("Result")


@dataclass(frozen=True)
class SharedNetworks:
    """See the top of this file.

    Attributes:
        team: The processes.
        velocities: By name, on the team's device.
        parameters: By name, those that `whole` may be asked for.
    """

    team: JobTeam
    velocities: Mapping[str, Network]
    parameters: Mapping[str, Tensor]

    def lead(self, work: Callable[[], Result]) -> Result | None:
        """The leading process works, the others answer; returns its result there and None elsewhere.

        Raises:
            JobCancelled: on all processes, see `JobTeam.alone`.
        """
        return self.team.alone(work, self._answer)

    def velocity(self, name: str) -> Network:
        """A network as `work` calls it: tensors on any device in, the velocity on the device of `x` out, no graph."""

        def call(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
            inputs = [value.to(self.team.device).contiguous() for value in (x, t, text)]
            if self.team.single:
                velocity: Tensor = self.velocities[name](*inputs)
                return velocity.to(x.device)
            layouts = [[list(value.shape), str(value.dtype).removeprefix("torch.")] for value in inputs]
            self.team.order({"call": name, "inputs": layouts})
            return self._call(name, inputs).to(x.device)

        return call

    def whole(self, parameter: Tensor) -> Tensor:
        """All of one of the parameters, for `work`; the others hold it for a moment, too."""
        if not self.team.single:
            self.team.order({"gather": next(name for name, value in self.parameters.items() if value is parameter)})
        return whole(parameter)

    def _answer(self, order: Mapping[str, Any]) -> None:
        if "gather" in order:
            whole(self.parameters[order["gather"]])
            return
        device = self.team.device
        self._call(
            order["call"],
            [torch.empty(shape, dtype=getattr(torch, name), device=device) for shape, name in order["inputs"]],
        )

    @torch.no_grad()
    def _call(self, name: str, inputs: list[Tensor]) -> Tensor:
        """The velocity of the leading process's inputs, computed by all, each on samples of its own.

        Where the samples do not divide some are computed twice: a sharded network needs all processes in every call.
        """
        for value in inputs:
            dist.broadcast(value, src=0)
        sizes, count = self.team.sizes, len(inputs[0])
        own = self.team.own(-(-count // sizes.data) * sizes.data)
        chosen = torch.arange(own.start, own.stop, device=self.team.device).clamp(max=count - 1)
        velocity = self.velocities[name](*(value[chosen] for value in inputs)).contiguous()
        parts = [torch.empty_like(velocity) for _ in range(sizes.world)]
        dist.all_gather(parts, velocity)
        # Processes of a context group have the same samples.
        return torch.cat(parts[:: sizes.context])[:count]
