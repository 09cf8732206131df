"""Rectified flow, TrigFlow and EDM coordinates, and the exact maps between them (rcm-method section 2).

    name            noisy state                    time                  velocity
    rectified flow  x_t = (1-t) x0 + t e           t in [0, 1]           v = e - x0
    TrigFlow        x_u = cos u x0 + sin u e       u in [0, pi/2]        F = cos u e - sin u x0
    EDM             x_s = x0 + sigma e             sigma in [0, inf)

The data has standard deviation 1. Networks speak rectified flow, losses speak TrigFlow. Nothing here divides by
sin u or cos u, so both ends of the interval are safe. Time functions keep the dtype they are given; `trig_point`
computes every coefficient in float64 and rounds it once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

HALF_PI = math.pi / 2


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype losses compute in: at least float32, float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def over_batch(coefficient: Tensor, like: Tensor) -> Tensor:
    """`coefficient` [B] reshaped to [B, 1, ...] so that it multiplies `like` [B, ...]."""
    return coefficient.reshape(-1, *([1] * (like.ndim - 1)))


# Times


def rf_from_trigflow(u: Tensor) -> Tensor:
    """Time t = sin u / (cos u + sin u)."""
    return torch.sin(u) / (torch.cos(u) + torch.sin(u))


def trigflow_from_rf(t: Tensor) -> Tensor:
    """Time u = atan2(t, 1 - t); exact at t = 0 and t = 1."""
    return torch.atan2(t, 1 - t)


def sigma_from_rf(t: Tensor) -> Tensor:
    """Sigma = t / (1 - t); infinite at t = 1."""
    return t / (1 - t)


def rf_from_sigma(sigma: Tensor) -> Tensor:
    """Time t = sigma / (1 + sigma)."""
    return sigma / (1 + sigma)


def sigma_from_trigflow(u: Tensor) -> Tensor:
    """Sigma = tan u."""
    return torch.tan(u)


def trigflow_from_sigma(sigma: Tensor) -> Tensor:
    """Time u = atan sigma."""
    return torch.atan(sigma)


def shift_time(t: Tensor, shift: float) -> Tensor:
    """Map t to k t / (1 + (k - 1) t): moves rectified-flow times towards noise for k > 1; keeps 0 and 1."""
    return shift * t / (shift * t + (1 - t))  # this form never exceeds 1


def unshift_time(t: Tensor, shift: float) -> Tensor:
    """Inverse of `shift_time`."""
    return t / (t + shift * (1 - t))


# States and velocities at given coefficients


@dataclass(frozen=True)
class TrigPoint:
    """Coefficients at the times u of a batch, shaped [B, 1, ...] to multiply states.

    Attributes:
        u: TrigFlow times [B], float64, clamped to [0, pi/2] (float32 pi/2 lies above pi/2).
        cos: cos u.
        sin: sin u.
        total: cos u + sin u, between 1 and sqrt 2.
        t: Rectified-flow time sin u / (cos u + sin u).
        k: t (1 - t), speed of t along the tangent direction of the sCM loss; at most 1/4.
    """

    u: Tensor
    cos: Tensor
    sin: Tensor
    total: Tensor
    t: Tensor
    k: Tensor

    def network_time(self, time_scale: float) -> Tensor:
        """Time for the network [B], in its own units: time_scale * t, one rounding from float64."""
        return (time_scale * rf_from_trigflow(self.u)).to(self.t.dtype)


def trig_point(u: Tensor, like: Tensor) -> TrigPoint:
    """Coefficients at TrigFlow times `u` [B] for states shaped and typed like `like` [B, ...] (at least float32).

    Raises:
        ValueError: `u` is not [B] of the same batch.
    """
    if u.shape != like.shape[:1]:
        raise ValueError(f"times must have shape [{like.shape[0]}], got {list(u.shape)}")
    wide = u.detach().to(device=like.device, dtype=torch.float64).clamp(0.0, HALF_PI)
    cos, sin = torch.cos(wide), torch.sin(wide)
    total = cos + sin
    parts = (cos, sin, total, sin / total, cos * sin / total.square())
    dtype = compute_dtype(like)
    return TrigPoint(wide, *(over_batch(part, like).to(dtype) for part in parts))


def noisy_state(x0: Tensor, noise: Tensor, point: TrigPoint) -> Tensor:
    """x_t = (1 - t) x0 + t e, in the dtype of the coefficients."""
    return (1 - point.t) * x0.to(point.t.dtype) + point.t * noise.to(point.t.dtype)


def x0_from_velocity(x_t: Tensor, velocity: Tensor, t: Tensor | float) -> Tensor:
    """x0 = x_t - t v, from a rectified-flow state and velocity."""
    return x_t - t * velocity


def trigflow_state(x_t: Tensor, point: TrigPoint) -> Tensor:
    """x_u = (cos u + sin u) x_t."""
    return point.total * x_t


def rectified_state(x_u: Tensor, point: TrigPoint) -> Tensor:
    """x_t = x_u / (cos u + sin u)."""
    return x_u / point.total


def trigflow_velocity(x_u: Tensor, velocity: Tensor, point: TrigPoint) -> Tensor:
    """F = ((c - s) x_u + v) / (c + s), from a TrigFlow state and a rectified-flow velocity."""
    return ((point.cos - point.sin) * x_u + velocity) / point.total


def rectified_velocity(x_u: Tensor, trig_velocity: Tensor, point: TrigPoint) -> Tensor:
    """Velocity v = (c + s) F - (c - s) x_u, inverse of `trigflow_velocity`."""
    return point.total * trig_velocity - (point.cos - point.sin) * x_u
