"""Guidance: formula, branches, no negative call at 1, the missing negative, dtypes."""

import pytest
import torch

from rcm_sidecar.diffusion.guidance import MissingNegativeError, guided_velocity
from rcm_sidecar.errors import SidecarError

X = torch.randn(3, 2, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
T = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
TEXT = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
NEGATIVE = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


class Network:
    def __init__(self):
        self.batches = []

    def __call__(self, x, t, text):
        self.batches.append(x.shape[0])
        return x * t.reshape(-1, 1, 1, 1, 1) + text.mean(dim=(1, 2)).reshape(-1, 1, 1, 1, 1)


@pytest.mark.parametrize("branches,batches", [("sequential", [3, 3]), ("batched", [6])])
@pytest.mark.parametrize("guidance", [0.0, 1.5, 5.0])
def test_formula(branches, batches, guidance):
    network = Network()
    got = guided_velocity(network, X, T, TEXT, NEGATIVE, guidance, branches)
    positive, negative = Network()(X, T, TEXT), Network()(X, T, NEGATIVE)
    torch.testing.assert_close(got, negative + guidance * (positive - negative), rtol=1e-14, atol=1e-14)
    assert network.batches == batches


@pytest.mark.parametrize("negative", [None, NEGATIVE])
def test_guidance_one_is_one_positive_call(negative):
    network = Network()
    assert torch.equal(guided_velocity(network, X, T, TEXT, negative, 1.0), Network()(X, T, TEXT))
    assert network.batches == [3]


def test_one_negative_row_serves_the_batch():
    one = NEGATIVE[:1]
    expected = guided_velocity(Network(), X, T, TEXT, one.expand(3, 4, 5), 2.0)
    for branches in ("sequential", "batched"):
        torch.testing.assert_close(guided_velocity(Network(), X, T, TEXT, one, 2.0, branches), expected)


def test_missing_negative_is_a_typed_error_and_calls_nothing():
    network = Network()
    with pytest.raises(MissingNegativeError, match=r"Guidance 1\.5 needs a negative") as error:
        guided_velocity(network, X, T, TEXT, None, 1.5)
    assert isinstance(error.value, SidecarError) and isinstance(error.value, ValueError)
    assert network.batches == []


def test_unknown_branches_are_refused():
    with pytest.raises(ValueError, match="branches"):
        guided_velocity(Network(), X, T, TEXT, NEGATIVE, 2.0, "parallel")


def test_half_precision_outputs_are_combined_in_float32():
    def half(x, t, text):
        return Network()(x, t, text).bfloat16()

    got = guided_velocity(half, X.float(), T.float(), TEXT.float(), NEGATIVE.float(), 5.0)
    assert got.dtype == torch.float32
