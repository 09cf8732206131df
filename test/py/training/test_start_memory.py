"""Memory of a start in parts, with files of full size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints.full_size import write_sparse
from distributed.spawn import run_on_ranks
from training import start_memory_ranks

from rcm_sidecar.data import LabelConditioner
from rcm_sidecar.networks import build

RANKS = 4


@pytest.mark.long
@pytest.mark.parametrize(("lora", "layers"), [(True, 30), (False, 14)])
def test_no_process_holds_more_than_its_share(lora: bool, layers: int, tmp_path: Path) -> None:
    """Wan2.1 1.3B, frozen under adapters; half as deep with a student, its average and moments: 10 GB in all."""
    net = build("wan2.1-t2v-1.3b", device="meta", num_layers=layers)
    write_sparse(net, tmp_path / "diffusion_pytorch_model.safetensors", torch.float32)
    LabelConditioner.of(torch.zeros(11, 4, net.spec.text_dim)).save(tmp_path / "conditioner.safetensors")
    run_on_ranks(RANKS, tmp_path, start_memory_ranks, ("start_and_export", str(tmp_path), lora, layers))
