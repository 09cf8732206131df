"""Notices weights that changed by themselves: a month of many GPUs meets memory and links that are not sound.

Every `health.checksumEverySteps` the frozen teacher is compared with what it was at the start, and everything that
trains with what the other processes hold of the same: replicas of a shard, and small tensors that all have. A checksum
is the sum of a tensor's bits as 64-bit words, modulo 2^64: one pass on the device, in any order, and every single bit
counts. One number a tensor travels between processes.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rcm_sidecar.distributed.tensors import local
from rcm_sidecar.errors import TrainingError
from rcm_sidecar.step_clock import region
from rcm_sidecar.training.setup import Trained
from rcm_sidecar.training.shown import CONDITIONER
from rcm_sidecar.training.state import live_tensors

_WORD_BYTES = 8
_NAMED = 3
"""How many tensors a message names."""


def checksum(tensor: Tensor) -> Tensor:
    """Sum of the bits that this process holds, int64, 0-d, on the tensor's device; nothing is read back."""
    held = local(tensor.detach()).contiguous().reshape(-1).view(torch.uint8)
    if held.storage_offset() % _WORD_BYTES:
        held = held.clone()
    rest = held.numel() % _WORD_BYTES
    words = held[: held.numel() - rest].view(torch.int64)
    # Bytes that fill no word are weighted, so that they count by their place as those of a word do.
    places = 256 ** torch.arange(rest, device=held.device)
    return words.sum() + (held[held.numel() - rest :] * places).sum()


def checksums(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, int]:
    """Of each tensor, read back at once."""
    if not tensors:
        return {}
    sums = torch.stack([checksum(tensor).to(device) for tensor in tensors.values()])
    return dict(zip(tensors, sums.tolist(), strict=True))


@dataclass
class ChecksumGuard:
    """The checksums of one training job; all processes call it together.

    Attributes:
        trained: What is watched.
        every_steps: `health.checksumEverySteps`; None: nothing is.
    """

    trained: Trained
    every_steps: int | None
    _start: Mapping[str, int] = field(init=False, default_factory=dict)
    _good: int = field(init=False, default=0)

    def begin(self, step: int) -> None:
        """Remember the frozen weights; replicas have to be equal from the start.

        Raises:
            TrainingError: E_CHECKSUM.
        """
        if self.every_steps is None:
            return
        self._good = step
        self._start = self._frozen()
        self._compare(step)

    def check_if_due(self, step: int) -> None:
        """After a step, before its checkpoint.

        Raises:
            TrainingError: E_CHECKSUM, which names the processes.
        """
        if self.every_steps is not None and step % self.every_steps == 0:
            with region("checksum"):
                self._compare(step)

    def _frozen(self) -> dict[str, int]:
        """Of all that must not change: the teacher (with LoRA the base) and the table of conditions."""
        teacher, table = self.trained.teacher, self.trained.conditioner
        tensors: dict[str, Tensor] = {}
        if teacher is not None:
            tensors |= {name: value for name, value in teacher.named_parameters() if not value.requires_grad}
            tensors |= {f"{CONDITIONER}{name}": value for name, value in table.named_parameters()}
        return checksums(tensors, self.trained.team.device)

    def _compare(self, step: int) -> None:
        team = self.trained.team
        now = self._frozen()
        changed = [name for name, value in now.items() if value != self._start[name]]
        trains = live_tensors(self.trained)
        tensors = {f"{role} {name}": tensor for role, named in trains.items() for name, tensor in named.items()}
        sums = checksums(tensors, team.device)
        sharded = [hasattr(tensor, "to_local") for tensor in tensors.values()]
        everyone = team.gather([changed[:_NAMED], list(sums.values())])
        altered = {rank: names for rank, (names, _) in enumerate(everyone) if names}
        apart = _apart(list(tensors), sharded, [values for _, values in everyone], self._groups())
        if altered or apart:
            raise self._error(step, altered, apart)
        self._good = step

    def _groups(self) -> list[list[int]]:
        """Processes that hold the same shards, see `distributed.mesh`."""
        sizes = self.trained.team.sizes
        parts = sizes.shard * sizes.context
        return [list(range(place, sizes.world, parts)) for place in range(parts)]

    def _error(self, step: int, altered: Mapping[int, list[str]], apart: Mapping[int, list[str]]) -> TrainingError:
        hosts = self.trained.team.gather(socket.gethostname())

        def named(ranks: Mapping[int, list[str]]) -> str:
            return ", ".join(f"rank {rank} on {hosts[rank]} ({', '.join(ranks[rank])})" for rank in sorted(ranks))

        what = []
        if altered:
            what.append(f"frozen weights are not what they were at the start: {named(altered)}")
        if apart:
            what.append(f"processes that should hold the same bits do not: {named(apart)}")
        return TrainingError(
            "E_CHECKSUM",
            f"Step {step}: {'; '.join(what)}.",
            f"Memory or a link of these machines is faulty. Step {self._good} was still sound: go on from a checkpoint "
            "up to it, on other machines, with `rcm-bridge resume <run> --from-step N`.",
            {"ranks": sorted({*altered, *apart}), "soundStep": self._good},
        )


def _apart(
    names: list[str], sharded: list[bool], sums: list[list[int]], groups: list[list[int]]
) -> dict[int, list[str]]:
    """Rank -> tensors in which it differs from the majority of those that should be equal; all where there is none."""
    found: dict[int, list[str]] = {}
    everybody = [[rank for group in groups for rank in group]]
    for index, name in enumerate(names):
        for group in groups if sharded[index] else everybody:
            for rank in _odd({rank: sums[rank][index] for rank in group}):
                found.setdefault(rank, []).append(name)
    return {rank: differing[:_NAMED] for rank, differing in found.items()}


def _odd(values: Mapping[int, int]) -> Iterator[int]:
    """Whoever does not have the value of more than half; nobody where all have one."""
    value, count = Counter(values.values()).most_common(1)[0]
    if count == len(values):
        return
    for rank, own in values.items():
        if own != value or 2 * count <= len(values):
            yield rank
