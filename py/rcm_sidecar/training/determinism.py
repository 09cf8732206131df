"""Set-up of torch that makes a run repeatable, and the facts a checkpoint must store because results depend on them."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from rcm_sidecar.distributed.mesh import ParallelSizes

ALONE = ParallelSizes(replicate=1, shard=1, context=1)


@dataclass(frozen=True)
class Environment:
    """What bit-identical results depend on.

    Attributes:
        torch: Version, for example "2.11.0+cpu".
        threads: CPU threads of one process inside an operation.
        cpu_capability: Instruction set torch picked, for example "AVX2".
        world: How the processes share the work.
        device: "cpu", or the name of the GPU; "" where a checkpoint does not say.
    """

    torch: str
    threads: int
    cpu_capability: str
    world: ParallelSizes = ALONE
    device: str = "cpu"

    def has_other_kernels(self, other: Environment) -> bool:
        """Whether other code computes the same there: another device, instruction set or build of torch."""
        here, there = ((e.device, e.cpu_capability, e.torch) for e in (self, other))
        return here != there


def set_up(
    threads: int, deterministic: bool, world: ParallelSizes = ALONE, device: torch.device | None = None
) -> Environment:
    """Apply threads and flags to this process and describe the result.

    Args:
        threads: Of this process.
        deterministic: `compute.deterministic`.
        world: How the processes share the work.
        device: Where this process computes; None is the CPU.
    """
    torch.set_num_threads(threads)
    # Read when cuBLAS makes its first handle; without it deterministic products are an error.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    # It would fill every new tensor with NaN, a debugging aid that takes 5 % of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("highest")
    # The default, set because an embedding program may have changed it: flushed denormals change results.
    torch.set_flush_denormal(False)
    return current(threads, world, device)


def current(
    threads: int | None = None, world: ParallelSizes = ALONE, device: torch.device | None = None
) -> Environment:
    """Facts of this process."""
    return Environment(
        torch=torch.__version__,
        threads=threads or torch.get_num_threads(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        world=world,
        device=torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else "cpu",
    )
