"""Continuous-time consistency distillation, the sCM loss in velocity form (rcm-method section 4).

Source: sCM (arXiv 2410.11081), rCM (arXiv 2510.08431); the form without division by sin u is rcm-method section 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from rcm_sidecar.diffusion.coordinates import HALF_PI, TrigPoint, noisy_state, trig_point
from rcm_sidecar.diffusion.guidance import Branches, Network, guided_velocity
from rcm_sidecar.dual import Dual
from rcm_sidecar.methods.loss import (
    Loss,
    count,
    finite_per_sample,
    first_index,
    mean_where,
    norm_per_sample,
    select_samples,
    sum_per_sample,
)

Warmup = Literal["scaled", "publicSnapshot", "fastgen"]
Derivative = Literal["exact", "semiContinuous", "finiteDifference"]

TIME_BUCKETS = 4
"""The teacher gap is logged for this many equal parts of [0, pi/2]."""


def scm_loss(
    student: Network,
    teacher: Network,
    x0: Tensor,
    noise: Tensor,
    u: Tensor,
    *,
    text: Tensor,
    negative: Tensor | None,
    guidance: float,
    time_scale: float,
    warmup_ratio: float = 1.0,
    warmup: Warmup = "scaled",
    derivative: Derivative = "exact",
    difference_step: float = 1e-4,
    norm_offset: float | None = 0.1,
    branches: Branches = "sequential",
) -> Loss:
    """Sum (F - stopgrad(F) - g)^2 with the normalised tangent g, without weight.

    Computes in at least float32; with float64 inputs everything is float64, the time given to the networks too.

    Args:
        student: Velocity network f(x, t, text), called with Duals (x [B, ...], t [B]) unless finiteDifference.
        teacher: Velocity network; no gradient.
        x0: Clean data [B, ...].
        noise: e [B, ...].
        u: TrigFlow times [B] in [0, pi/2], both ends included.
        text: Condition [B, L, D].
        negative: Negative condition; None only with guidance 1.
        guidance: The teacher's guidance; 1 makes no negative call.
        time_scale: The networks' time is time_scale * t.
        warmup_ratio: Tangent warm-up r in [0, 1]; 0 is plain regression on the teacher.
        warmup: How r enters the tangent. `scaled` is right; `publicSnapshot` and `fastgen` reproduce two public codes.
        derivative: `exact` JVP, `semiContinuous` (JVP in x, difference in t) or `finiteDifference` (both). The last
            two need networks that run in float32 or float64.
        difference_step: Step h in u of the two difference forms.
        norm_offset: g <- g / (||g|| + norm_offset); None leaves g as it is.
        branches: How the teacher's two guidance passes run.

    Returns:
        Loss. A sample whose tangent overflows (g not finite, student's velocity finite) counts as 0 and gives no
        gradient; a sample whose velocity is not finite makes `total` not finite, and the trainer skips the update.
        Scalars, means over finite samples: `loss`; `g_norm` = ||g|| before normalisation; `jvp_norm` = ||Jv||;
        `teacher_gap` = ||v - v_T||; `teacher_gap_bucket_0..3` and `teacher_gap_count_0..3` = the gap and number of
        samples by quarter of u (gap 0 where the count is 0); `grad_norm` = 2 ||g_n||, the gradient at the student's
        output F; `non_finite_tangent`, `non_finite_teacher`, `non_finite_velocity` = numbers of samples, and
        `non_finite_tangent_sample`, `non_finite_velocity_sample` = the first of them (-1: none).

    Raises:
        ValueError: an unknown option, or u not [B].
        MissingNegativeError: guidance differs from 1 and negative is None.
    """
    if warmup not in get_args(Warmup) or derivative not in get_args(Derivative):
        raise ValueError(f"unknown warmup {warmup!r} or derivative {derivative!r}")
    with torch.no_grad():
        point = trig_point(u, x0)
        x_t = noisy_state(x0, noise, point)
        t = point.network_time(time_scale)
        v_teacher = guided_velocity(teacher, x_t, t, text, negative, guidance, branches)
    network = _bind(student, text, time_scale)
    if derivative == "exact":
        velocity, jvp = _exact(network, x_t, point, v_teacher)
    else:
        form = _semi_continuous if derivative == "semiContinuous" else _finite_difference
        velocity, jvp = form(network, x_t, point, v_teacher, difference_step)

    with torch.no_grad():
        gap = velocity - v_teacher
        g = tangent(point, gap, jvp, x_t, ratio=warmup_ratio, warmup=warmup)
        overflow = finite_per_sample(velocity) & ~finite_per_sample(g)
        g_norm = norm_per_sample(g)
        g = select_samples(overflow, 0.0, g)
        g = g if norm_offset is None else normalise(g, norm_offset)
    residual = select_samples(overflow, 0.0, (velocity - velocity.detach()) / point.total - g)
    per_sample = sum_per_sample(residual.square())
    total = per_sample.mean()
    scalars = {"loss": total.detach().double()}
    scalars |= _measurements(point, velocity, v_teacher, jvp, g_norm, g, overflow)
    return Loss(total, per_sample, scalars)


def tangent(
    point: TrigPoint, gap: Tensor, jvp: Tensor, x_t: Tensor, *, ratio: float, warmup: Warmup = "scaled"
) -> Tensor:
    """The tangent g before normalisation [B, ...], from network quantities only.

    scaled: g = -[ c q gap + r (Jv - (c s (c-s)/(c+s)) gap) ] / (c+s), q = sqrt(1 - r^2 s^2), gap = v - v_T.
    fastgen has c^2 for c q. publicSnapshot scales only c s x_u by r, which leaves (1-r) c s x_u for an exact student.

    Args:
        point: Coefficients at the batch's times.
        gap: v - v_T.
        jvp: Directional derivative of the network along (k v_T, k), k = t (1 - t).
        x_t: Rectified-flow state, read by publicSnapshot only.
        ratio: Tangent warm-up r.
        warmup: Which of the three forms.
    """
    cos, sin, total = point.cos, point.sin, point.total
    # 1 - r^2 s^2 without cancellation near u = pi/2.
    q = (cos.square() + (1 - ratio**2) * sin.square()).sqrt()
    regression = cos * (cos if warmup == "fastgen" else q) * gap
    self_feedback = jvp - (cos * sin * (cos - sin) / total) * gap
    if warmup == "publicSnapshot":
        return -(regression + self_feedback) / total + (1 - ratio) * cos * sin * total * x_t
    return -(regression + ratio * self_feedback) / total


def normalise(g: Tensor, offset: float) -> Tensor:
    """Scale g to g / (||g||_2 + offset), norm over all but the batch axis, in float64, rounded to g's dtype."""
    norm = norm_per_sample(g).reshape(-1, *([1] * (g.ndim - 1)))
    return (g.double() / (norm + offset)).to(g.dtype)


# The time derivative. Each form returns the student's velocity with gradient and Jv without, Jv being the derivative
# of the network along (k v_T, k): dx_t = k v_T, dt = k.

_Bound = Callable[[Tensor, TrigPoint, Tensor | None, Tensor | None], Dual]


def _bind(student: Network, text: Tensor, time_scale: float) -> _Bound:
    """The student at a point; with a tangent of x (and of t, in units of t) it is called with Duals."""

    def call(x_t: Tensor, point: TrigPoint, x_tangent: Tensor | None, t_tangent: Tensor | None) -> Dual:
        t = point.network_time(time_scale)
        if x_tangent is None or t_tangent is None:
            return Dual(student(x_t, t, text).to(x_t.dtype), None)
        out = student(Dual(x_t, x_tangent), Dual(t, time_scale * t_tangent.reshape(-1)), text)
        velocity = out.primal.to(x_t.dtype)
        jvp = torch.zeros_like(x_t) if out.tangent is None else out.tangent.detach().to(x_t.dtype)
        return Dual(velocity, jvp)

    return call


def _exact(network: _Bound, x_t: Tensor, point: TrigPoint, v_teacher: Tensor) -> tuple[Tensor, Tensor]:
    velocity, jvp = network(x_t, point, point.k * v_teacher, point.k)
    assert jvp is not None
    return velocity, jvp


def _semi_continuous(
    network: _Bound, x_t: Tensor, point: TrigPoint, v_teacher: Tensor, step: float
) -> tuple[Tensor, Tensor]:
    """JVP in x at fixed u, difference in u at fixed x_u: tF = dF/dx (c s F_T) + c s pF/pu."""
    wide = _Wide(x_t, point, v_teacher)
    x_tangent = (wide.cos_sin * wide.f_teacher / wide.total).to(x_t.dtype)
    # The tangent of t is zeros and not None, because a network's t tangent is [B] by contract.
    velocity, jvp_x = network(x_t, point, x_tangent, torch.zeros_like(point.k))
    assert jvp_x is not None
    with torch.no_grad():
        other, cos_h, sin_h = _neighbour(point, x_t, step)
        partial = (cos_h * wide.f(velocity) - _f_at(network, wide.x_u, other)) / sin_h
        along_x = (wide.minus * wide.cos_sin * wide.f_teacher + jvp_x.double()) / wide.total
        return velocity, wide.jvp_from(along_x + wide.cos_sin * partial, velocity).to(x_t.dtype)


def _finite_difference(
    network: _Bound, x_t: Tensor, point: TrigPoint, v_teacher: Tensor, step: float
) -> tuple[Tensor, Tensor]:
    """Difference along the teacher's path: x_{u-h} = cos h x_u - sin h F_T."""
    wide = _Wide(x_t, point, v_teacher)
    velocity = network(x_t, point, None, None).primal
    with torch.no_grad():
        other, cos_h, sin_h = _neighbour(point, x_t, step)
        moved = cos_h * wide.x_u - sin_h * wide.f_teacher
        derivative = (cos_h * wide.f(velocity) - _f_at(network, moved, other)) / sin_h
        return velocity, wide.jvp_from(wide.cos_sin * derivative, velocity).to(x_t.dtype)


class _Wide:
    """TrigFlow quantities of a batch in float64, because a difference of size h loses four digits."""

    def __init__(self, x_t: Tensor, point: TrigPoint, v_teacher: Tensor) -> None:
        exact = trig_point(point.u, x_t.double())
        self.total, self.k = exact.total, exact.k
        self.minus, self.cos_sin = exact.cos - exact.sin, exact.cos * exact.sin
        self.x_u = self.total * x_t.double()
        self.f_teacher = self.f(v_teacher)

    def f(self, velocity: Tensor) -> Tensor:
        """F = ((c - s) x_u + v) / (c + s), without graph."""
        return (self.minus * self.x_u + velocity.detach().double()) / self.total

    def jvp_from(self, tangent_of_f: Tensor, velocity: Tensor) -> Tensor:
        """Solve tF = -2 k x_u + ((c-s)/(c+s)) c s F_T + k (s-c) v + Jv/(c+s) for Jv."""
        known = -2 * self.k * self.x_u + self.minus / self.total * self.cos_sin * self.f_teacher
        return self.total * (tangent_of_f - known + self.k * self.minus * velocity.double())


def _neighbour(point: TrigPoint, x_t: Tensor, step: float) -> tuple[TrigPoint, Tensor, Tensor]:
    """The point at u - h, and cos h and sin h; h is -step where u - step would leave [0, pi/2]."""
    if not 0 < step < HALF_PI / 2:
        raise ValueError(f"difference_step must lie between 0 and pi/4, got {step}")
    sign = torch.where(point.u >= step, 1.0, -1.0).to(torch.float64)
    other = trig_point(point.u - sign * step, x_t)
    sin_h = (sign * math.sin(step)).reshape(point.t.shape)
    return other, torch.full_like(sin_h, math.cos(step)), sin_h


def _f_at(network: _Bound, x_u: Tensor, point: TrigPoint) -> Tensor:
    """F of the student at another state and time, in float64."""
    exact = trig_point(point.u, x_u)
    velocity = network((x_u / exact.total).to(point.t.dtype), point, None, None).primal
    return ((exact.cos - exact.sin) * x_u + velocity.double()) / exact.total


def _measurements(
    point: TrigPoint,
    velocity: Tensor,
    v_teacher: Tensor,
    jvp: Tensor,
    g_norm: Tensor,
    g: Tensor,
    overflow: Tensor,
) -> dict[str, Tensor]:
    velocity_finite, teacher_finite = finite_per_sample(velocity), finite_per_sample(v_teacher)
    usable = velocity_finite & ~overflow
    gap = norm_per_sample(velocity.detach() - v_teacher)
    jvp_norm = norm_per_sample(jvp)
    scalars = {
        "g_norm": mean_where(g_norm, usable),
        "jvp_norm": mean_where(jvp_norm, torch.isfinite(jvp_norm)),
        "teacher_gap": mean_where(gap, torch.isfinite(gap)),
        "grad_norm": mean_where(2 * norm_per_sample(g), usable),
        "non_finite_tangent": count(overflow),
        "non_finite_tangent_sample": first_index(overflow),
        "non_finite_teacher": count(~teacher_finite),
        "non_finite_velocity": count(~velocity_finite),
        "non_finite_velocity_sample": first_index(~velocity_finite),
    }
    bucket = (point.u * (TIME_BUCKETS / HALF_PI)).long().clamp(max=TIME_BUCKETS - 1)
    for index in range(TIME_BUCKETS):
        members = (bucket == index) & torch.isfinite(gap)
        scalars[f"teacher_gap_bucket_{index}"] = mean_where(gap, members)
        scalars[f"teacher_gap_count_{index}"] = count(members)
    return scalars
