"""Weight files of Cosmos-Predict2: round trips, diffusers keys, what the official file holds besides weights."""

from __future__ import annotations

import io
import json

import pytest
import torch
from networks import small_wan
from networks.small_cosmos import SIZES, small_network
from safetensors.torch import load_file, save_file

from rcm_sidecar.checkpoints import load_network, save_network
from rcm_sidecar.checkpoints.layouts import diffusers_names
from rcm_sidecar.errors import WeightsError
from rcm_sidecar.networks import build


@pytest.fixture(scope="module")
def net():
    return small_network(torch.float32)


@pytest.fixture
def other():
    return small_network(torch.float32, seed=99)


def state(net):
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


def assert_same(a, b):
    first, second = state(a), state(b)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("layout", ["official", "diffusers", "comfyui"])
def test_round_trip_is_bit_exact(net, other, layout, tmp_path):
    loaded = load_network(other, save_network(net, tmp_path / "w", layout))
    assert (loaded.layout, loaded.tensors) == (layout, 47)
    assert_same(net, other)


def test_official_to_diffusers_to_official_gives_the_same_file(net, other, tmp_path):
    load_network(other, save_network(net, tmp_path / "a"))
    load_network(other, save_network(other, tmp_path / "b", "diffusers"))
    save_network(other, tmp_path / "c")
    for name in ("diffusion_pytorch_model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()


def test_diffusers_keys_are_those_of_the_table():
    for name, tensors in (("cosmos-predict2-t2i-0.6b", 407), ("cosmos-predict2-t2i-14b", 727)):
        names = diffusers_names(build(name, device="meta"))
        assert len(names) == len(set(names.values())) == tensors
    table = {
        "x_embedder.proj.1": "patch_embed.proj",
        "t_embedder.1.linear_1": "time_embed.t_embedder.linear_1",
        "t_embedder.1.linear_2": "time_embed.t_embedder.linear_2",
        "t_embedding_norm": "time_embed.norm",
        "blocks.11.self_attn.q_proj": "transformer_blocks.11.attn1.to_q",
        "blocks.1.self_attn.output_proj": "transformer_blocks.1.attn1.to_out.0",
        "blocks.1.self_attn.q_norm": "transformer_blocks.1.attn1.norm_q",
        "blocks.2.cross_attn.k_proj": "transformer_blocks.2.attn2.to_k",
        "blocks.2.cross_attn.v_proj": "transformer_blocks.2.attn2.to_v",
        "blocks.2.cross_attn.k_norm": "transformer_blocks.2.attn2.norm_k",
        "blocks.3.mlp.layer1": "transformer_blocks.3.ff.net.0.proj",
        "blocks.3.mlp.layer2": "transformer_blocks.3.ff.net.2",
        "blocks.4.adaln_modulation_self_attn.1": "transformer_blocks.4.norm1.linear_1",
        "blocks.4.adaln_modulation_self_attn.2": "transformer_blocks.4.norm1.linear_2",
        "blocks.4.adaln_modulation_cross_attn.1": "transformer_blocks.4.norm2.linear_1",
        "blocks.35.adaln_modulation_mlp.2": "transformer_blocks.35.norm3.linear_2",
        "final_layer.linear": "proj_out",
        "final_layer.adaln_modulation.1": "norm_out.linear_1",
        "final_layer.adaln_modulation.2": "norm_out.linear_2",
    }
    assert {name: names[f"{name}.weight"] for name in table} == {k: f"{v}.weight" for k, v in table.items()}


def test_config_files(tmp_path):
    net = small_network(torch.float32)
    official = json.loads((save_network(net, tmp_path / "o") / "config.json").read_text())
    assert official["_class_name"] == "MiniTrainDIT"
    rebuilt = {key: value for key, value in official.items() if key != "_class_name"}
    assert build("cosmos-predict2-tiny", device="meta", **rebuilt).config == net.config
    diffusers = json.loads((save_network(net, tmp_path / "d", "diffusers") / "config.json").read_text())
    assert diffusers == {
        "_class_name": "CosmosTransformer3DModel",
        "adaln_lora_dim": 6,
        "attention_head_dim": 16,
        "concat_padding_mask": True,
        "extra_pos_embed_type": None,
        "in_channels": 3,
        "max_size": [128, 240, 240],
        "mlp_ratio": 1.5,
        "num_attention_heads": 2,
        "num_layers": 2,
        "out_channels": 2,
        "patch_size": [1, 2, 2],
        "rope_scale": [1.0, 4.0, 4.0],
        "text_embed_dim": 10,
    }


def official_file(net):
    """As the released model.pt: bf16-rounded tables, integer counters and quantisation state between the weights."""
    content = {f"net.{name}": tensor for name, tensor in state(net).items()}
    content |= {
        "net.pos_embedder.seq": torch.arange(128.0),
        "net.pos_embedder.dim_spatial_range": torch.ones(21),
        "net.pos_embedder.dim_temporal_range": torch.ones(22),
        "net.accum_video_sample_counter": torch.tensor(3),
        "net.accum_image_sample_counter": torch.tensor(3),
        "net.accum_iteration": torch.tensor(3),
        "net.accum_train_in_hours": torch.tensor(0.5),
        "net.t_embedding_norm._extra_state": torch.empty(0),
        "net.blocks.0.self_attn.q_norm._extra_state": torch.empty(0, dtype=torch.uint8),
        "net.blocks.0.self_attn.attn_op._extra_state": io.BytesIO(b"state"),
    }
    return content


def test_the_official_file_with_all_that_is_no_weight(net, other, tmp_path):
    torch.save(official_file(net), tmp_path / "model.pt")
    loaded = load_network(other, tmp_path)
    assert (loaded.layout, loaded.prefix, loaded.tensors) == ("official", "net.", 47)
    assert_same(net, other)


def test_post_trained_files_give_the_ema(net, other, tmp_path):
    content = {f"net_ema.{name}": tensor for name, tensor in state(net).items()}
    torch.save(content | official_file(small_network(torch.float32, seed=3)), tmp_path / "model.pt")
    assert load_network(other, tmp_path / "model.pt").prefix == "net_ema."
    assert_same(net, other)


def test_a_sharded_pipeline_folder_and_a_network_on_meta(net, tmp_path):
    save_network(net, tmp_path / "transformer", "diffusers", max_shard_bytes=20_000)
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 2
    empty = build("cosmos-predict2-tiny", device="meta", **SIZES)
    load_network(empty, tmp_path)
    assert_same(net, empty)


def refused(net, file, *words):
    before = state(net)
    with pytest.raises(WeightsError) as caught:
        load_network(net, file)
    assert caught.value.code == "E_WEIGHTS_MISMATCH"
    for word in words:
        assert word in f"{caught.value.message}\n{caught.value.hint}"
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(net).items())


