"""Weight files of Cosmos-Predict2: round trips, diffusers keys, what the official file holds besides weights."""

from __future__ import annotations

import io
import json

import pytest
import torch
from checkpoints.checks import assert_same, refused, state
from networks import small_wan
from networks.small_cosmos import small_network
from safetensors.torch import save_file

from rcm_sidecar.checkpoints import load_network, save_network
from rcm_sidecar.checkpoints.layouts import diffusers_names
from rcm_sidecar.networks import build


@pytest.fixture(scope="module")
def net():
    return small_network(torch.float32)


@pytest.fixture
def other():
    return small_network(torch.float32, seed=99)


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


def test_weights_that_do_not_fit_name_the_cause(net, other, tmp_path):
    file = tmp_path / "w.safetensors"

    def write(change):
        tensors = state(net)
        change(tensors)
        save_file(tensors, file)

    write(lambda t: t.pop("final_layer.linear.weight"))
    refused(other, file, "E_WEIGHTS_MISMATCH", "missing final_layer.linear.weight", "incomplete")
    write(lambda t: t.update({"x_embedder.proj.1.weight": torch.ones(32, 72)}))
    words = ("x_embedder.proj.1.weight is [32, 72] and should be [32, 16]", "video-to-world")
    refused(other, file, "E_WEIGHTS_MISMATCH", *words)
    write(lambda t: t.update({"crossattn_proj.0.weight": torch.ones(2)}))
    refused(other, file, "E_WEIGHTS_MISMATCH", "Predict2.5")
    write(lambda t: [t.pop(key) for key in list(t) if key.startswith("blocks.1.")])
    refused(other, file, "E_WEIGHTS_MISMATCH", "1 blocks", "2 blocks")
    write(lambda t: t.update({"t_embedding_norm.weight": torch.ones(64)}))
    refused(other, file, "E_WEIGHTS_MISMATCH", "another size", "width 32")


def test_the_other_family_is_named(net, other, tmp_path):
    wan = small_wan.small_network(torch.float32)
    for layout in ("official", "diffusers"):
        for theirs, ours, title in ((wan, other, "Wan2.1"), (net, wan, "Cosmos-Predict2")):
            path = save_network(theirs, tmp_path / f"{title}-{layout}", layout)
            refused(ours, path, "E_WEIGHTS_MISMATCH", f"weights of {title}")
