"""Evaluation of samples: sets, metrics with intervals, grids."""

from rcm_sidecar.evaluation.cache import teacher_key
from rcm_sidecar.evaluation.grids import comparison_grid, preview_grids
from rcm_sidecar.evaluation.run import REFERENCE_SEED_OFFSET, run_evaluation
from rcm_sidecar.evaluation.sampling import Conditioning, SampleSource

__all__ = [
    "REFERENCE_SEED_OFFSET",
    "Conditioning",
    "SampleSource",
    "comparison_grid",
    "preview_grids",
    "run_evaluation",
    "teacher_key",
]
