"""Modules of other libraries, made without memory and filled tensor by tensor, strictly, on their device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from rcm_sidecar.errors import WeightsError
from rcm_sidecar.safetensors_file import LazyTensor

_NAMED = 5


def fill(
    module: nn.Module, tensors: Mapping[str, LazyTensor], path: Path, device: torch.device, dtype: torch.dtype
) -> None:
    """Give every parameter of a module on the meta device its value, frozen.

    Args:
        module: Parameters that are shared count once, by their first name.
        tensors: By the module's names.
        path: Where they come from, for errors.
        device: Where they go. One tensor is in main memory at a time.
        dtype: Of all of them.

    Raises:
        WeightsError: as `check`.
    """
    check(module, tensors, path)
    for name in dict(module.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        # A copy even where nothing changes: the loaded tensor may be a view of the mapped file.
        value = tensors[name].load().to(device, dtype, copy=True)
        setattr(module.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))


def check(module: nn.Module, tensors: Mapping[str, LazyTensor], path: Path) -> None:
    """Refuse tensors that are not exactly those of a module, by names and shapes alone.

    Raises:
        WeightsError: E_WEIGHTS_MISMATCH, which names the first five tensors that are missing, too many or misshapen.
    """
    wanted = dict(module.named_parameters())
    wrong = [
        *(f"{name} is missing" for name in wanted if name not in tensors),
        *(f"{name} is unexpected" for name in tensors if name not in wanted),
        *(
            f"{name} is {list(tensors[name].shape)} and should be {list(parameter.shape)}"
            for name, parameter in wanted.items()
            if name in tensors and tensors[name].shape != tuple(parameter.shape)
        ),
    ]
    if wrong:
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        message = f"{path} does not fit {type(module).__name__}: {'; '.join(wrong[:_NAMED])}{more}."
        raise WeightsError("E_WEIGHTS_MISMATCH", message, "It is incomplete or of another model: fetch it again.")
