"""Writing a network: complete and synced under a temporary name first, renamed last, one tensor in memory at a time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from rcm_sidecar.checkpoints.companions import COMPANIONS
from rcm_sidecar.checkpoints.layouts import (
    COMFYUI_PREFIX,
    LAYOUTS,
    Layout,
    diffusers_config,
    diffusers_names,
    official_config,
    official_names,
)
from rcm_sidecar.checkpoints.pickled import write_pickled
from rcm_sidecar.errors import HostError, WeightsError
from rcm_sidecar.files import (
    remove_leftovers,
    require_space,
    sync,
    temporary_path,
    write_error,
    write_json,
    write_through,
)
from rcm_sidecar.networks import Network
from rcm_sidecar.networks.inputs import Role
from rcm_sidecar.networks.lora import Whole, merge, weight_deltas
from rcm_sidecar.safetensors_file import LazyTensor, write_safetensors

SHARD_BYTES = 5_000_000_000
PICKLED = (".pt", ".pth")
_STEM = "diffusion_pytorch_model"
_METADATA = {"format": "pt"}

Written = Callable[[int], None]
"""Called with its size after each tensor; what it raises ends the writing."""
Finish = Callable[[Path], object]
"""Called with all that was written, complete and synced under a temporary name. It may add files to a folder; what it
raises leaves the target as it was."""


def save_network(
    net: Network,
    path: str | PathLike[str],
    layout: Layout = "official",
    *,
    adapter: Role | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = SHARD_BYTES,
    whole: Whole = lambda tensor: tensor,
) -> Path:
    """Write the parameters of `net`.

    Args:
        net: A network from `networks.build`, perhaps wrapped for compile or checkpointing.
        path: As `write_network`.
        layout: Names of the tensors.
        adapter: LoRA role merged into the weights; None writes the base weights.
        dtype: Stored dtype; None keeps each parameter's own.
        max_shard_bytes: Largest file of a folder.
        whole: Gives all of a parameter when it is its turn; for a network whose parameters are sharded.

    Returns:
        As `write_network`.

    Raises:
        WeightsError: E_WEIGHTS_LAYOUT (unknown layout, or one that does not go with the path), E_WEIGHTS_WRITE.
        HostError: E_DISK_FULL.
    """
    tensors = _parameters(net, adapter, dtype, whole)
    return write_network(net, tensors, Path(path), layout, max_shard_bytes=max_shard_bytes)


def write_network(
    net: Network,
    tensors: Mapping[str, LazyTensor],
    target: Path,
    layout: Layout,
    *,
    max_shard_bytes: int = SHARD_BYTES,
    written: Written = lambda _bytes: None,
    finish: Finish = lambda _temporary: None,
) -> Path:
    """Write the tensors of a network in a layout.

    Args:
        net: For its config; it may be on the meta device.
        tensors: By official name.
        target: "official" and "diffusers": a folder that gets config.json and the weights (several shards and an index
            above `max_shard_bytes`), or for "official" a file: .safetensors with the config in its header, .pt or .pth
            as released for Cosmos-Predict2 and by rCM, with the prefix `net.`.
            "comfyui": a file ending in .safetensors, or a folder that gets `<network name>.safetensors`.
        layout: Names of the tensors.
        max_shard_bytes: Largest file of a folder.
        written: See `Written`.
        finish: See `Finish`.

    Returns:
        The file or folder. It appears complete or not at all; of a folder that exists, the files of an earlier save
        are replaced, config.json last; companions of the earlier weights go with them.

    Raises:
        WeightsError: E_WEIGHTS_LAYOUT (unknown layout, or one that does not go with the path), E_WEIGHTS_WRITE.
        HostError: E_DISK_FULL.
    """
    check_target(target, layout)
    target = written_path(target, layout, net.spec.name)
    remove_leftovers(target)
    require_space(target, space_needed(tensors, target))
    try:
        if target.suffix in PICKLED:
            return _save_file(target, lambda file: write_pickled(file, tensors, written), finish)
        named = _named(net, tensors, layout)
        if target.suffix == ".safetensors":
            config = {"config": json.dumps(official_config(net))} if layout == "official" else {}
            return _save_file(target, lambda file: write_safetensors(file, named, _METADATA | config, written), finish)
        config_json = official_config(net) if layout == "official" else diffusers_config(net)

        def write(folder: Path) -> None:
            _write_shards(named, folder, max_shard_bytes, written)
            write_json(folder / "config.json", config_json)

        return _save_folder(target, write, finish)
    except HostError as error:
        raise _typed(error) from error.__cause__
    except OSError as error:
        raise _typed(write_error(target, error)) from error


def space_needed(tensors: Mapping[str, LazyTensor], target: Path) -> int:
    """Bytes that writing takes on the disk of `target` while it goes on."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    return 2 * total if target.suffix in PICKLED else total