def test_weights_that_do_not_fit_name_the_cause(net, other, tmp_path):
    file = tmp_path / "w.safetensors"

    def write(change):
        tensors = state(net)
        change(tensors)
        save_file(tensors, file)

    write(lambda t: t.pop("final_layer.linear.weight"))
    refused(other, file, "missing final_layer.linear.weight", "incomplete")
    write(lambda t: t.update({"x_embedder.proj.1.weight": torch.ones(32, 72)}))
    refused(other, file, "x_embedder.proj.1.weight is [32, 72] and should be [32, 16]", "video-to-world")
    write(lambda t: t.update({"crossattn_proj.0.weight": torch.ones(2)}))
    refused(other, file, "Predict2.5")
    write(lambda t: [t.pop(key) for key in list(t) if key.startswith("blocks.1.")])
    refused(other, file, "1 blocks", "2 blocks")
    write(lambda t: t.update({"t_embedding_norm.weight": torch.ones(64)}))
    refused(other, file, "another size", "width 32")


def test_the_other_family_is_named(net, other, tmp_path):
    wan = small_wan.small_network(torch.float32)
    for layout in ("official", "diffusers"):
        refused(other, save_network(wan, tmp_path / f"wan-{layout}", layout), "weights of Wan2.1")
        refused(wan, save_network(net, tmp_path / f"cosmos-{layout}", layout), "weights of Cosmos-Predict2")


def test_comfyui_keys(net, tmp_path):
    keys = load_file(save_network(net, tmp_path / "w.safetensors", "comfyui"))
    assert "model.diffusion_model.blocks.1.adaln_modulation_mlp.2.weight" in keys
    assert all(key.startswith("model.diffusion_model.") for key in keys)
