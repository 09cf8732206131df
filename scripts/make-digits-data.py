"""Make py/rcm_sidecar/assets/digits/digits.safetensors from scikit-learn's copy of the UCI digits.

Needs scikit-learn (development only; it ships the data in its wheel, so nothing is downloaded):

    PYTHONPATH=py:kernels python scripts/make-digits-data.py

The split is fixed: within each class a seeded permutation picks a fifth, 359 images in all.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits

HELD_OUT_IMAGES = 359
SPLIT_SEED = 0
TARGET = Path(__file__).resolve().parent.parent / "py/rcm_sidecar/assets/digits/digits.safetensors"


def held_out_mask(labels: torch.Tensor) -> torch.Tensor:
    """True for the held-out images: a fifth of each class, adjusted by one where the sum asks for it."""
    wanted = [round(int((labels == digit).sum()) * HELD_OUT_IMAGES / len(labels)) for digit in range(10)]
    while sum(wanted) > HELD_OUT_IMAGES:
        wanted[wanted.index(max(wanted))] -= 1
    while sum(wanted) < HELD_OUT_IMAGES:
        wanted[wanted.index(min(wanted))] += 1
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        members = (labels == digit).nonzero()[:, 0]
        chosen = members[torch.randperm(len(members), generator=generator)[: wanted[digit]]]
        mask[chosen] = True
    return mask


def main() -> None:
    """Write the file and print what it holds."""
    source = load_digits()
    images = torch.from_numpy(source.images.astype(np.uint8))
    labels = torch.from_numpy(source.target.astype(np.int64))
    held_out = held_out_mask(labels)
    pixels = images.double() / 16
    metadata = {
        "mean": f"{pixels.mean().item():.5f}",
        "std": f"{pixels.std(correction=0).item():.5f}",
        "source": "UCI Optical Recognition of Handwritten Digits, CC BY 4.0",
    }
    tensors = {"images": images, "labels": labels.to(torch.uint8), "held_out": held_out}
    save_file(tensors, TARGET, metadata=metadata)
    print(f"{TARGET.name}: {len(labels)} images, {int(held_out.sum())} held out, {metadata}")


if __name__ == "__main__":
    main()
