import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rcm_sidecar.evaluation.frechet import (
    Moments,
    enough_samples,
    frechet_distance,
    moments,
    resampled_moments,
)
from rcm_sidecar.evaluation.intervals import frechet_interval, mean_interval, resample_counts


def gaussian(seed: int, n: int, d: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + seed


@given(means=st.lists(st.floats(-5, 5), min_size=2, max_size=2), stds=st.lists(st.floats(0, 5), min_size=2, max_size=2))
def test_closed_form_in_one_dimension(means, stds):
    a, b = (
        Moments(torch.tensor([m], dtype=torch.float64), torch.tensor([[s * s]], dtype=torch.float64), 9)
        for m, s in zip(means, stds, strict=True)
    )
    wanted = (means[0] - means[1]) ** 2 + (stds[0] - stds[1]) ** 2
    assert frechet_distance(a, b).item() == pytest.approx(wanted, abs=1e-6)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000))
def test_against_scipy_sqrtm_and_numpy_moments(seed):
    a, b = gaussian(seed, 80, 6), gaussian(seed + 1, 50, 6)
    ca, cb = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    shift = a.numpy().mean(0) - b.numpy().mean(0)
    wanted = shift @ shift + np.trace(ca + cb - 2 * scipy.linalg.sqrtm(ca @ cb).real)
    assert frechet_distance(moments(a), moments(b)).item() == pytest.approx(wanted, rel=1e-7)


def test_symmetric_and_zero_for_equal_sets():
    a, b = moments(gaussian(0, 80, 6)), moments(gaussian(3, 80, 6))
    assert frechet_distance(a, b).item() == pytest.approx(frechet_distance(b, a).item(), rel=1e-9)
    assert frechet_distance(a, a).item() < 1e-9


def test_a_collapsed_set_has_the_distance_of_a_point():
    real = moments(gaussian(2, 400, 5))
    point = moments(real.mean.expand(400, -1))
    assert frechet_distance(real, point).item() == pytest.approx(real.covariance.trace().item(), rel=1e-9)


def test_ten_samples_a_dimension_are_asked_for():
    assert enough_samples(320, 32) and not enough_samples(319, 32)


def test_moments_of_resamples_are_those_of_the_repeated_samples():
    features = gaussian(4, 30, 5) + 100
    counts = resample_counts(30, 3, seed=7)
    batched = resampled_moments(features, counts)
    for index in range(3):
        repeated = moments(features.repeat_interleave(counts[index].long(), dim=0))
        torch.testing.assert_close(batched.mean[index], repeated.mean, rtol=1e-12, atol=1e-9)
        torch.testing.assert_close(batched.covariance[index], repeated.covariance, rtol=1e-9, atol=1e-9)


def test_resamples_are_seeded_and_complete():
    counts = resample_counts(50, 20, seed=1)
    assert torch.equal(counts, resample_counts(50, 20, seed=1))
    assert not torch.equal(counts, resample_counts(50, 20, seed=2))
    assert (counts.sum(1) == 50).all()


def test_the_interval_of_a_share_is_that_of_the_binomial():
    contributions = (torch.arange(1000) < 300).double()
    low, high = mean_interval(contributions, resample_counts(1000, 2000, seed=0))
    half = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert low == pytest.approx(0.3 - half, abs=0.004) and high == pytest.approx(0.3 + half, abs=0.004)


@pytest.mark.parametrize(("tries", "least"), [(20, 16), pytest.param(100, 85, marks=pytest.mark.long)])
def test_frechet_intervals_hold_their_value_and_the_truth_about_as_often_as_they_say(tries, least):
    d, n = 4, 200
    reference = Moments(torch.zeros(d).double(), torch.eye(d).double(), 10**6)
    held = 0
    for seed in range(tries):
        sample = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 1.5
        value = frechet_distance(reference, moments(sample)).item()
        low, high = frechet_interval(reference, sample, value, resample_counts(n, 100, seed))
        assert low <= value <= high
        held += low <= d * 0.25 <= high
    assert held >= least


def test_no_resamples_no_interval():
    assert mean_interval(torch.ones(4), resample_counts(4, 0, 0)) is None
