"""Attention, norms, gates and activations with their forward-mode derivative: fused on GPUs, plain torch elsewhere.

Importing needs torch only; Triton is imported at the first call that runs a fused kernel.
"""

from rcm_kernels.api import AttentionJvp, attention, attention_backward, attention_jvp
from rcm_kernels.dispatch import use_backend
from rcm_kernels.elementwise import LayerNormJvp, LayerNormTangents, activation_jvp, layer_norm_jvp, rms_norm_jvp
from rcm_kernels.problem import Mask
from rcm_kernels.reference import Result, merge

__all__ = [
    "AttentionJvp",
    "LayerNormJvp",
    "LayerNormTangents",
    "Mask",
    "Result",
    "activation_jvp",
    "attention",
    "attention_backward",
    "attention_jvp",
    "layer_norm_jvp",
    "merge",
    "rms_norm_jvp",
    "use_backend",
]
