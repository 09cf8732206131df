"""Flow matching of the teacher."""

from __future__ import annotations

import doctest

import pytest
import torch
from training.tiny_run import tiny_config

from rcm_sidecar.checkpoints import training_state
from rcm_sidecar.training import randomness
from rcm_sidecar.training.pretrain import PretrainingPlan, flow_matching_loss
from rcm_sidecar.training.setup import set_up_pretraining


def test_the_loss_of_the_exact_velocity_is_zero_and_of_none_is_two() -> None:
    source = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(64, 1, 1, 8, 8, generator=source, dtype=torch.float64) for _ in range(2))
    u = torch.rand(64, generator=source, dtype=torch.float64) * torch.pi / 2
    text = torch.zeros(64, 1, 1)
    exact = flow_matching_loss(lambda x, t, text: noise - x0, x0, noise, u, text=text, time_scale=1000.0)
    assert exact.total.item() == 0
    none = flow_matching_loss(lambda x, t, text: torch.zeros_like(x), x0, noise, u, text=text, time_scale=1000.0)
    assert none.total.item() == pytest.approx(2.0, abs=0.05)
    assert none.per_sample.shape == (64,)


def test_the_network_sees_the_rectified_state_and_time() -> None:
    x0, noise = torch.full((2, 1, 1, 2, 2), 2.0), torch.full((2, 1, 1, 2, 2), 10.0)
    u = torch.tensor([0.0, torch.pi / 4], dtype=torch.float64)
    seen = {}

    def network(x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        seen.update(x=x, t=t)
        return x

    flow_matching_loss(network, x0, noise, u, text=torch.zeros(2, 1, 1), time_scale=1000.0)
    assert seen["t"].tolist() == [0.0, 500.0]
    assert seen["x"][:, 0, 0, 0, 0].tolist() == [2.0, 6.0]


def test_labels_are_dropped_in_their_share_and_the_table_learns() -> None:
    trained = set_up_pretraining(tiny_config({"pretrain.batchSize": 4000, "pretrain.labelDropout": 0.25}))
    plan = trained.trainer._plan
    assert isinstance(plan, PretrainingPlan)
    labels = plan(0, {"teacher": 0}).inputs["labels"]
    assert (labels == 10).float().mean().item() == pytest.approx(0.25, abs=0.03)
    small = set_up_pretraining(tiny_config())
    # The head starts at zero, so the first step moves only the head; the table gets a gradient from the second on.
    for _ in range(3):
        small.trainer.run_step()
    fresh = set_up_pretraining(tiny_config()).shown.parameters["conditioner.table"]
    assert not torch.equal(small.shown.parameters["conditioner.table"], fresh)
    assert "conditioner.table" in small.shown.emas[0].weights


def test_the_seed_decides_the_weights() -> None:
    one, same, other = (set_up_pretraining(tiny_config({"seed": seed})) for seed in (1, 1, 2))
    name = "blocks.0.ffn.0.weight"
    assert torch.equal(one.shown.parameters[name], same.shown.parameters[name])
    assert not torch.equal(one.shown.parameters[name], other.shown.parameters[name])


def test_training_lowers_the_loss() -> None:
    trained = set_up_pretraining(tiny_config({"pretrain.steps": 60, "pretrain.batchSize": 32}))
    losses = [trained.trainer.run_step().values["flow/loss"] for _ in range(60)]
    assert sum(losses[-10:]) < 0.92 * sum(losses[:10])


@pytest.mark.parametrize("module", [randomness, training_state])
def test_examples(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted > 0 and result.failed == 0


def test_streams_are_independent_and_repeatable() -> None:
    def numbers(*key: object) -> list[float]:
        return torch.rand(4, generator=randomness.generator(*key)).tolist()  # type: ignore[arg-type]

    assert numbers(0, 1, "a") == numbers(0, 1, "a")
    different = [numbers(0, 1, "a"), numbers(1, 1, "a"), numbers(0, 2, "a"), numbers(0, 1, "b")]
    assert len({tuple(row) for row in different}) == 4
    before = torch.get_rng_state()
    numbers(0, 1, "a")
    assert torch.equal(before, torch.get_rng_state())
