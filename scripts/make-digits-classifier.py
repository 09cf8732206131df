"""Make py/rcm_sidecar/assets/digits/classifier.safetensors: the classifier whose features every distance uses.

Needs torch and safetensors only, one thread, about 20 s:

    PYTHONPATH=py:kernels python scripts/make-digits-classifier.py

Trained on the 1,438 training images. Noise on the pixels keeps features from changing much between nearly equal images,
dropout on the features makes all 32 of them carry something: without it 13 were always zero and a Frechet distance hung
on four or five directions (participation ratio 4.6 of the covariance's eigenvalues, 7.3 now).
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy, dropout

from rcm_sidecar.data.digits import ASSETS, load_digits_data
from rcm_sidecar.evaluation.features import DigitsClassifier, features_and_classes

SEED = 0
EPOCHS = 60
BATCH = 64
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-2
PIXEL_NOISE = 0.3
FEATURE_DROPOUT = 0.5
TARGET: Path = ASSETS / "classifier.safetensors"


def train() -> DigitsClassifier:
    """Train from the seed; the same torch gives the same weights."""
    data = load_digits_data()
    images, labels = data.train_images[:, :, 0], data.train_labels
    torch.manual_seed(SEED)
    classifier = DigitsClassifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    batches = len(labels) // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * batches)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(labels))[: batches * BATCH].split(BATCH):
            noisy = images[chosen] + PIXEL_NOISE * torch.randn(images[chosen].shape)
            optimizer.zero_grad()
            features = dropout(classifier.features(noisy), FEATURE_DROPOUT)
            cross_entropy(classifier.output(features), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return classifier.eval()


def main() -> None:
    """Write the file and print its accuracies."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    classifier = train()
    save_file({name: value.contiguous() for name, value in classifier.state_dict().items()}, TARGET)
    data = load_digits_data()
    sets = {
        "training": (data.train_images, data.train_labels),
        "held-out": (data.held_out_images, data.held_out_labels),
    }
    for name, (images, labels) in sets.items():
        accuracy = (features_and_classes(classifier, images)[1] == labels).double().mean().item()
        print(f"{name} accuracy {accuracy:.4f} ({len(labels)} images)")


if __name__ == "__main__":
    main()
