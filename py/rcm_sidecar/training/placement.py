"""Where networks live: dtype of their storage, device, the processes that share them (design.md section 2).

FSDP2 is imported where it is used: that takes half a second, which most sidecars need not spend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import nn

from rcm_sidecar.config import Compute
from rcm_sidecar.distributed.job_team import JobTeam
from rcm_sidecar.networks import Network


def place(networks: Sequence[Network], compute: Compute, team: JobTeam, table: nn.Module | None = None) -> None:
    """Give networks of the meta device the memory they train in, in place: this process's parts, not yet filled.

    Args:
        networks: With their adapters.
        compute: Dtypes, recomputation, how processes share tokens.
        team: The processes.
        table: A label table that trains with them, in memory already.

    Raises:
        ConfigError: E_CONFIG_VALUE, context parallelism that does not fit the heads.
    """
    for network in networks:
        store(network, compute)
    distribute(networks, compute, team, table)
    for network in networks:
        network.to_empty(device=team.device)


def store(network: Network, compute: Compute) -> None:
    """Set how a network computes and in which dtypes it is stored, in place. Adapters are attached before.

    What trains stays float32. What is frozen is stored in bf16 where products are bf16, but for the time path and the
    head.
    """
    network.activation_checkpointing = compute.activation_checkpointing
    network.residual = compute.precision.residual
    if compute.precision.compute == "bf16":
        for name, parameter in network.named_parameters():
            if not parameter.requires_grad and not name.startswith(network.wide_parts):
                parameter.data = parameter.data.bfloat16()


def distribute(networks: Iterable[Network], compute: Compute, team: JobTeam, table: nn.Module | None = None) -> None:
    """Share networks, and a label table that trains, among the processes, in place; nothing without a mesh.

    Raises:
        ConfigError: E_CONFIG_VALUE, context parallelism that does not fit the heads.
    """
    if team.mesh is None:
        return
    from rcm_sidecar.distributed.fsdp import HALF_PRECISION, STORED_PRECISION, shard, shard_table

    policy = HALF_PRECISION if compute.precision.compute == "bf16" else STORED_PRECISION
    for network in networks:
        network.context = team.mesh.context_group(compute.parallel.context_kind, network.config.num_heads)
        shard(network, team.mesh.weights, policy)
    if table is not None:
        shard_table(table, team.mesh.weights)


def announcer(modules: Sequence[nn.Module], team: JobTeam) -> Callable[[bool], None]:
    """What tells the modules whose gradients a step accumulates that the next backward is, or is not, its last one."""
    if team.mesh is None:
        return lambda last: None
    from rcm_sidecar.distributed.fsdp import announce_backward

    def announce(last: bool) -> None:
        for module in modules:
            announce_backward(module, last)

    return announce