def written_path(target: Path, layout: Layout, name: str) -> Path:
    """What writing the network `name` at `target` makes: ComfyUI's layout is one file, also in a folder of others."""
    in_folder = layout == "comfyui" and target.suffix != ".safetensors"
    return target / f"{name}.safetensors" if in_folder else target


def check_target(target: Path, layout: Layout) -> None:
    """Refuse what `write_network` cannot write; errors as there."""
    if layout not in LAYOUTS:
        raise WeightsError("E_WEIGHTS_LAYOUT", f"unknown layout {layout!r}", f"known: {', '.join(LAYOUTS)}")
    is_file = target.suffix in (".safetensors", *PICKLED)
    if layout == "diffusers" and is_file:
        raise WeightsError("E_WEIGHTS_LAYOUT", "the diffusers layout is a folder, not a file", "give a folder")
    if layout == "comfyui" and target.suffix in PICKLED:
        raise WeightsError("E_WEIGHTS_LAYOUT", "ComfyUI's layout is a .safetensors file", "give another file name")
    if is_file and target.is_dir():
        raise WeightsError("E_WEIGHTS_WRITE", f"{target} is a folder", "give another file name")
    if not is_file and target.exists() and not target.is_dir():
        raise WeightsError("E_WEIGHTS_WRITE", f"{target} is a file, not a folder", "give a folder")


def _parameters(net: Network, adapter: Role | None, dtype: torch.dtype | None, whole: Whole) -> dict[str, LazyTensor]:
    """The parameters by official name, each gathered, merged and cast when it is its turn."""
    deltas = {} if adapter is None else weight_deltas(net, adapter, whole)

    def lazy(name: str, parameter: Tensor) -> LazyTensor:
        delta = deltas.get(name)
        stored = dtype or parameter.dtype

        def load() -> Tensor:
            weight = whole(parameter).detach()
            return (weight if delta is None else merge(weight, delta())).to("cpu", stored)

        return LazyTensor(tuple(parameter.shape), stored, load)

    return {name: lazy(name, parameter) for name, parameter in official_names(net).items()}


def _named(net: Network, tensors: Mapping[str, LazyTensor], layout: Layout) -> dict[str, LazyTensor]:
    names = diffusers_names(net) if layout == "diffusers" else {}
    prefix = COMFYUI_PREFIX if layout == "comfyui" else ""
    return {prefix + names.get(name, name): tensor for name, tensor in tensors.items()}


def _save_file(target: Path, write: Callable[[Path], object], finish: Finish) -> Path:
    def write_and_finish(temporary: Path) -> None:
        write(temporary)
        sync(temporary)
        finish(temporary)

    write_through(target, write_and_finish)
    sync(target.parent)
    return target


def _save_folder(target: Path, write: Callable[[Path], object], finish: Finish) -> Path:
    temporary = temporary_path(target)
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        sync(temporary)
        finish(temporary)
        if target.is_dir() and any(target.iterdir()):
            _replace_files(temporary, target)
        else:
            os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync(target.parent)
    return target


def _replace_files(source: Path, target: Path) -> None:
    """Move the files to those of an earlier save, which go first: a mixture of both would pass for complete."""
    for stale in (*target.glob(f"{_STEM}*.safetensors*"), *(target / name for name in ("config.json", *COMPANIONS))):
        stale.unlink(missing_ok=True)
    sync(target)
    for file in sorted(source.iterdir(), key=lambda file: (file.name == "config.json", file.name)):
        os.replace(file, target / file.name)
    sync(target)


def _write_shards(tensors: Mapping[str, LazyTensor], folder: Path, limit: int, written: Written) -> None:
    def write(name: str, shard: Mapping[str, LazyTensor]) -> None:
        write_through(folder / name, lambda file: write_safetensors(file, shard, _METADATA, written))

    shards = _shards(tensors, limit)
    if len(shards) == 1:
        write(f"{_STEM}.safetensors", shards[0])
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"{_STEM}-{number:05d}-of-{len(shards):05d}.safetensors"
        write(name, shard)
        weight_map |= dict.fromkeys(shard, name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / f"{_STEM}.safetensors.index.json", index)


def _shards(tensors: Mapping[str, LazyTensor], limit: int) -> list[dict[str, LazyTensor]]:
    shards: list[dict[str, LazyTensor]] = [{}]
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
