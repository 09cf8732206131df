"""Attention and its forward-mode derivative: fused kernels on GPUs, plain torch elsewhere.

Importing needs torch only; Triton is imported at the first call that runs a fused kernel.
"""

from rcm_kernels.api import AttentionJvp, attention, attention_backward, attention_jvp
from rcm_kernels.dispatch import use_backend
from rcm_kernels.problem import Mask
from rcm_kernels.reference import Result, merge

__all__ = [
    "AttentionJvp",
    "Mask",
    "Result",
    "attention",
    "attention_backward",
    "attention_jvp",
    "merge",
    "use_backend",
]
