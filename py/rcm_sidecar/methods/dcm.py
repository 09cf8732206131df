"""Discrete-time consistency distillation, the baseline without a JVP (rcm-method section 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from rcm_sidecar.diffusion.coordinates import (
    TrigPoint,
    compute_dtype,
    noisy_state,
    over_batch,
    rectified_state,
    shift_time,
    trig_point,
    trigflow_from_rf,
    trigflow_state,
    trigflow_velocity,
    x0_from_velocity,
)
from rcm_sidecar.diffusion.guidance import Branches, Network, guided_velocity
from rcm_sidecar.methods.loss import (
    Loss,
    count,
    finite_per_sample,
    first_index,
    mean_where,
    norm_per_sample,
    sum_per_sample,
)


def grid_times(q: Tensor, steps: int, skip: int, shift: float) -> Tensor:
    """TrigFlow times u_0 > ... > u_n [n+1, B] of the teacher's path, float64.

    t_k = shift(1 - (q + k / steps)) for q [B] in [0, 1 - skip / steps], so that u_0 = pi/2 at q = 0 and u_n = 0 at the
    other end (rounding below 0 is clamped).
    """
    k = torch.arange(skip + 1, dtype=torch.float64, device=q.device)[:, None]
    t = (1 - (q.double()[None] + k / steps)).clamp(0.0, 1.0)
    return trigflow_from_rf(shift_time(t, shift))


def dcm_loss(
    student: Network,
    teacher: Network,
    x0: Tensor,
    noise: Tensor,
    q: Tensor,
    *,
    text: Tensor,
    negative: Tensor | None,
    guidance: float,
    time_scale: float,
    steps: int = 48,
    skip: int = 1,
    shift: float = 5.0,
    branches: Branches = "sequential",
) -> Loss:
    """Sum (x0_student(u_0) - stopgrad x0_student(u_n))^2, u_n reached by `skip` Euler steps of the guided teacher.

    The Euler steps x <- x + (u_{k+1} - u_k) F_T run in TrigFlow coordinates. The target is the student itself, no EMA
    copy. No weight is applied.

    Args:
        student: Velocity network that learns.
        teacher: Velocity network without gradient.
        x0: Clean data [B, ...].
        noise: e [B, ...].
        q: Uniform draws [B] in [0, 1 - skip / steps].
        text: Condition [B, L, D].
        negative: Negative condition; None only with guidance 1.
        guidance: The teacher's guidance.
        time_scale: The networks' time is time_scale * t.
        steps: Grid size N.
        skip: Teacher steps n between student and target.
        shift: Shift of the rectified-flow grid.
        branches: How the teacher's two guidance passes run.

    Returns:
        Loss. Scalars: `loss`; `grad_norm` = mean of 2 ||x0 - target||, the gradient at the student's x0;
        `teacher_gap` = mean ||v - v_T|| at u_0; `non_finite`, `non_finite_sample`.
    """
    u = grid_times(q, steps, skip, shift)
    start = trig_point(u[0], x0)
    x_t = noisy_state(x0, noise, start)
    velocity = student(x_t, start.network_time(time_scale), text).to(x_t.dtype)
    prediction = x0_from_velocity(x_t, velocity, start.t)
    with torch.no_grad():
        point, x_u = start, trigflow_state(x_t, start)
        gap = torch.zeros_like(q, dtype=torch.float64)
        for index in range(skip):
            v_teacher = _teacher_velocity(teacher, x_u, point, text, negative, guidance, time_scale, branches)
            gap = norm_per_sample(velocity - v_teacher) if index == 0 else gap
            step_size = over_batch(u[index + 1] - u[index], x_u).to(x_u.dtype)
            x_u = x_u + step_size * trigflow_velocity(x_u, v_teacher, point)
            point = trig_point(u[index + 1], x_u)
        end = rectified_state(x_u, point)
        end_velocity = student(end, point.network_time(time_scale), text).to(end.dtype)
        target = x0_from_velocity(end, end_velocity, point.t)
    residual = prediction - target
    per_sample = sum_per_sample(residual.square())
    total = per_sample.mean()
    finite = finite_per_sample(residual)
    scalars = {
        "loss": total.detach().double(),
        "grad_norm": mean_where(2 * norm_per_sample(residual), finite),
        "teacher_gap": mean_where(gap, finite),
        "non_finite": count(~finite),
        "non_finite_sample": first_index(~finite),
    }
    return Loss(total, per_sample, scalars)


def _teacher_velocity(
    teacher: Network,
    x_u: Tensor,
    point: TrigPoint,
    text: Tensor,
    negative: Tensor | None,
    guidance: float,
    time_scale: float,
    branches: Branches,
) -> Tensor:
    x_t = rectified_state(x_u, point)
    t = point.network_time(time_scale)
    return guided_velocity(teacher, x_t, t, text, negative, guidance, branches).to(compute_dtype(x_u))
