"""The safetensors format, read and written one tensor at a time.

The library checks what is read; it cannot write a file without holding all of its tensors, so that is done here, byte
for byte as the library does it: https://github.com/huggingface/safetensors describes the format.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

# By the name in the header, in the order in which the library lays tensors out, the last first.
DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_RANKS = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}
_ALIGNMENT_BYTES = 8
_CHUNK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor that is not in memory yet: its shape and dtype are known, `load` gives it.

    What `load` gives may be a view of a mapped file, which must not be written to.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]

    @property
    def count(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.count * self.dtype.itemsize


def in_memory(tensor: Tensor) -> LazyTensor:
    """A tensor that is there already."""
    return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda: tensor)


def read_header(file: Path) -> tuple[int, dict[str, Any]]:
    """Where the data begins, in bytes, and the header, once the library has found header and size in order.

    Raises:
        SafetensorError: The file is damaged or no safetensors file.
        OSError: It cannot be read.
    """
    with safe_open(str(file), framework="np"):
        pass
    with file.open("rb") as content:
        size = int.from_bytes(content.read(_ALIGNMENT_BYTES), "little")
        return _ALIGNMENT_BYTES + size, json.loads(content.read(size))


def write_safetensors(
    file: Path,
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str],
    written: Callable[[int], None] = lambda _bytes: None,
) -> None:
    """Write a file, holding one tensor at a time; runs of zeros become holes where the file system has them.

    Args:
        file: Replaced if it exists. Not atomic and not synced: `rcm_sidecar.files` does that.
        tensors: By name.
        metadata: Of the header.
        written: Called with its size after each tensor.

    Raises:
        OSError: As the system says.
    """
    order = sorted(tensors, key=lambda name: (-_RANKS[tensors[name].dtype], name.encode()))
    with file.open("wb") as out:
        out.write(_header(tensors, order, metadata))
        for name in order:
            tensor = tensors[name]
            _write_data(out, _checked(name, tensor))
            written(tensor.nbytes)
        out.truncate(out.tell())  # the last bytes may be a hole


def _header(tensors: Mapping[str, LazyTensor], order: list[str], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return len(text).to_bytes(_ALIGNMENT_BYTES, "little") + text


def _checked(name: str, tensor: LazyTensor) -> Tensor:
    value = tensor.load().detach()
    if value.dtype != tensor.dtype or tuple(value.shape) != tensor.shape:
        raise ValueError(f"{name} is {value.dtype} {tuple(value.shape)}, not {tensor.dtype} {tensor.shape}")
    return value.to("cpu").contiguous()


def _write_data(out: BinaryIO, value: Tensor) -> None:
    data = value.reshape(-1).view(torch.uint8).numpy()
    for start in range(0, len(data), _CHUNK_BYTES):
        piece = data[start : start + _CHUNK_BYTES]
        if piece.any():
            out.write(piece.data)
        else:
            out.seek(len(piece), os.SEEK_CUR)
