"""Both networks against the classes of diffusers, through the folders we write; exactly two adjustments, as arguments.

`qk_norm_eps`: diffusers builds Cosmos with 1e-5 where the official code has 1e-6 (cosmos-predict2.md P2).
`time_dtype`: pipelines may round the time to the weights' dtype; both sides get float32 here.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from networks import cosmos_twin, wan_twin
from safetensors.torch import load_file

from rcm_sidecar.checkpoints import load_network, save_network
from rcm_sidecar.networks import build

pytestmark = pytest.mark.long

TOLERANCE = 1e-5
# Smaller than the releases; Wan with several frames, both with text shorter than its padding.
NETWORKS = {
    "wan2.1-tiny": ("WanTransformer3DModel", wan_twin, {}),
    "cosmos-predict2-tiny": ("CosmosTransformer3DModel", cosmos_twin, {}),
    "cosmos-predict2-tiny, heads of 128": ("CosmosTransformer3DModel", cosmos_twin, {"num_heads": 1}),
}


@pytest.fixture
def models(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    models = pytest.importorskip("diffusers", reason="diffusers is not installed (parity only)").models
    # Theirs resizes the padding mask, all zeros here, with torchvision, whose builds are tied to torch's.
    resize = SimpleNamespace(resize=lambda mask, size, interpolation: torch.zeros(*mask.shape[:2], *size))
    shim = SimpleNamespace(functional=resize, InterpolationMode=SimpleNamespace(NEAREST="nearest"))
    monkeypatch.setattr("diffusers.models.transformers.transformer_cosmos.transforms", shim, raising=False)
    return models


def theirs(models, class_name, folder, qk_norm_eps):
    """Their model from our folder, config.json included; every key must fit."""
    model = getattr(models, class_name).from_config(json.loads((folder / "config.json").read_text()))
    model.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"), strict=True)
    if qk_norm_eps is not None:
        for name, module in model.named_modules():
            if name.endswith(("norm_q", "norm_k")):
                module.eps = qk_norm_eps
    return model.eval()


def their_velocity(model, x, t, text, time_dtype):
    extra = {"padding_mask": torch.zeros(1, 1, 8, 8)} if "Cosmos" in type(model).__name__ else {}
    with torch.no_grad():
        return model(x, timestep=t.to(time_dtype), encoder_hidden_states=text, return_dict=False, **extra)[0]


def small_queries(net):
    """Queries and keys so small that the eps of their norm shows."""
    for key, parameter in net.named_parameters():
        if key.endswith(("q_proj.weight", "k_proj.weight")):
            parameter.data.mul_(0.03)
    return net


def difference(models, name, folder, *, qk_norm_eps, time_dtype):
    """Largest difference over the largest velocity."""
    class_name, twin, overrides = NETWORKS[name]
    net = small_queries(twin.fill(build(name.split(",")[0], **overrides)))
    model = theirs(models, class_name, save_network(net, folder, "diffusers"), qk_norm_eps)
    x, t, text, *_ = twin.golden_inputs(torch.float32)
    with torch.no_grad():
        ours = net(x, t, text)
    return ((their_velocity(model, x, t, text, time_dtype) - ours).abs().max() / ours.abs().max()).item()


@pytest.mark.parametrize("name", NETWORKS)
def test_velocity_is_theirs(models, name, tmp_path):
    assert difference(models, name, tmp_path / "w", qk_norm_eps=1e-6, time_dtype=torch.float32) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "adjustments"),
    [
        ("cosmos-predict2-tiny", {"qk_norm_eps": None, "time_dtype": torch.float32}),
        ("cosmos-predict2-tiny", {"qk_norm_eps": 1e-6, "time_dtype": torch.bfloat16}),
        ("wan2.1-tiny", {"qk_norm_eps": 1e-6, "time_dtype": torch.bfloat16}),
    ],
)
def test_each_adjustment_is_needed(models, name, adjustments, tmp_path):
    assert difference(models, name, tmp_path / "w", **adjustments) > TOLERANCE


@pytest.mark.parametrize("name", NETWORKS)
def test_what_they_save_loads_here(models, name, tmp_path):
    class_name, twin, overrides = NETWORKS[name]
    net, other = (twin.fill(build(name.split(",")[0], **overrides)) for _ in range(2))
    for parameter in other.parameters():
        parameter.data.zero_()
    theirs(models, class_name, save_network(net, tmp_path / "a", "diffusers"), None).save_pretrained(tmp_path / "b")
    assert load_network(other, tmp_path / "b").layout == "diffusers"
    for key, parameter in net.named_parameters():
        assert torch.equal(other.get_parameter(key), parameter), key
