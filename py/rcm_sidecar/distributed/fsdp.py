"""How a network is sharded with FSDP2 (design.md section 2, "Precision").

Each block is a unit; the time path and the head are one unit of their own with float32 parameters; the rest belongs to
the root. Sharding comes last: LoRA, compile and checkpointing first.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

# Inputs keep their dtype: rounding the time to bf16 makes the derivative 63 % wrong on Wan (measured, wan2.1.md).
HALF_PRECISION = MixedPrecisionPolicy(
    param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=None, cast_forward_inputs=False
)
STORED_PRECISION = MixedPrecisionPolicy(
    param_dtype=None, reduce_dtype=None, output_dtype=None, cast_forward_inputs=False
)


def shard(net: Any, mesh: DeviceMesh, policy: MixedPrecisionPolicy = HALF_PRECISION) -> None:
    """Shard the parameters of `net` over `mesh`, in place.

    Gradients are averaged over the processes, so a loss is the mean over the process's own samples. What trains in a
    unit must be stored in one dtype (float32); what is frozen may be stored in another.

    Args:
        net: A network from `networks.build`, perhaps with adapters.
        mesh: One axis; with a second one in front the shards are replicated along it (HSDP). See `mesh.Mesh.weights`.
        policy: Of the blocks and the root. The unit of the time path and the head gets it with float32 parameters.
    """
    parts = [net.get_submodule(name) for name in net.wide_parts]
    fully_shard(parts, mesh=mesh, mp_policy=_wide(policy))
    for block in net.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # The root, too, is gathered anew for every pass: one that stays gathered after a pass without gradient would miss
    # what is copied into its shards afterwards.
    fully_shard(net, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def shard_table(table: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a small module, the label table in training, as one unit in the dtype it is stored in."""
    fully_shard(table, mesh=mesh, mp_policy=STORED_PRECISION, reshard_after_forward=True)


def announce_backward(net: nn.Module, last: bool) -> None:
    """Say whether the next backward through `net` is the step's last one; no effect on a network that is not sharded.

    Every backward reduce-scatters, so that gradients accumulate in shards; replicas are summed after the last only.
    """
    if isinstance(net, FSDPModule):
        net.set_requires_all_reduce(last)
        net.set_is_last_backward(last)


def _wide(policy: MixedPrecisionPolicy) -> MixedPrecisionPolicy:
    return policy if policy.param_dtype is None else dataclasses.replace(policy, param_dtype=torch.float32)
