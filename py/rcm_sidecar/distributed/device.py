"""Which device a process computes on."""

from __future__ import annotations

from typing import Literal

import torch

from rcm_sidecar.errors import HostError


def device_of(name: Literal["auto", "cpu", "cuda"], local_rank: int) -> torch.device:
    """Where this process computes, from `compute.device`; auto is a GPU if there is one.

    Raises:
        HostError: E_GPU, fewer GPUs than processes.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    found = torch.cuda.device_count()
    if local_rank >= found:
        message = f"Process {local_rank} of this machine needs a GPU of its own, and torch finds {found}."
        hint = f"Set compute.gpusPerNode: {found}." if found else "Set compute.device: cpu, or install torch with CUDA."
        raise HostError("E_GPU", message, hint)
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
