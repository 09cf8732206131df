"""Weight files as one lazy mapping from key to tensor, whatever they are on disk."""

from __future__ import annotations

import io
import json
import math
import mmap
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from rcm_sidecar.errors import WeightsError
from rcm_sidecar.safetensors_file import DTYPES, LazyTensor, read_header

_INDEX = ".safetensors.index.json"
_OFFICIAL = "diffusion_pytorch_model"
_CONTAINERS = ("state_dict", "model", "module")
# Other networks in a downloaded or exported folder, never the transformer. What begins with a dot is unfinished.
_OTHERS = ("wan2.1_vae", "models_t5", "models_clip", "tokenizer", "conditioner")

_FOREIGN = re.compile(r"(?:Unsupported|Trying to load unsupported|Blocked) (?:global|GLOBAL)\S*:? (?:GLOBAL )?([\w.]+)")
_PICKLE_BEGIN = b"\x80"
# The number that torch.save wrote first, as a pickle of its own, before version 1.6.
_OLD_TORCH_BEGIN = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def open_weights(path: Path) -> dict[str, LazyTensor]:
    """Everything in a file, folder or sharded index; only headers are read.

    Raises:
        WeightsError: E_WEIGHTS_NOT_FOUND, E_WEIGHTS_EMPTY, E_WEIGHTS_UNREADABLE or E_WEIGHTS_LAYOUT.
    """
    tensors: dict[str, LazyTensor] = {}
    for file in weights_files(path):
        part = _open_safetensors(file) if file.suffix == ".safetensors" else _open_pickle(file)
        if repeated := tensors.keys() & part.keys():
            raise WeightsError("E_WEIGHTS_LAYOUT", f"{path}: {min(repeated)} is in more than one file")
        tensors |= part
    if not tensors:
        raise WeightsError("E_WEIGHTS_EMPTY", f"{path} holds no tensors", "download or export the file again")
    return tensors


def weights_files(path: Path) -> list[Path]:
    """The files that hold the weights of `path`, a file, folder or sharded index; errors as `open_weights`."""
    if not path.exists():
        raise WeightsError("E_WEIGHTS_NOT_FOUND", f"no weights at {path}", "check the path, or fetch the file first")
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
        found = [file for file in sorted(folder.glob(pattern)) if not file.name.lower().startswith((".", *_OTHERS))]
        if len(found) == 1 and not indexes:
            return found
        if found:
            raise WeightsError("E_WEIGHTS_LAYOUT", f"{folder} holds several weights files", "name the one to load")
    raise WeightsError("E_WEIGHTS_NOT_FOUND", f"no weights file in {folder}", "known: .safetensors, .pth, .pt")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(index, error) from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise WeightsError("E_WEIGHTS_UNREADABLE", f"{index} names {name!r}, which is no file beside it")
        if not (index.parent / name).is_file():
            raise WeightsError("E_WEIGHTS_NOT_FOUND", f"{index.name} names {name}, which is missing", "fetch it again")
    return [index.parent / name for name in names]


def _open_safetensors(file: Path) -> dict[str, LazyTensor]:
    _refuse_empty(file)
    try:
        begin, header = read_header(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(file, error) from error
    mapped = _mapped(file)

    def stored(key: str, entry: Mapping[str, Any]) -> LazyTensor:
        shape, dtype = tuple(entry["shape"]), _dtype(file, key, entry["dtype"])
        offset = begin + entry["data_offsets"][0]
        return LazyTensor(shape, dtype, lambda: _view(mapped, dtype, offset, math.prod(shape)).reshape(shape))

    return {key: stored(key, entry) for key, entry in header.items() if key != "__metadata__"}


def _dtype(file: Path, key: str, name: str) -> torch.dtype:
    if name not in DTYPES:
        raise WeightsError("E_WEIGHTS_LAYOUT", f"{file}: {key} is stored as {name}, which is not supported")
    return DTYPES[name]


def _open_pickle(file: Path) -> dict[str, LazyTensor]:
    _refuse_empty(file)
    try:
        # On the meta device no data is read, and each storage knows its place in the file. The official Cosmos files
        # hold quantisation state as BytesIO, which runs no code.
        with torch.serialization.safe_globals([io.BytesIO]):
            content = torch.load(file, map_location="meta", mmap=True, weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ... for the same cause
        raise _why_not_unpickled(file, error) from error
    content = _unwrapped(content)
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if not isinstance(value, io.BytesIO)}
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError("E_WEIGHTS_LAYOUT", f"{file} holds no plain table of tensors", "export a state dict")
    mapped = _mapped(file)

    def stored(tensor: Tensor) -> LazyTensor:
        return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda: _pickled(mapped, tensor))

    return {str(key): stored(tensor) for key, tensor in content.items()}


def _pickled(mapped: mmap.mmap, on_meta: Tensor) -> Tensor:
    storage: Any = on_meta.untyped_storage()
    count = storage.nbytes() // on_meta.dtype.itemsize
    whole = _view(mapped, on_meta.dtype, storage._checkpoint_offset, count)
    return whole.as_strided(on_meta.shape, on_meta.stride(), on_meta.storage_offset())


def _mapped(file: Path) -> mmap.mmap:
    """The file in memory, read only and shared: its pages are the system's to drop, and need no room in advance.

    A private mapping, as safetensors and torch make it, is refused for files larger than the memory. The tensors made
    of it keep it alive.
    """
    with file.open("rb") as content:
        return mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ)


def _view(mapped: mmap.mmap, dtype: torch.dtype, offset: int, count: int) -> Tensor:
    if count == 0:
        return torch.empty(0, dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(mapped, dtype=dtype, count=count, offset=offset)


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


def _why_not_unpickled(file: Path, error: Exception) -> WeightsError:
    if found := _FOREIGN.search(str(error)):
        message = f"{file} asks for code to be run ({found[1]}), which is refused"
        return WeightsError("E_WEIGHTS_UNREADABLE", message, "use a file of tensors only, best a .safetensors file")
    begin = _begin(file)
    if begin == _OLD_TORCH_BEGIN:
        message = f"{file} is in PyTorch's format from before version 1.6, which cannot be mapped"
        return WeightsError("E_WEIGHTS_UNREADABLE", message, "load it where you trust it and save it again")
    if begin.startswith(_PICKLE_BEGIN):
        message = f"{file} is a bare pickle, not a file of torch.save, and may ask for code to be run; it was not read"
        return WeightsError("E_WEIGHTS_UNREADABLE", message, "use a file of tensors only, best a .safetensors file")
    return _unreadable(file, error)


def _begin(file: Path) -> bytes:
    with file.open("rb") as content:
        return content.read(len(_OLD_TORCH_BEGIN))


def _unreadable(file: Path, error: Exception) -> WeightsError:
    reason = re.split(r"\n|\. ", str(error), maxsplit=1)[0][:160]  # torch goes on about its internals
    return WeightsError(
        "E_WEIGHTS_UNREADABLE",
        f"{file} cannot be read ({type(error).__name__}: {reason})",
        "the file is damaged, cut short or not a weights file: fetch or export it again",
    )
