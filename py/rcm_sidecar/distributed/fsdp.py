"""How a network is sharded with FSDP2 (design.md section 2, "Precision").

Each block is a unit; the time path and the head are one unit of their own with float32 parameters; the rest belongs to
the root. Sharding comes last: LoRA, compile and checkpointing first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from rcm_sidecar.step_clock import StepClock

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


@contextmanager
def timed_collectives(clock: StepClock) -> Iterator[None]:
    """Within the context the time that a pass waits for weights or for sums of gradients counts as communication.

    Only what is waited for counts, not what runs beside computation. FSDP2 has no hook for that, so the methods that
    wait are wrapped, on the class, since backward calls them on autograd's threads. They are private to torch, so they
    are looked for only when a profile is asked for.
    """
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

    waiting = ("unshard", "wait_for_unshard", "post_backward", "finalize_backward")
    originals = {name: getattr(FSDPParamGroup, name) for name in waiting}

    def wrapped(original: Any) -> Any:
        def within(*arguments: Any, **named: Any) -> Any:
            with clock.region("communication"):
                return original(*arguments, **named)

        return within

    for name, original in originals.items():
        setattr(FSDPParamGroup, name, wrapped(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(FSDPParamGroup, name, original)


def _wide(policy: MixedPrecisionPolicy) -> MixedPrecisionPolicy:
    return policy if policy.param_dtype is None else dataclasses.replace(policy, param_dtype=torch.float32)
