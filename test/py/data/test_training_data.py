from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rcm_sidecar.config import load_config
from rcm_sidecar.data import Statistics, TensorData, open_training_data, statistics_warning
from rcm_sidecar.errors import ConfigError

CONFIG = load_config(Path(__file__).parent.parent / "fixtures" / "digits-rcm.json")
N = 7


def small() -> TensorData:
    return TensorData(torch.arange(N).float().reshape(N, 1, 1, 1, 1), torch.arange(N))


@given(start=st.integers(0, 100), first=st.integers(1, 20), second=st.integers(1, 20), seed=st.integers(0, 2**53 - 1))
def test_batches_are_windows_of_one_stream(start, first, second, seed):
    whole = small().batch(start, first + second, seed).condition
    parts = [small().batch(start, first, seed).condition, small().batch(start + first, second, seed).condition]
    assert torch.equal(whole, torch.cat(parts))


@given(epoch=st.integers(0, 1000), seed=st.integers(0, 1000))
def test_every_epoch_shows_every_sample_once(epoch, seed):
    batch = small().batch(epoch * N, N, seed)
    assert sorted(batch.condition.tolist()) == list(range(N))
    assert torch.equal(batch.latents.flatten().long(), batch.condition)


def test_epochs_and_seeds_differ():
    data = open_training_data(CONFIG)
    orders = [data.batch(epoch * data.size, data.size, seed).condition for epoch in (0, 1) for seed in (0, 1)]
    assert all(not torch.equal(a, b) for i, a in enumerate(orders) for b in orders[:i])


def test_the_order_depends_on_nothing_but_position():
    data = open_training_data(CONFIG)
    wanted = data.batch(5000, 300, 3)
    data.batch(17, 2000, 4)
    torch.manual_seed(1)
    again = data.batch(5000, 300, 3)
    assert torch.equal(wanted.latents, again.latents) and torch.equal(wanted.condition, again.condition)


@pytest.mark.parametrize(("start", "count"), [(-1, 4), (0, 0)])
def test_impossible_batches_are_refused(start, count):
    with pytest.raises(ValueError, match="no batch"):
        small().batch(start, count, 0)


def test_digits():
    data = open_training_data(CONFIG)
    assert data.size == 1438 and data.latent_shape == (1, 1, 8, 8)
    assert statistics_warning(data.statistics()) is None


@pytest.mark.parametrize("change", [{"kind": "videos"}, {"hold_out": 0.5}])
def test_what_does_not_exist_yet_says_so(change):
    data = msgspec.structs.replace(CONFIG.data, **change)
    with pytest.raises(ConfigError) as caught:
        open_training_data(msgspec.structs.replace(CONFIG, data=data))
    assert caught.value.code == "E_CONFIG_NOT_YET"


@pytest.mark.parametrize(
    ("mean", "std", "warns"), [(0.05, 1.05, False), (0.2, 1, True), (0, 0.85, True), (0, 1.2, True)]
)
def test_statistics_warn_with_the_numbers(mean, std, warns):
    warning = statistics_warning(Statistics(mean, std))
    assert (warning is not None) == warns
    if warning is not None:
        assert f"{mean:.3f}" in warning and f"{std:.3f}" in warning
