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
    """

    torch: str
    threads: int
    cpu_capability: str
    world: ParallelSizes = ALONE


def set_up(threads: int, deterministic: bool, world: ParallelSizes = ALONE) -> Environment:
    """Apply threads and flags to this process and describe the result.

    Args:
        threads: Of this process.
        deterministic: `compute.deterministic`.
        world: How the processes share the work.
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
    return current(threads, world)


def current(threads: int | None = None, world: ParallelSizes = ALONE) -> Environment:
    """Facts of this process."""
    return Environment(
        torch=torch.__version__,
        threads=threads or torch.get_num_threads(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        world=world,
    )
