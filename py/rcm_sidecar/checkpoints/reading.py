"""Weight files as one lazy mapping from key to tensor, whatever they are on disk."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rcm_sidecar.errors import WeightsError

_INDEX = ".safetensors.index.json"
_OFFICIAL = "diffusion_pytorch_model"
_CONTAINERS = ("state_dict", "model", "module")
# Other networks in a downloaded or exported folder, never the transformer.
_OTHERS = ("wan2.1_vae", "models_t5", "models_clip", "tokenizer", "conditioner")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file: its shape is known from the header, the data is read by `load`."""

    shape: tuple[int, ...]
    floating: bool
    load: Callable[[], Tensor]


def open_weights(path: Path, stack: ExitStack) -> dict[str, StoredTensor]:
    """Everything in a file, folder or sharded index; files stay open until `stack` closes.

    Raises:
        WeightsError: E_WEIGHTS_MISSING, E_WEIGHTS_EMPTY, E_WEIGHTS_UNREADABLE or E_WEIGHTS_LAYOUT.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in _files(path):
        part = _open_safetensors(file, stack) if file.suffix == ".safetensors" else _open_pickle(file)
        if repeated := tensors.keys() & part.keys():
            raise WeightsError("E_WEIGHTS_LAYOUT", f"{path}: {min(repeated)} is in more than one file")
        tensors |= part
    if not tensors:
        raise WeightsError("E_WEIGHTS_EMPTY", f"{path} holds no tensors", "download or export the file again")
    return tensors


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise WeightsError("E_WEIGHTS_MISSING", f"no weights at {path}", "check the path, or fetch the file first")
    if path.is_dir():
        return _files_in(path)
    if path.name.endswith(_INDEX):
        return _shards(path)
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise WeightsError("E_WEIGHTS_LAYOUT", f"{path} is no weights file", "known: .safetensors, .pth, .pt, folders")
    return [path]


def _files_in(folder: Path) -> list[Path]:
    if (folder / "transformer").is_dir():
        return _files_in(folder / "transformer")
    indexes = sorted(folder.glob(f"*{_INDEX}"))
    if len(indexes) == 1:
        return _shards(indexes[0])
    official = sorted(folder.glob(f"{_OFFICIAL}*.safetensors"))
    if official and not indexes:
        return official
    if (folder / "model.safetensors").is_file() and not indexes:
        return [folder / "model.safetensors"]
    for pattern in ("*.safetensors", "*.pth", "*.pt"):
        found = [file for file in sorted(folder.glob(pattern)) if not file.name.lower().startswith(_OTHERS)]
        if len(found) == 1 and not indexes:
            return found
        if found:
            raise WeightsError("E_WEIGHTS_LAYOUT", f"{folder} holds several weights files", "name the one to load")
    raise WeightsError("E_WEIGHTS_MISSING", f"no weights file in {folder}", "known: .safetensors, .pth, .pt")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(index, error) from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise WeightsError("E_WEIGHTS_UNREADABLE", f"{index} names {name!r}, which is no file beside it")
        if not (index.parent / name).is_file():
            raise WeightsError("E_WEIGHTS_MISSING", f"{index.name} names {name}, which is missing", "fetch it again")
    return [index.parent / name for name in names]


def _open_safetensors(file: Path, stack: ExitStack) -> dict[str, StoredTensor]:
    _refuse_empty(file)
    try:
        handle: Any = stack.enter_context(safe_open(str(file), framework="pt"))
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, error) from error

    def stored(key: str) -> StoredTensor:
        view = handle.get_slice(key)
        return StoredTensor(
            shape=tuple(view.get_shape()),
            floating="F" in view.get_dtype(),
            load=lambda: handle.get_tensor(key),
        )

    return {key: stored(key) for key in handle.keys()}


def _open_pickle(file: Path) -> dict[str, StoredTensor]:
    _refuse_empty(file)
    try:
        # The official Cosmos files hold quantisation state as BytesIO, which runs no code.
        with torch.serialization.safe_globals([io.BytesIO]):
            content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ... for the same cause
        raise _unreadable(file, error) from error
    content = _unwrapped(content)
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if not isinstance(value, io.BytesIO)}
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError("E_WEIGHTS_LAYOUT", f"{file} holds no plain table of tensors", "export a state dict")

    def stored(tensor: Tensor) -> StoredTensor:
        return StoredTensor(tuple(tensor.shape), tensor.is_floating_point(), lambda: tensor)

    return {str(key): stored(tensor) for key, tensor in content.items()}


def _unwrapped(content: Any) -> Any:
    """The state dict inside the usual containers."""
    while isinstance(content, dict):
        inner = next((content[key] for key in _CONTAINERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    return content


def _refuse_empty(file: Path) -> None:
    if file.stat().st_size == 0:
        raise WeightsError("E_WEIGHTS_EMPTY", f"{file} is empty", "download or export the file again")


def _unreadable(file: Path, error: Exception) -> WeightsError:
    reason = str(error).split("\n", 1)[0][:160]
    return WeightsError(
        "E_WEIGHTS_UNREADABLE",
        f"{file} cannot be read ({type(error).__name__}: {reason})",
        "the file is damaged, cut short or not a weights file: fetch or export it again",
    )
