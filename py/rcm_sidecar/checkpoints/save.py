"""Saving a network: complete and synced under a temporary name first, renamed last."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcm_sidecar.checkpoints.layouts import (
    COMFYUI_PREFIX,
    LAYOUTS,
    Layout,
    diffusers_config,
    diffusers_names,
    official_config,
    official_names,
)
from rcm_sidecar.errors import HostError, WeightsError
from rcm_sidecar.files import sync, write_error, write_json, write_tensors
from rcm_sidecar.networks import Network
from rcm_sidecar.networks.inputs import Role
from rcm_sidecar.networks.lora import merge, weight_deltas

_STEM = "diffusion_pytorch_model"


def save_network(
    net: Network,
    path: str | PathLike[str],
    layout: Layout = "official",
    *,
    adapter: Role | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> Path:
    """Write the parameters of `net`.

    Args:
        net: A network from `networks.build`, perhaps wrapped for compile or checkpointing.
        path: "official" and "diffusers": a folder that gets config.json and the weights (several shards and an index
            above `max_shard_bytes`), or for "official" a file ending in .safetensors, the config in its header.
            "comfyui": a file ending in .safetensors, or a folder that gets `<network name>.safetensors`.
        layout: Names of the tensors.
        adapter: LoRA role merged into the weights; None writes the base weights.
        dtype: Stored dtype; None keeps each parameter's own.
        max_shard_bytes: Largest file of a folder.

    Returns:
        The file or folder. It appears complete or not at all; in a folder that exists, files are replaced one by one,
        config.json last.

    Raises:
        WeightsError: E_WEIGHTS_LAYOUT (unknown layout, or one that does not go with the path), E_WEIGHTS_WRITE.
        HostError: E_DISK_FULL.
    """
    target = Path(path)
    _check_target(target, layout)
    tensors = _tensors(net, layout, adapter, dtype)
    single = target.suffix == ".safetensors"
    try:
        if single:
            config = json.dumps(official_config(net)) if layout == "official" else None
            return _save_file(tensors, target, {} if config is None else {"config": config})
        if layout == "comfyui":
            return _save_file(tensors, target / f"{net.spec.name}.safetensors", {})
        config_json = official_config(net) if layout == "official" else diffusers_config(net)
        return _save_folder(tensors, target, config_json, max_shard_bytes)
    except HostError as error:
        raise _typed(error) from error.__cause__
    except OSError as error:
        raise _typed(write_error(target, error)) from error


def _check_target(target: Path, layout: Layout) -> None:
    if layout not in LAYOUTS:
        raise WeightsError("E_WEIGHTS_LAYOUT", f"unknown layout {layout!r}", f"known: {', '.join(LAYOUTS)}")
    if layout == "diffusers" and target.suffix == ".safetensors":
        raise WeightsError("E_WEIGHTS_LAYOUT", "the diffusers layout is a folder, not a file", "give a folder")
    if target.suffix == ".safetensors" and target.is_dir():
        raise WeightsError("E_WEIGHTS_WRITE", f"{target} is a folder", "give another file name")
    if target.suffix != ".safetensors" and target.exists() and not target.is_dir():
        raise WeightsError("E_WEIGHTS_WRITE", f"{target} is a file, not a folder", "give a folder")


def _tensors(net: Network, layout: Layout, adapter: Role | None, dtype: torch.dtype | None) -> dict[str, Tensor]:
    names = diffusers_names(net) if layout == "diffusers" else {}
    prefix = COMFYUI_PREFIX if layout == "comfyui" else ""
    deltas = {} if adapter is None else weight_deltas(net, adapter)
    result = {}
    for name, parameter in official_names(net).items():
        weight = parameter.detach()
        if name in deltas:
            weight = merge(weight, deltas.pop(name)())
        result[prefix + names.get(name, name)] = weight.to("cpu", dtype or parameter.dtype).contiguous()
    return result


def _save_file(tensors: dict[str, Tensor], target: Path, metadata: dict[str, str]) -> Path:
    write_tensors(target, tensors, metadata)
    sync(target.parent)
    return target


def _save_folder(tensors: dict[str, Tensor], target: Path, config: Mapping[str, Any], limit: int) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        temporary.chmod(0o755)  # mkdtemp makes it private
        _write_shards(tensors, temporary, limit)
        write_json(temporary / "config.json", config)
        sync(temporary)
        if target.is_dir() and any(target.iterdir()):
            _replace_files(temporary, target)
        else:
            os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync(target.parent)
    return target


def _replace_files(source: Path, target: Path) -> None:
    """Move the files over those of an earlier save; remove its shards that have no successor; config.json last."""
    names = {file.name for file in source.iterdir()}
    for stale in target.glob(f"{_STEM}*.safetensors*"):
        if stale.name not in names:
            stale.unlink()
    for name in sorted(names, key=lambda name: (name == "config.json", name)):
        os.replace(source / name, target / name)
    sync(target)


def _write_shards(tensors: dict[str, Tensor], folder: Path, limit: int) -> None:
    shards = _shards(tensors, limit)
    if len(shards) == 1:
        write_tensors(folder / f"{_STEM}.safetensors", shards[0])
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"{_STEM}-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / name, shard)
        weight_map |= dict.fromkeys(shard, name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / f"{_STEM}.safetensors.index.json", index)


def _shards(tensors: Mapping[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def _typed(error: HostError) -> HostError | WeightsError:
    return error if error.code == "E_DISK_FULL" else WeightsError("E_WEIGHTS_WRITE", error.message)
