"""The shipped digits: 1,797 real 8x8 images with a fixed split, standardised to the scale the method needs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

ASSETS = Path(__file__).resolve().parent.parent / "assets" / "digits"
"""Folder of the shipped data, classifier and teacher."""

NUM_CLASSES = 10
_GREY_LEVELS = 16


@dataclass(frozen=True)
class DigitsData:
    """The digits as latents [n,1,1,8,8] float32 = (grey / 16 - mean) / std, labels as int64.

    Attributes:
        train_images: [1438,1,1,8,8].
        train_labels: [1438].
        held_out_images: [359,1,1,8,8], never seen by teacher, student or classifier.
        held_out_labels: [359].
        all_labels: [1797] in the order of the data set: the labels of every evaluated set.
        mean: Mean grey value of all images as a share of white.
        std: Their standard deviation.
        sha256: Of the data file.
    """

    train_images: Tensor
    train_labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor
    all_labels: Tensor
    mean: float
    std: float
    sha256: str


@lru_cache(maxsize=1)
def load_digits_data() -> DigitsData:
    """Read the shipped file. The tensors are shared between callers: never change them in place.

    >>> data = load_digits_data()
    >>> data.train_images.shape, data.held_out_images.shape
    (torch.Size([1438, 1, 1, 8, 8]), torch.Size([359, 1, 1, 8, 8]))
    """
    path = ASSETS / "digits.safetensors"
    with safe_open(str(path), framework="pt") as file:
        facts = file.metadata()
        images, labels, held_out = (file.get_tensor(name) for name in ("images", "labels", "held_out"))
    mean, std = float(facts["mean"]), float(facts["std"])
    latents = ((images.double() / _GREY_LEVELS - mean) / std).float()[:, None, None]
    labels = labels.long()
    return DigitsData(
        train_images=latents[~held_out],
        train_labels=labels[~held_out],
        held_out_images=latents[held_out],
        held_out_labels=labels[held_out],
        all_labels=labels,
        mean=mean,
        std=std,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def to_pixels(latents: Tensor) -> Tensor:
    """Grey pixels u8 [n,8,8,1], 255 = ink, of latents [n,1,1,8,8]; values outside the range are clipped."""
    data = load_digits_data()
    shares = latents.double() * data.std + data.mean
    return (shares.clamp(0, 1) * 255).round().to(torch.uint8).cpu()[:, 0, 0, :, :, None]
