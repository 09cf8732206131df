"""A distillation from shards small enough for tests: a Wan folder in the real layout and a data set beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from data.shards import write_shards
from safetensors.torch import save_file

from rcm_sidecar.checkpoints.layouts import official_names
from rcm_sidecar.networks import build

OVERRIDES = {
    "dim": 24,
    "numHeads": 2,
    "numLayers": 1,
    "ffnDim": 32,
    "freqDim": 16,
    "textDim": 16,
    "textLen": 8,
}
PIXELS = {"frames": 5, "height": 32, "width": 48}
LATENT = (16, 2, 4, 6)
LONGER = (16, 3, 4, 6)


def make_model(folder: Path) -> Path:
    """The network only, as downloaded: two shards and their index would do as well. No layer stays zero."""
    sizes = {"dim": 24, "num_heads": 2, "num_layers": 1, "ffn_dim": 32, "freq_dim": 16, "text_dim": 16, "text_len": 8}
    network = build("wan2.1-tiny", generator=torch.Generator().manual_seed(0), **sizes)
    source = torch.Generator().manual_seed(1)
    tensors = {}
    for name, parameter in official_names(network).items():
        noise = torch.randn(parameter.shape, generator=source)
        tensors[name] = parameter.detach() + 0.05 * noise
    folder.mkdir(parents=True)
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    return folder


def make_data(folder: Path, **changes: Any) -> Path:
    """Ten samples of three latent frames, of which the model takes two."""
    return write_shards(folder, 10, 4, latent=LONGER, text=(8, 16), **changes)


def shard_changes(model: Path, data: Path, **more: Any) -> dict[str, Any]:
    """What makes a run of `tiny_run` one on shards."""
    return {
        "model.path": str(model),
        "model.overrides": dict(OVERRIDES),
        "model.textEncoder": "auto",
        "teacher.weights": "model",
        "teacher.negative": "default",
        "teacher.guidance": 5.0,
        **{f"model.{name}": size for name, size in PIXELS.items()},
        "data.kind": "latentShards",
        "data.path": str(data),
        "data.workers": 2,
        "schedule.steps": 4,
        "schedule.batchSize": 4,
        "schedule.studentEvery": 2,
        "losses.scm.tangentWarmupUpdates": 1,
        "evaluation.features": None,
        "evaluation.metrics": [],
        "evaluation.gates": [],
        **more,
    }
