"""UniPC of order 2 (variant bh2, x0 prediction, lower order at the end) in closed form (wan2.1 section 9.5).

Source: UniPC (arXiv 2302.04867). Times s are rectified-flow times in (0, 1), falling, with a last 0. All coefficients
are Python floats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor


def log_signal_to_noise(s: float) -> float:
    """Half log signal-to-noise ratio ln(1-s) - ln(s); infinite at 0."""
    return math.inf if s == 0 else math.log(1 - s) - math.log(s)


def sample_unipc(velocity: Callable[[Tensor, float], Tensor], x: Tensor, grid: Sequence[float]) -> Tensor:
    """Integrate from grid[0] to 0 with one network call a step.

    Args:
        velocity: v(x, s), in x's dtype.
        x: Starting state.
        grid: N + 1 falling times in [0, 1), the last one 0.

    Raises:
        ValueError: the grid starts at 1 or above, does not fall or does not end at 0.
    """
    if grid[0] >= 1 or grid[-1] != 0 or any(b >= a for a, b in zip(grid, grid[1:], strict=False)):
        raise ValueError("UniPC needs falling times below 1 that end at 0")
    steps = len(grid) - 1
    estimates: list[Tensor] = []
    corrected, order = x, 0
    for index in range(steps):
        estimates.append(x - grid[index] * velocity(x, grid[index]))
        if index > 0:
            x = _correct(corrected, estimates, grid, index, order)
        corrected = x
        order = min(2, steps - index, index + 1)
        x = _predict(x, estimates, grid, index, order)
        estimates = estimates[-2:]
    return x


def _predict(x: Tensor, estimates: list[Tensor], grid: Sequence[float], index: int, order: int) -> Tensor:
    now, then = grid[index], grid[index + 1]
    if then == 0:
        return estimates[-1]
    step = log_signal_to_noise(then) - log_signal_to_noise(now)
    factor = (1 - then) * math.expm1(-step)
    following = (then / now) * x - factor * estimates[-1]
    if order == 1:
        return following
    ratio = (log_signal_to_noise(grid[index - 1]) - log_signal_to_noise(now)) / step
    return following - factor * 0.5 * (estimates[-2] - estimates[-1]) / ratio


def _correct(last: Tensor, estimates: list[Tensor], grid: Sequence[float], index: int, order: int) -> Tensor:
    """State at grid[index], corrected with the estimate made there; `last` is the corrected state one step before."""
    before, now = grid[index - 1], grid[index]
    step = log_signal_to_noise(now) - log_signal_to_noise(before)
    growth = math.expm1(-step)
    newest, middle = estimates[-1], estimates[-2]
    base = (now / before) * last - (1 - now) * growth * middle
    if order == 1:
        return base - (1 - now) * growth * 0.5 * (newest - middle)
    ratio = (log_signal_to_noise(grid[index - 2]) - log_signal_to_noise(before)) / step
    phi = growth / -step - 1
    b1, b2 = phi / growth, 2 * (phi / -step - 0.5) / growth
    rho1 = (b1 - b2) / (1 - ratio)
    rho2 = b1 - rho1
    oldest = estimates[-3]
    return base - (1 - now) * growth * (rho1 * (oldest - middle) / ratio + rho2 * (newest - middle))
