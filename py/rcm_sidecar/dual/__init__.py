"""Dual numbers: one network code gives a value with gradient and a directional derivative without.

See `Dual` and the primitives in `rcm_sidecar.dual.ops`.
"""

from rcm_sidecar.dual import ops
from rcm_sidecar.dual.checkpoint import checkpoint_block
from rcm_sidecar.dual.number import Dual, DualOrTensor, primal_of

__all__ = ["Dual", "DualOrTensor", "checkpoint_block", "ops", "primal_of"]
