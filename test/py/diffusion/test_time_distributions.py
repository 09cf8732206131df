"""Time distributions: quantiles against closed forms, seeds, ends, parameters."""

import math

import pytest
import torch

from rcm_sidecar.diffusion.time_distributions import draw, draw_rf

KINDS = {
    "logNormalSigma": {"mean": -0.4, "std": 1.6},
    "uniformShifted": {"shift": 5.0},
    "uniformLogisticNormal": {"std": 1.2},
}
COUNT = 40_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal_cdf(x):
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def cdf(kind, t):
    """P(rectified-flow time < t)."""
    logit = math.log(t / (1 - t))
    if kind == "logNormalSigma":
        return normal_cdf((logit + 0.4) / 1.6)
    if kind == "uniformShifted":
        return t / (5 - 4 * t)
    return 0.5 * t + 0.5 * normal_cdf(logit / 1.2)


@pytest.mark.parametrize("kind", KINDS)
def test_distribution_is_the_closed_form(kind):
    t = draw_rf(kind, COUNT, generator=generator(), **KINDS[kind])
    for level in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98):
        expected = cdf(kind, level)
        four_sigma = 4 * math.sqrt(expected * (1 - expected) / COUNT)
        assert abs((t < level).double().mean().item() - expected) < four_sigma


@pytest.mark.parametrize("kind", KINDS)
def test_trigflow_and_rectified_draws_are_the_same_times(kind):
    u = draw(kind, 500, generator=generator(3), **KINDS[kind])
    t = draw_rf(kind, 500, generator=generator(3), **KINDS[kind])
    torch.testing.assert_close(u, torch.atan2(t, 1 - t), rtol=1e-10, atol=1e-12)
    assert u.dtype == torch.float64 and (u >= 0).all() and (u <= math.pi / 2).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_depends_on_its_generator_only(kind):
    torch.manual_seed(1)
    one = draw(kind, 8, generator=generator(7), **KINDS[kind])
    torch.manual_seed(2)
    assert torch.equal(one, draw(kind, 8, generator=generator(7), **KINDS[kind]))
    assert not torch.equal(one, draw(kind, 8, generator=generator(8), **KINDS[kind]))
    assert draw(kind, 8, generator=generator(7), dtype=torch.float32, **KINDS[kind]).dtype == torch.float32


@pytest.mark.parametrize(
    "kind,given",
    [("gamma", {}), ("logNormalSigma", {"mean": 0.0}), ("uniformShifted", {"shift": 5.0, "std": 1.0})],
)
def test_wrong_parameters_are_refused(kind, given):
    with pytest.raises(ValueError, match=r"unknown|takes"):
        draw(kind, 1, generator=generator(), **given)
