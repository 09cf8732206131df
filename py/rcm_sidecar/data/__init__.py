"""Training data, the shipped digits and label conditions."""

from rcm_sidecar.data.label_conditioner import LabelConditioner
from rcm_sidecar.data.training_data import (
    Batch,
    Statistics,
    TensorData,
    TrainingData,
    open_training_data,
    statistics_warning,
)

__all__ = [
    "Batch",
    "LabelConditioner",
    "Statistics",
    "TensorData",
    "TrainingData",
    "open_training_data",
    "statistics_warning",
]
