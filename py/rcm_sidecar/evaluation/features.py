"""A small classifier of 8x8 digits whose 32 values before the output are the features of all distances.

Trained on the training images only, by scripts/make-digits-classifier.py. Its features are learned from the images the
teacher learns from, so they are no independent judge of memorising: `nearestTrain` is, which works on pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import silu

from rcm_sidecar.data.digits import ASSETS, NUM_CLASSES
from rcm_sidecar.errors import WeightsError

BUILTIN_CLASSIFIER = "builtin:digits-classifier"
FEATURE_DIMENSION = 32
_BATCH = 512


class DigitsClassifier(nn.Module):
    """Two convolutions and two linear layers on standardised digits [B,1,8,8]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 64, 3, padding=1)
        self.feature = nn.Linear(64 * 4 * 4, FEATURE_DIMENSION)
        self.output = nn.Linear(FEATURE_DIMENSION, NUM_CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """Features [B,32] of images [B,1,8,8]. SiLU at their end: half of them were dead for all digits with ReLU."""
        hidden = torch.max_pool2d(torch.relu(self.first(images)), 2)
        hidden = torch.relu(self.second(hidden))
        return silu(self.feature(hidden.flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B,10]."""
        logits: Tensor = self.output(self.features(images))
        return logits


def load_classifier(locator: str) -> DigitsClassifier:
    """The classifier named by `evaluation.features`: builtin:digits-classifier, or a safetensors file of this class.

    Raises:
        WeightsError: E_WEIGHTS_NOT_FOUND, E_WEIGHTS_UNREADABLE or E_WEIGHTS_KEYS.
    """
    path = ASSETS / "classifier.safetensors" if locator == BUILTIN_CLASSIFIER else Path(locator)
    if not path.is_file():
        raise WeightsError("E_WEIGHTS_NOT_FOUND", f"There is no classifier {locator}.", f"Use {BUILTIN_CLASSIFIER}.")
    classifier = DigitsClassifier()
    try:
        classifier.load_state_dict(load_file(str(path)))
    except SafetensorError as error:
        raise WeightsError("E_WEIGHTS_UNREADABLE", f"{locator} cannot be read as safetensors: {error}") from error
    except RuntimeError as error:
        raise WeightsError("E_WEIGHTS_KEYS", f"{locator} is no digits classifier: {error}") from error
    return classifier.eval().requires_grad_(False)


@torch.no_grad()
def features_and_classes(classifier: DigitsClassifier, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Features [n,32] float64 and predicted classes [n] of latents [n,1,1,8,8], in batches."""
    features = torch.cat([classifier.features(piece[:, :, 0].float()) for piece in latents.split(_BATCH)])
    return features.double(), classifier.output(features).argmax(1)


FeatureFunction = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Latents [n,C,T,H,W] to features [n,d] float64 and predicted classes [n]."""


def feature_function(locator: str) -> FeatureFunction:
    """`features_and_classes` of the classifier at `locator`."""
    return partial(features_and_classes, load_classifier(locator))
