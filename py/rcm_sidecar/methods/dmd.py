"""Distribution matching: the student's rollout, the DMD loss and the critic's loss (rcm-method section 6)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rcm_sidecar.diffusion.coordinates import compute_dtype, noisy_state, trig_point, x0_from_velocity
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

NORMALISER_FLOOR = 1e-5
"""Smallest mean |v_T - (e - G)| the DMD gradient is divided by."""


def rollout(
    student: Network,
    noise: Tensor,
    times: Tensor,
    fresh_noise: Tensor | None,
    *,
    text: Tensor,
    time_scale: float,
) -> Tensor:
    """The student's own n-step sample ("backward simulation").

    Starts at times[0] = pi/2 from pure noise; each step takes x0 from the student and noises it to the next time.
    Only the last call carries gradient; under no_grad none does (the critic's rollout).

    Args:
        student: Velocity network f(x, t, text).
        noise: Starting noise [B, ...].
        times: TrigFlow times [n, B], from pi/2 down.
        fresh_noise: Noise of the following steps [n-1, B, ...]; None for n = 1.
        text: Condition [B, L, D].
        time_scale: The network's time is time_scale * t.

    Returns:
        The last x0 [B, ...] in at least float32.

    Raises:
        ValueError: the numbers of times and fresh noises do not fit.
    """
    steps = times.shape[0]
    if steps < 1 or (0 if fresh_noise is None else fresh_noise.shape[0]) != steps - 1:
        raise ValueError("a rollout of n steps needs n >= 1 times and n - 1 fresh noises")
    x_t = noise.to(compute_dtype(noise))
    point = trig_point(times[0], x_t)
    for step in range(steps - 1):
        with torch.no_grad():
            velocity = student(x_t, point.network_time(time_scale), text).to(x_t.dtype)
            x0 = x0_from_velocity(x_t, velocity, point.t)
            point = trig_point(times[step + 1], x_t)
            assert fresh_noise is not None
            x_t = noisy_state(x0, fresh_noise[step], point)
    velocity = student(x_t, point.network_time(time_scale), text).to(x_t.dtype)
    return x0_from_velocity(x_t, velocity, point.t)


def dmd_loss(
    generated: Tensor,
    noise: Tensor,
    u: Tensor,
    *,
    critic: Network,
    teacher: Network,
    text: Tensor,
    negative: Tensor | None,
    guidance: float,
    time_scale: float,
    branches: Branches = "sequential",
) -> Loss:
    """Sum (G - stopgrad(G - grad))^2 with grad = (v_T - v_fake) / max(mean |v_T - (e - G)|, 1e-5), without weight.

    In velocities the time cancels, so u = 0 is safe. Equal to the public x0 form except where the floor binds.

    Args:
        generated: G [B, ...], the end of `rollout`, with its graph.
        noise: e [B, ...].
        u: TrigFlow times [B] at which the two velocities are compared.
        critic: Velocity network of the student's distribution; no gradient.
        teacher: Velocity network of the data; no gradient.
        text: Condition [B, L, D].
        negative: Negative condition; None only with guidance 1.
        guidance: The teacher's guidance.
        time_scale: The networks' time is time_scale * t.
        branches: How the teacher's two guidance passes run.

    Returns:
        Loss. Scalars: `loss`; `grad_norm` = mean of 2 ||grad||, the gradient at the student's output; `gap` = mean of
        ||v_T - v_fake||; `normaliser` = mean divisor; `non_finite`, `non_finite_sample` = how many samples have a
        gradient that is not finite and the first of them (-1: none). Such a sample makes `total` not finite.
    """
    dtype = compute_dtype(generated)
    with torch.no_grad():
        point = trig_point(u, generated)
        clean = generated.detach().to(dtype)
        x_t = noisy_state(clean, noise, point)
        t = point.network_time(time_scale)
        v_critic = critic(x_t, t, text).to(dtype).double()
        v_teacher = guided_velocity(teacher, x_t, t, text, negative, guidance, branches).double()
        error = v_teacher - (noise.double() - clean.double())
        axes = tuple(range(1, error.ndim))
        normaliser = error.abs().mean(dim=axes, keepdim=True).clamp(min=NORMALISER_FLOOR)
        gradient = (v_teacher - v_critic) / normaliser
        target = clean.double() - gradient
    per_sample = sum_per_sample((generated.double() - target).square()).to(dtype)
    total = per_sample.mean()
    finite = finite_per_sample(gradient) & finite_per_sample(clean)
    scalars = {
        "loss": total.detach().double(),
        "grad_norm": mean_where(2 * norm_per_sample(gradient), finite),
        "gap": mean_where(norm_per_sample(v_teacher - v_critic), finite),
        "normaliser": mean_where(normaliser.flatten(), finite),
        "non_finite": count(~finite),
        "non_finite_sample": first_index(~finite),
    }
    return Loss(total, per_sample, scalars)


def critic_loss(
    generated: Tensor,
    noise: Tensor,
    u: Tensor,
    *,
    critic: Network,
    text: Tensor,
    time_scale: float,
) -> Loss:
    """Flow matching of the critic on the student's samples: sum ((v_fake - (e - G)) / (cos u + sin u))^2.

    Equal to the public sum (G - x0_fake)^2 / sin^2 u, without its 0/0 at u = 0.

    Args:
        generated: G [B, ...]; its graph, if any, is cut.
        noise: e [B, ...].
        u: TrigFlow times [B].
        critic: Velocity network that learns.
        text: Condition [B, L, D].
        time_scale: The network's time is time_scale * t.

    Returns:
        Loss. Scalars: `loss`; `grad_norm` = mean of 2 ||residual||, the gradient at the critic's TrigFlow output;
        `non_finite`, `non_finite_sample`.
    """
    clean = generated.detach().to(compute_dtype(generated))
    point = trig_point(u, clean)
    velocity: Any = critic(noisy_state(clean, noise, point), point.network_time(time_scale), text)
    residual = (velocity.to(clean.dtype) - (noise.to(clean.dtype) - clean)) / point.total
    per_sample = sum_per_sample(residual.square())
    total = per_sample.mean()
    finite = finite_per_sample(residual)
    scalars = {
        "loss": total.detach().double(),
        "grad_norm": mean_where(2 * norm_per_sample(residual), finite),
        "non_finite": count(~finite),
        "non_finite_sample": first_index(~finite),
    }
    return Loss(total, per_sample, scalars)
