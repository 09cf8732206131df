"""Adapter files: the LoRA of one role beside its base, for this program and for ComfyUI.

ComfyUI's loader (Comfy-Org/ComfyUI, comfy/lora.py `model_lora_keys_unet` and comfy/weight_adapter/lora.py, read and
not run) takes `diffusion_model.<official name>` with `.lora_A.weight` [rank, in], `.lora_B.weight` [out, rank] and
`.alpha`, and adds (alpha / rank) B A to the weight. The official layout here is the same without the prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from rcm_sidecar.checkpoints.mismatch import Mismatch
from rcm_sidecar.checkpoints.reading import open_weights
from rcm_sidecar.errors import WeightsError
from rcm_sidecar.files import write_tensors
from rcm_sidecar.networks import Network
from rcm_sidecar.networks.inputs import Role
from rcm_sidecar.networks.lora import Adapter, adapters_of
from rcm_sidecar.safetensors_file import LazyTensor

AdapterLayout: TypeAlias = Literal["official", "comfyui"]

_COMFYUI_PREFIX = "diffusion_model."
_DOWN, _UP, _ALPHA = ".lora_A.weight", ".lora_B.weight", ".alpha"


def save_adapter(
    net: Network,
    role: Role,
    path: str | PathLike[str],
    layout: AdapterLayout = "official",
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write the adapters of `role`, complete or not at all.

    Args:
        net: A network with adapters, not sharded.
        role: Whose.
        path: A file ending in .safetensors.
        layout: "comfyui" puts `diffusion_model.` before every key.
        dtype: Stored dtype of A and B; None keeps theirs.
        metadata: Kept in the file's header, for people.

    Returns:
        The file.

    Raises:
        WeightsError: E_WEIGHTS_LAYOUT, another ending.
        ConfigError: E_ADAPTER_UNKNOWN.
        HostError: E_DISK_FULL.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        raise WeightsError("E_WEIGHTS_LAYOUT", f"{target} must end in .safetensors", "give another file name")
    prefix = _COMFYUI_PREFIX if layout == "comfyui" else ""
    tensors: dict[str, Tensor] = {}
    for name, adapter in adapters_of(net, role).items():
        tensors[f"{prefix}{name}{_DOWN}"] = adapter.down.to(dtype or adapter.down.dtype)
        tensors[f"{prefix}{name}{_UP}"] = adapter.up.to(dtype or adapter.up.dtype)
        tensors[f"{prefix}{name}{_ALPHA}"] = torch.tensor(adapter.alpha)
    write_tensors(target, tensors, metadata)
    return target


def load_adapter(net: Network, role: Role, path: str | PathLike[str]) -> None:
    """Fill the adapters of `role` from a file of either layout; strict, and the file's alpha must be theirs.

    Raises:
        WeightsError: E_WEIGHTS_NOT_FOUND, E_WEIGHTS_EMPTY, E_WEIGHTS_UNREADABLE, E_WEIGHTS_LAYOUT (a whole network), or
            E_WEIGHTS_MISMATCH, which names the first five keys that do not fit. `net` is unchanged then.
        ConfigError: E_ADAPTER_UNKNOWN.
    """
    adapters = adapters_of(net, role)
    found = {key.removeprefix(_COMFYUI_PREFIX): tensor for key, tensor in open_weights(Path(path)).items()}
    _check(adapters, found, Path(path))
    with torch.no_grad():
        for name, adapter in adapters.items():
            adapter.down.copy_(found[name + _DOWN].load())
            adapter.up.copy_(found[name + _UP].load())


def _check(adapters: dict[str, Adapter], found: dict[str, LazyTensor], path: Path) -> None:
    if not any(key.endswith(_DOWN) for key in found):
        hint = "With student.lora all roles share the teacher's weights: start from teacher, or from an adapter file."
        raise WeightsError("E_WEIGHTS_LAYOUT", f"{path} holds no adapters", hint)
    wanted: dict[str, tuple[int, ...]] = {}
    for name, adapter in adapters.items():
        wanted |= {name + _DOWN: tuple(adapter.down.shape), name + _UP: tuple(adapter.up.shape), name + _ALPHA: ()}
    mismatch = Mismatch(
        missing=[key for key in wanted if key not in found],
        unexpected=[key for key in found if key not in wanted],
        misshaped=[
            f"{key} is {list(found[key].shape)} and should be {list(shape)}"
            for key, shape in wanted.items()
            if key in found and found[key].shape != shape
        ],
    )
    if not mismatch.empty:
        raise WeightsError(
            "E_WEIGHTS_MISMATCH",
            f"{path} does not fit these adapters: {mismatch.summary()}",
            "rank and targets of student.lora must be those the file was trained with",
        )
    for name, adapter in adapters.items():
        alpha = found[name + _ALPHA].load().item()
        if alpha != adapter.alpha:
            raise WeightsError(
                "E_WEIGHTS_MISMATCH",
                f"{path} was trained with alpha {alpha:g}, not {adapter.alpha:g}",
                f"set student.lora.alpha to {alpha:g}",
            )
