"""Classifier-free guidance on velocities (rcm-method section 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from rcm_sidecar.diffusion.coordinates import compute_dtype
from rcm_sidecar.errors import SidecarError

Network = Callable[..., Any]
"""A velocity network f(x [B, ...], t [B] in its own units, text [B, L, D]), always called positionally."""

Branches = Literal["sequential", "batched"]


class MissingNegativeError(SidecarError, ValueError):
    """Guidance other than 1 was asked for without a negative condition."""

    def __init__(self, guidance: float) -> None:
        """Name the guidance that needs the condition."""
        SidecarError.__init__(
            self,
            "E_CONFIG_VALUE",
            f"Guidance {guidance:g} needs a negative condition and there is none.",
            "Set teacher.negative, or teacher.guidance: 1.",
        )


def guided_velocity(
    network: Network,
    x: Tensor,
    t: Tensor,
    text: Tensor,
    negative: Tensor | None,
    guidance: float,
    branches: Branches = "sequential",
) -> Tensor:
    """v_neg + guidance (v_pos - v_neg); guidance 1 is v_pos and makes no negative call.

    Args:
        network: Velocity network, called positionally.
        x: Rectified-flow state [B, ...].
        t: Time [B] in the network's units.
        text: Condition [B, L, D].
        negative: Negative condition [B, L, D] or [1, L, D]; None only with guidance 1.
        guidance: The scale w; 1 switches guidance off.
        branches: Two calls one after the other, or one call of twice the batch (same result, more memory).

    Returns:
        Velocity [B, ...] in at least float32. Gradients flow if they are enabled; callers decide.

    Raises:
        MissingNegativeError: guidance differs from 1 and negative is None.
    """
    dtype = compute_dtype(x)
    if guidance == 1:
        velocity: Tensor = network(x, t, text).to(dtype)
        return velocity
    if negative is None:
        raise MissingNegativeError(guidance)
    if negative.shape[0] == 1 != x.shape[0]:
        negative = negative.expand(x.shape[0], *negative.shape[1:])
    if branches == "batched":
        both = network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([text, negative]))
        positive_velocity, negative_velocity = both.to(dtype).chunk(2)
    elif branches == "sequential":
        positive_velocity = network(x, t, text).to(dtype)
        negative_velocity = network(x, t, negative).to(dtype)
    else:
        raise ValueError(f"branches must be 'sequential' or 'batched', got {branches!r}")
    guided: Tensor = negative_velocity + guidance * (positive_velocity - negative_velocity)
    return guided
