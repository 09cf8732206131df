"""How processes share the work: replicate x shard x context (`compute.parallel`).

Process r has the place r = (replicate * shards + shard) * contexts + context, so that the processes of a context group,
which talk most, are neighbours. Processes of one context group work on the same samples; all others have their own.
Parameters are sharded over shard x context processes and gradients averaged over all (see `context_parallel`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from rcm_sidecar.distributed.context_parallel import ContextGroup, Kind
from rcm_sidecar.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ParallelSizes:
    """Sizes of the axes; their product is the number of processes.

    Attributes:
        replicate: Copies of the weights.
        shard: Parts of a batch within one copy.
        context: Processes that share each sample.
    """

    replicate: int
    shard: int
    context: int

    @property
    def world(self) -> int:
        """Number of processes."""
        return self.replicate * self.shard * self.context

    @property
    def data(self) -> int:
        """Number of processes, or context groups, with samples of their own."""
        return self.replicate * self.shard


@dataclass(frozen=True)
class Mesh:
    """The process groups of this process.

    Attributes:
        sizes: Of the axes.
        weights: What `fsdp.shard` takes: (shard x context) processes hold one copy of the weights; a second axis in
            front where there are several copies.
        context: The group that shares this process's samples, None where every process has its own.
    """

    sizes: ParallelSizes
    weights: DeviceMesh
    context: dist.ProcessGroup | None

    def context_group(self, kind: Literal["auto", "ulysses", "ring"], heads: int) -> ContextGroup | None:
        """What `net.context` of a network with `heads` attention heads becomes, before sharding.

        Raises:
            ConfigError: E_CONFIG_VALUE, see `context_kind`.
        """
        if self.context is None:
            return None
        return ContextGroup(self.context, context_kind(kind, heads, self.sizes.context))


def parallel_sizes(world: int, *, shard: int, context: int) -> ParallelSizes:
    """The sizes for `world` processes; what shard and context leave over replicates.

    Raises:
        ConfigError: E_CONFIG_VALUE, when there are too few processes or they do not divide.

    >>> parallel_sizes(8, shard=2, context=2)
    ParallelSizes(replicate=2, shard=2, context=2)
    """
    part = shard * context
    if world < part:
        raise ConfigError(
            "E_CONFIG_VALUE",
            f"compute.parallel asks for shard {shard} x context {context} = {part} processes and there are {world}.",
            f"Start {part} processes (gpusPerNode x nodes), or lower compute.parallel.shard or context.",
        )
    if world % part:
        lower = world - world % part
        raise ConfigError(
            "E_CONFIG_VALUE",
            f"{world} processes do not divide into shard {shard} x context {context} = {part}.",
            f"Start {lower} or {lower + part} processes (gpusPerNode x nodes), or change compute.parallel.",
        )
    return ParallelSizes(world // part, shard, context)


def context_kind(kind: Literal["auto", "ulysses", "ring"], heads: int, context: int) -> Kind:
    """How `context` processes share attention: Ulysses where they divide the heads, else ring.

    Raises:
        ConfigError: E_CONFIG_VALUE, Ulysses asked for with heads that do not divide.

    >>> context_kind("auto", 12, 4), context_kind("auto", 12, 8)
    ('ulysses', 'ring')
    """
    divides = heads % context == 0
    if kind == "ulysses" and not divides:
        possible = ", ".join(str(size) for size in range(1, heads + 1) if heads % size == 0)
        raise ConfigError(
            "E_CONFIG_VALUE",
            f"contextKind ulysses divides the {heads} attention heads, which context {context} cannot.",
            f"Set compute.parallel.contextKind to auto or ring, or context to one of {possible}.",
        )
    if kind == "auto":
        return "ulysses" if divides else "ring"
    return kind


def build_mesh(device_type: str, sizes: ParallelSizes) -> Mesh:
    """The process groups; every process of the default group calls it, one process alone too.

    Args:
        device_type: "cuda" or "cpu".
        sizes: Their product is the size of the default group.

    Raises:
        ValueError: The sizes do not fit the default group.
    """
    if sizes.world != dist.get_world_size():
        raise ValueError(f"{sizes} is a mesh of {sizes.world} processes, not of {dist.get_world_size()}")
    copies = init_device_mesh(
        device_type, (sizes.replicate, sizes.shard * sizes.context), mesh_dim_names=("replicate", "shard")
    )
    weights = copies["shard"] if sizes.replicate == 1 else copies
    if sizes.context == 1:
        return Mesh(sizes, weights, None)
    samples = init_device_mesh(device_type, (sizes.data, sizes.context), mesh_dim_names=("data", "context"))
    return Mesh(sizes, weights, samples.get_group("context"))


def own_samples(sizes: ParallelSizes, rank: int, batch_size: int) -> slice:
    """Which samples of a step's whole batch a process takes.

    Data, noise and times are drawn for the whole batch on every process and cut with this slice, so they do not depend
    on the number of processes, and the processes of a context group have the same.

    Args:
        sizes: Of the axes.
        rank: Of the process.
        batch_size: `schedule.batchSize`, over all processes.

    Raises:
        ConfigError: E_CONFIG_VALUE, when the batch does not divide.

    >>> own_samples(ParallelSizes(replicate=1, shard=2, context=2), rank=3, batch_size=8)
    slice(4, 8, None)
    """
    own, rest = divmod(batch_size, sizes.data)
    if rest:
        nearest = [str(size) for size in (batch_size - rest, batch_size - rest + sizes.data) if size]
        groups = f"{sizes.data} groups of {sizes.context} processes" if sizes.context > 1 else f"{sizes.data} processes"
        raise ConfigError(
            "E_CONFIG_VALUE",
            f"schedule.batchSize {batch_size} does not divide among {groups}.",
            f"Set schedule.batchSize to {' or '.join(nearest)}, or change compute.parallel.",
        )
    first = rank // sizes.context * own
    return slice(first, first + own)
