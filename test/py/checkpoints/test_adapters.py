"""Adapter files: round trips, ComfyUI's keys and what its loader makes of them, strictness."""

from __future__ import annotations

import pytest
import torch
from networks import small_cosmos, small_wan
from safetensors.torch import load_file, save_file

from rcm_sidecar.checkpoints import load_adapter, save_adapter
from rcm_sidecar.errors import ConfigError, WeightsError
from rcm_sidecar.networks.lora import LoraConfig, adapter_parameters, adapters_of, attach, merge, weight_deltas


@pytest.fixture(params=[small_wan, small_cosmos], ids=["wan", "cosmos"])
def family(request):
    return request.param


def adapted(family, seed=0, **changes):
    net = family.small_network(torch.float32)
    attach(net, LoraConfig(**{"rank": 3, "alpha": 5.0, **changes}))
    generator = torch.Generator().manual_seed(seed)
    for role in net.adapters:
        for parameter in adapter_parameters(net, role).values():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return net


def state(net, role):
    return {name: parameter.detach().clone() for name, parameter in adapter_parameters(net, role).items()}


@pytest.mark.parametrize("layout", ["official", "comfyui"])
def test_round_trip_is_bit_exact_and_leaves_the_other_role_alone(family, layout, tmp_path):
    net, other = adapted(family), adapted(family, seed=9)
    critic = state(other, "critic")
    load_adapter(other, "student", save_adapter(net, "student", tmp_path / "deep" / "a.safetensors", layout))
    for name, tensor in state(net, "student").items():
        assert torch.equal(tensor, other.get_parameter(name)), name
    for name, tensor in critic.items():
        assert torch.equal(tensor, other.get_parameter(name)), name


def test_roles_can_be_exchanged(family, tmp_path):
    net = adapted(family)
    load_adapter(net, "critic", save_adapter(net, "student", tmp_path / "a.safetensors"))
    for name, adapter in adapters_of(net, "student").items():
        assert torch.equal(adapter.delta(), adapters_of(net, "critic")[name].delta())


def test_comfyui_takes_every_key_and_gets_the_merged_weights(family, tmp_path):
    """Its loader in short: for each key of the model without `.weight`, B, A and alpha; W + alpha / rank B A."""
    net = adapted(family)
    stored = load_file(save_adapter(net, "student", tmp_path / "a.safetensors", "comfyui"))
    deltas, used = weight_deltas(net, "student"), set()
    for name, delta in deltas.items():
        key = f"diffusion_model.{name.removesuffix('.weight')}"
        up, down, alpha = (stored[f"{key}.{part}"] for part in ("lora_B.weight", "lora_A.weight", "alpha"))
        used |= {f"{key}.lora_B.weight", f"{key}.lora_A.weight", f"{key}.alpha"}
        theirs = net.get_parameter(name).detach() + (alpha.item() / down.shape[0]) * (up @ down)
        torch.testing.assert_close(theirs, merge(net.get_parameter(name), delta()), rtol=1e-6, atol=1e-6)
    assert used == stored.keys()


def test_stored_dtype(family, tmp_path):
    stored = load_file(save_adapter(adapted(family), "student", tmp_path / "a.safetensors", dtype=torch.bfloat16))
    assert {t.dtype for key, t in stored.items() if not key.endswith("alpha")} == {torch.bfloat16}


def test_what_does_not_fit_is_refused_and_changes_nothing(family, tmp_path):
    net = adapted(family)
    file = save_adapter(net, "student", tmp_path / "a.safetensors")

    def refused(other, path, *words):
        before = state(other, "student")
        with pytest.raises(WeightsError) as caught:
            load_adapter(other, "student", path)
        for word in words:
            assert word in f"{caught.value.message}\n{caught.value.hint}"
        assert all(torch.equal(tensor, other.get_parameter(name)) for name, tensor in before.items())

    refused(adapted(family, rank=4), file, "should be [4, ", "another shape", "student.lora")
    refused(adapted(family, targets=("attention",)), file, "unexpected blocks.0")
    refused(adapted(family, alpha=4.0), file, "alpha 5, not 4")
    tensors = load_file(file)
    missing = tensors.popitem()[0]
    save_file(tensors, tmp_path / "b.safetensors")
    refused(net, tmp_path / "b.safetensors", f"missing {missing}")
    with pytest.raises(WeightsError, match="must end in"):
        save_adapter(net, "student", tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="student"):
        save_adapter(family.small_network(), "student", tmp_path / "c.safetensors")
