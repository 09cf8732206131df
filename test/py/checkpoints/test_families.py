"""What holds for the weight files of every family: one test for both."""

from __future__ import annotations

import pytest
import torch
from checkpoints.checks import assert_same, files_of, refused, state
from networks import small_cosmos, small_wan
from safetensors.torch import load_file

from rcm_sidecar.checkpoints import load_network, save_network
from rcm_sidecar.checkpoints.layouts import LAYOUTS
from rcm_sidecar.networks import build


@pytest.fixture(params=[small_wan, small_cosmos], ids=["wan", "cosmos"])
def family(request):
    return request.param


@pytest.fixture
def net(family):
    return family.small_network(torch.float32)


@pytest.fixture
def other(family):
    return family.small_network(torch.float32, seed=99)


def on_meta(family, net):
    return build(net.spec.name, device="meta", **family.SIZES)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip_is_bit_exact(family, net, other, layout, tmp_path):
    found = load_network(other, save_network(net, tmp_path / "out", layout))
    assert (found.layout, found.tensors) == (layout, len(state(net)))
    assert_same(net, other)
    x, t, text, *_ = family.small_inputs(torch.float32)
    with torch.no_grad():
        assert torch.equal(net(x, t, text), other(x, t, text))


def test_official_to_diffusers_to_official_gives_the_same_files(net, other, tmp_path):
    load_network(other, save_network(net, tmp_path / "a"))
    load_network(other, save_network(other, tmp_path / "b", "diffusers"))
    save_network(other, tmp_path / "c")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "c")


@pytest.mark.parametrize("suffix", ["pt", "pth"])
def test_pickled_files_carry_the_prefix_of_the_released_ones(family, net, other, suffix, tmp_path):
    file = save_network(net, tmp_path / f"model.{suffix}")
    content = torch.load(file, weights_only=True)
    assert {name.removeprefix("net.") for name in content} == state(net).keys()
    if family is small_wan:
        assert content["net.patch_embedding.weight"].shape == (24, 12)
    assert load_network(other, file).prefix == "net."
    assert_same(net, other)
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name]


def test_ema_is_chosen_and_never_merged(family, net, other, tmp_path):
    raw, file = state(family.small_network(torch.float32, seed=11)), tmp_path / "w.pth"
    tensors = {f"net_ema.{k}": v for k, v in state(net).items()} | {f"net.{k}": v for k, v in raw.items()}
    tensors |= {f"net_fake_score.{k}": v for k, v in raw.items()}
    torch.save(tensors, file)
    assert load_network(other, file).prefix == "net_ema."
    assert_same(net, other)
    name = next(iter(raw))
    del tensors[f"net_ema.{name}"]
    torch.save(tensors, file)
    refused(other, file, "E_WEIGHTS_MISMATCH", f"missing {name}")


def test_a_sharded_pipeline_folder_and_a_network_on_meta(family, net, tmp_path):
    save_network(net, tmp_path / "transformer", "diffusers", max_shard_bytes=20_000)
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 2
    empty = on_meta(family, net)
    load_network(empty, tmp_path)
    assert_same(net, empty)


def test_comfyui_keys_are_official_ones_with_its_prefix(net, tmp_path):
    keys = load_file(save_network(net, tmp_path / "w.safetensors", "comfyui"))
    assert keys.keys() == {f"model.diffusion_model.{name}" for name in state(net)}


def test_adapters_are_merged_and_cast_one_layer_after_the_other(net, other, tmp_path):
    from rcm_sidecar.networks.lora import LoraConfig, attach, merge_into_base

    attach(net, LoraConfig(rank=2, alpha=4.0), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("student.up"):
                parameter.normal_(generator=torch.Generator().manual_seed(2))
    load_network(other, save_network(net, tmp_path / "w", adapter="student"))
    merge_into_base(net, "student")
    assert_same(net, other)
