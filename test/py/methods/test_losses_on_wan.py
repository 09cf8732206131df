"""The losses on the real network class (digits size, every parameter random, time scale 1000)."""

import pytest
import torch

from rcm_sidecar.methods.dmd import critic_loss, dmd_loss, rollout
from rcm_sidecar.methods.rcm import rollout_times
from rcm_sidecar.methods.scm import scm_loss
from rcm_sidecar.networks import build

SIZES = dict(dim=32, num_heads=2, num_layers=2, ffn_dim=48, text_dim=16, freq_dim=32, in_dim=1, out_dim=1)


def network(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    net = build("wan2.1-tiny", generator=generator, **SIZES)
    for parameter in net.parameters():
        scale = 0.5 * parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.2
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return net.to(dtype)


def inputs(dtype):
    generator = torch.Generator().manual_seed(9)
    x0, noise, fresh = (torch.randn(4, 1, 1, 8, 8, generator=generator).to(dtype) for _ in range(3))
    text, negative = (torch.randn(4, 4, 16, generator=generator).to(dtype) for _ in range(2))
    u = torch.tensor([0.2, 0.7, 1.2, 1.5], dtype=torch.float64)
    return x0, noise, fresh, u, {"text": text, "negative": negative, "guidance": 1.5, "time_scale": 1000.0}


def scm_gradient(derivative, dtype, step=1e-4, time_scale=1000.0):
    student, teacher = network(1, dtype), network(2, dtype)
    x0, noise, _, u, condition = inputs(dtype)
    condition["time_scale"] = time_scale
    options = {"derivative": derivative, "difference_step": step, "norm_offset": None}
    loss = scm_loss(student, teacher, x0, noise, u, **condition, **options)
    loss.total.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert loss.scalars["jvp_norm"] > 0.1
    return torch.cat([p.grad.double().flatten() for p in student.parameters()])


def distance(a, b):
    return ((a - b).norm() / b.norm()).item()


def test_exact_derivative_agrees_with_differences_and_in_float32():
    exact = scm_gradient("exact", torch.float64)
    for derivative in ("semiContinuous", "finiteDifference"):
        far, near = (distance(scm_gradient(derivative, torch.float64, step), exact) for step in (1e-5, 1e-6))
        assert near < far / 5 and near < 2e-3
    assert distance(scm_gradient("exact", torch.float32), exact) < 1e-4


@pytest.mark.parametrize("derivative", ["semiContinuous", "finiteDifference"])
def test_difference_forms_are_within_five_percent_in_float32(derivative):
    """Time scale 100: random weights follow the time embedding's fastest wave, which a trained network damps."""
    exact = scm_gradient("exact", torch.float64, time_scale=100.0)
    assert distance(scm_gradient(derivative, torch.float32, time_scale=100.0), exact) < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dmd_and_critic_run_on_the_network(dtype):
    student, critic, teacher = network(1, dtype), network(3, dtype), network(2, dtype)
    x0, noise, fresh, u, condition = inputs(dtype)
    generated = rollout(
        student, noise, rollout_times(2, 4, [1.1]), fresh[None], text=condition["text"], time_scale=1000.0
    )
    loss = dmd_loss(generated, x0, u, critic=critic, teacher=teacher, **condition)
    loss.total.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in student.parameters())
    assert all(p.grad is None for p in [*critic.parameters(), *teacher.parameters()])
    critical = critic_loss(generated, noise, u, critic=critic, text=condition["text"], time_scale=1000.0)
    critical.total.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in critic.parameters())
    assert loss.total.dtype == critical.total.dtype == dtype
