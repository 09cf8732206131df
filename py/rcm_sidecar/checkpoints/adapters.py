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
from rcm_sidecar.distributed.tensors import fill
from rcm_sidecar.errors import WeightsError
from rcm_sidecar.files import write_through
from rcm_sidecar.networks import Network
from rcm_sidecar.networks.inputs import Role
from rcm_sidecar.networks.lora import Adapter, Whole, adapters_of
from rcm_sidecar.safetensors_file import LazyTensor, in_memory, write_safetensors

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
    whole: Whole = lambda tensor: tensor,
) -> Path:
    """Write the adapters of `role`, complete or not at all.

    Args:
        net: A network with adapters.
        role: Whose.
        path: A file ending in .safetensors.
        layout: "comfyui" puts `diffusion_model.` before every key.
        dtype: Stored dtype of A and B; None keeps theirs.
        metadata: Kept in the file's header, for people.
        whole: Gives all of a parameter when it is its turn; for a network whose parameters are sharded.

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
    tensors: dict[str, LazyTensor] = {}
    for name, adapter in adapters_of(net, role).items():
        tensors[f"{prefix}{name}{_DOWN}"] = _lazy(adapter.down, dtype, whole)
        tensors[f"{prefix}{name}{_UP}"] = _lazy(adapter.up, dtype, whole)
        tensors[f"{prefix}{name}{_ALPHA}"] = in_memory(torch.tensor(adapter.alpha))
    facts = {"format": "pt", **(metadata or {})}
    write_through(target, lambda temporary: write_safetensors(temporary, tensors, facts))
    return target


def _lazy(parameter: Tensor, dtype: torch.dtype | None, whole: Whole) -> LazyTensor:
    stored = dtype or parameter.dtype
    return LazyTensor(tuple(parameter.shape), stored, lambda: whole(parameter).detach().to(stored))


def load_adapter(net: Network, role: Role, path: str | PathLike[str]) -> None:
    """Fill the adapters of `role` from a file of either layout; strict, and the file's alpha must be theirs.

    Raises:
        WeightsError: E_WEIGHTS_NOT_FOUND, E_WEIGHTS_EMPTY, E_WEIGHTS_UNREADABLE, E_WEIGHTS_LAYOUT (a whole network), or
            E_WEIGHTS_MISMATCH, which names the first five keys that do not fit. `net` is unchanged then.
        ConfigError: E_ADAPTER_UNKNOWN.
    """
    fill_adapter(net, role, open_adapter(net, role, Path(path)))


def open_adapter(net: Network, role: Role, path: Path) -> Mapping[str, LazyTensor]:
    """Open a file and check that it fits the adapters of `role`, which may be on the meta device.

    Raises:
        WeightsError: As `load_adapter`.
        ConfigError: E_ADAPTER_UNKNOWN.
    """
    found = {key.removeprefix(_COMFYUI_PREFIX): tensor for key, tensor in open_weights(path).items()}
    _check(adapters_of(net, role), found, path)
    return found


def fill_adapter(net: Network, role: Role, found: Mapping[str, LazyTensor]) -> None:
    """Read what `open_adapter` has found to fit; of sharded adapters this process's part."""
    for name, adapter in adapters_of(net, role).items():
        fill(adapter.down, found[name + _DOWN].load())
        fill(adapter.up, found[name + _UP].load())


def _check(adapters: Mapping[str, Adapter], found: Mapping[str, LazyTensor], path: Path) -> None:
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
