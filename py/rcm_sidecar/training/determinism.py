"""Set-up of torch that makes a run repeatable, and the facts a checkpoint must store because results depend on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rcm_sidecar.distributed.mesh import ParallelSizes
from rcm_sidecar.errors import HostError


@dataclass(frozen=True)
class Environment:
    """What bit-identical results depend on.

    Attributes:
        torch: Version, for example "2.11.0+cpu".
        threads: CPU threads inside an operation.
        cpu_capability: Instruction set torch picked, for example "AVX2".
        world: How the processes share the work.
    """

    torch: str
    threads: int
    cpu_capability: str
    world: ParallelSizes = ParallelSizes(replicate=1, shard=1, context=1)


def set_up(device: str, threads: int, deterministic: bool) -> Environment:
    """Apply threads and flags to this process and describe the result.

    Raises:
        HostError: E_GPU when a GPU is asked for: this version trains on the CPU.
    """
    if device == "cuda":
        hint = "Set compute.device: cpu."
        raise HostError("E_GPU", "compute.device is cuda, and this version trains on the CPU only.", hint)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    # It would fill every new tensor with NaN, a debugging aid that takes 5 % of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("highest")
    # The default, set because an embedding program may have changed it: flushed denormals change results.
    torch.set_flush_denormal(False)
    return current(threads)


def current(threads: int | None = None) -> Environment:
    """Facts of this process."""
    return Environment(
        torch=torch.__version__,
        threads=threads or torch.get_num_threads(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
    )
