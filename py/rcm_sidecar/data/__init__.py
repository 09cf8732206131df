"""Training data: the shipped digits with label conditions, and shards of latents with text embeddings."""

from rcm_sidecar.data.label_conditioner import LabelConditioner
from rcm_sidecar.data.open_data import open_training_data
from rcm_sidecar.data.training_data import (
    BadSample,
    Batch,
    Statistics,
    TensorData,
    TrainingData,
    statistics_warning,
)

__all__ = [
    "BadSample",
    "Batch",
    "LabelConditioner",
    "Statistics",
    "TensorData",
    "TrainingData",
    "open_training_data",
    "statistics_warning",
]
