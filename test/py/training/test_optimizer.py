"""AdamW: equal to torch's, no first moment at betas[0] = 0, state through safetensors, clipping, missing gradients."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from rcm_sidecar.errors import CheckpointError, TrainingError
from rcm_sidecar.training.optimizer import AdamW, Rates, fused_update, update_by_passes

SHAPES = {"block.weight": (4, 3), "block.bias": (4,), "modulation": (1, 2, 2)}


def parameters(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for name, shape in SHAPES.items()
    }


def give_gradients(named, step):
    generator = torch.Generator().manual_seed(100 + step)
    for value in named.values():
        gradient = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        value.grad = (gradient * 10.0 ** (step % 3 - 1)).to(value.dtype)


def rate(step):
    return 1e-2 / (1 + step)


def make(named, betas=(0.0, 0.999), weight_decay=0.01):
    return AdamW(named, betas=betas, epsilon=1e-8, weight_decay=weight_decay)


@pytest.fixture(params=[update_by_passes, fused_update])
def update(request, monkeypatch):
    """Both ways to update; the fused kernel has a twin on the CPU."""
    make_optimizer = AdamW.__init__

    def with_update(self, *arguments, **named):
        make_optimizer(self, *arguments, **named)
        self._apply = request.param

    monkeypatch.setattr(AdamW, "__init__", with_update)


@pytest.mark.parametrize("betas", [(0.0, 0.999), (0.9, 0.99)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_equals_torch(betas, weight_decay, update):
    ours, theirs = parameters(), parameters()
    mine = make(ours, betas, weight_decay)
    reference = torch.optim.AdamW(theirs.values(), betas=betas, eps=1e-8, weight_decay=weight_decay)
    for step in range(20):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        reference.param_groups[0]["lr"] = rate(step)
        mine.step(rate(step))
        reference.step()
        for name in SHAPES:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-12, atol=1e-12)
    assert mine.updates == 20


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ODD_SHAPES = [(), (0, 3), (1,), (37,), (1, 5, 1), (3, 70_001)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_the_fused_kernel_is_the_same_update_and_leaves_gradients_alone(beta1, device):
    """Shards may be empty, and dimensions of size 1 may have any stride. Gradients stand in for the first moment."""
    source = torch.Generator().manual_seed(5)
    drawn = [[torch.randn(shape, generator=source).to(device) for shape in ODD_SHAPES] for _ in range(4)]
    own, gradients, second, first = drawn
    gradients[3][:2] = torch.tensor([-0.0, 1e-30])
    gradients[4] = gradients[4].as_strided((1, 5, 1), (99, 1, 7))
    second = [value.square() for value in second]
    first = first if beta1 > 0 else []
    before = [value.clone() for value in gradients]
    results = []
    for apply in (update_by_passes, fused_update):
        state = [[value.clone() for value in values] for values in (own, second, first)]
        apply(state[0], gradients, *state[1:], Rates(1e-2, beta1, 0.99, 1e-8, 0.1, updates=3))
        results.append([value for values in state for value in values])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-7)
    for value, kept in zip(gradients, before, strict=True):
        assert torch.equal(value, kept)  # a -0 may have become 0
    assert (results[0][3] - own[3]).abs().max() > 1e-3


@pytest.mark.parametrize("device", DEVICES)
def test_the_device_decides_how_to_update(device):
    optimizer = make({name: value.to(device).detach().requires_grad_() for name, value in parameters().items()})
    assert optimizer._apply is {"cpu": update_by_passes, "cuda": fused_update}[device]


def test_beta_zero_keeps_no_first_moment():
    assert sorted(make(parameters()).state_dict()) == sorted([*(f"second/{name}" for name in SHAPES), "updates"])
    with_momentum = make(parameters(), (0.9, 0.99)).state_dict()
    assert sum(name.startswith("first/") for name in with_momentum) == len(SHAPES)


@pytest.mark.parametrize("betas", [(0.0, 0.999), (0.9, 0.99)])
def test_resume_through_safetensors_is_bit_equal(betas, tmp_path, update):
    straight = parameters(torch.float32)
    optimizer = make(straight, betas)
    for step in range(6):
        give_gradients(straight, step)
        optimizer.step(rate(step))
        if step == 2:
            save_file(optimizer.state_dict(), tmp_path / "optimizer.safetensors")
            kept = {name: value.detach().clone().requires_grad_() for name, value in straight.items()}
    resumed = make(kept, betas)
    resumed.load_state_dict(load_file(tmp_path / "optimizer.safetensors"))
    assert resumed.updates == 3
    for step in range(3, 6):
        give_gradients(kept, step)
        resumed.step(rate(step))
    assert all(torch.equal(kept[name], straight[name]) for name in SHAPES)


def test_a_state_that_does_not_fit_changes_nothing():
    optimizer = make(parameters())
    give_gradients(parameters(), 0)
    before = {name: value.clone() for name, value in optimizer.state_dict().items()}
    wrong_shape = {**before, "second/modulation": torch.zeros(3)}
    for state in (make(parameters(), (0.9, 0.99)).state_dict(), wrong_shape, {}):
        with pytest.raises(CheckpointError) as error:
            optimizer.load_state_dict(state)
        assert error.value.code == "E_CHECKPOINT_CORRUPT"
    assert all(torch.equal(value, before[name]) for name, value in optimizer.state_dict().items())


def test_clipping_equals_torch():
    ours, theirs = parameters(), parameters()
    for max_norm in (0.5, 1e6):
        give_gradients(ours, 1)
        give_gradients(theirs, 1)
        optimizer = make(ours)
        norm = optimizer.gradient_norm()
        optimizer.clip(max_norm, norm)
        expected = torch.nn.utils.clip_grad_norm_(theirs.values(), max_norm)
        torch.testing.assert_close(norm, expected, rtol=1e-12, atol=0)
        for name in SHAPES:
            torch.testing.assert_close(ours[name].grad, theirs[name].grad, rtol=1e-12, atol=0)


def test_missing_gradient_is_named_and_frozen_parameters_are_left_alone():
    named = parameters()
    named["modulation"].requires_grad_(False)
    frozen = named["modulation"].clone()
    optimizer = make(named)
    give_gradients({name: named[name] for name in ("block.weight", "block.bias")}, 0)
    optimizer.step(0.1)
    assert torch.equal(named["modulation"], frozen)
    optimizer.zero_grad()
    assert named["block.bias"].grad is None
    give_gradients({"block.weight": named["block.weight"]}, 0)
    with pytest.raises(TrainingError, match=r"block\.bias"):
        optimizer.step(0.1)
    assert optimizer.updates == 1


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="betas"):
        make(parameters(), (0.9, 1.0))
    with pytest.raises(ValueError, match="no trainable"):
        make({"a": torch.zeros(1)})
