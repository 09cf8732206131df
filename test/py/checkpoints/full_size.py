"""Weight files of full size that cost no disk: a true header, the data a hole."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from rcm_sidecar.checkpoints.layouts import diffusers_names, official_names

_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def write_sparse(net, file: Path, dtype: torch.dtype, layout: str = "official", prefix: str = "") -> Path:
    """A safetensors file of zeros for a network on the meta device."""
    names = diffusers_names(net) if layout == "diffusers" else {}
    header, offset = {}, 0
    for name, parameter in official_names(net).items():
        end = offset + parameter.numel() * dtype.itemsize
        header[prefix + names.get(name, name)] = {
            "dtype": _NAMES[dtype],
            "shape": list(parameter.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + offset)
    return file
