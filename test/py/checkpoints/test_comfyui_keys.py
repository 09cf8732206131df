"""What ComfyUI would make of our comfyui files, by the facts of its public loader; ComfyUI itself is not run.

Facts read from Comfy-Org/ComfyUI, comfy/model_detection.py (`unet_prefix_from_state_dict`, `detect_unet_config`) at
commit 0b61ce5baa9ea03d8484729b7eb00e77c6fca227: it strips the first known prefix, then asks for the keys of one family
after the other, takes the first that fits, and reads the sizes from shapes. docs/weights.md lists them for people.
"""

from __future__ import annotations

import json

import pytest
from networks import small_cosmos, small_wan
from safetensors import safe_open

from rcm_sidecar.checkpoints import save_network
from rcm_sidecar.checkpoints.layouts import COMFYUI_PREFIX, official_names
from rcm_sidecar.networks import build

# Any of these means a family that is asked for before ours, or a variant of Wan other than text to video.
OTHERS = """
blocks.0.norm1.linear.weight blocks.31.mlp.all.proj_in_gate.weight blocks.35.mlp.all.proj_in_gate.weight
blocks.35.mlp.vid.proj_out.weight blocks.block0.blocks.0.block.attn.to_q.0.weight cap_embedder.1.weight
core.pixel_embedder.proj.weight lq_proj.latent_proj.0.weight t_block.1.weight genre_embedder.weight
adaln_single.emb.timestep_embedder.linear_1.bias video_patch_proj.weight
vace_patch_embedding.weight control_adapter.conv.weight casual_audio_encoder.encoder.final_linear.weight
audio_proj.audio_proj_glob_1.layer.bias face_adapter.fuser_blocks.0.k_norm.weight patch_embedding_mask.weight
patch_embedding_pose.weight patch_embedding_global.weight img_emb.proj.0.bias img_emb.emb_pos ref_conv.weight
llm_adapter.blocks.0.cross_attn.q_proj.weight
""".split()

# As ComfyUI has to find it: heads follow from the width, the rest is read from shapes.
RELEASES = {
    "wan2.1-t2v-1.3b": dict(dim=1536, num_heads=12, ffn_dim=8960, num_layers=30, in_dim=16, out_dim=16),
    "wan2.1-t2v-14b": dict(dim=5120, num_heads=40, ffn_dim=13824, num_layers=40, in_dim=16, out_dim=16),
    "cosmos-predict2-t2i-2b": dict(dim=2048, num_heads=16, num_layers=28, in_dim=16),
    "cosmos-predict2-t2i-14b": dict(dim=5120, num_heads=40, num_layers=36, in_dim=16),
}
COSMOS_HEADS = {2048: 16, 5120: 40}


def detected(shapes):
    """The sizes that its loader reads from shapes by key, and the name it gives the family."""
    assert not [key for key in OTHERS if key in shapes]
    blocks = {int(key.split(".")[1]) for key in shapes if key.startswith("blocks.")}
    found = {"num_layers": len(blocks)}
    assert blocks == set(range(len(blocks)))
    if "head.modulation" in shapes:
        found |= {
            "dim": shapes["head.modulation"][-1],
            "num_heads": shapes["head.modulation"][-1] // 128,
            "out_dim": shapes["head.head.weight"][0] // 4,
            "ffn_dim": shapes["blocks.0.ffn.0.weight"][0],
            "in_dim": shapes["patch_embedding.weight"][1],
        }
        return "wan2.1", found
    assert "blocks.0.mlp.layer1.weight" in shapes
    width, columns = shapes["x_embedder.proj.1.weight"]
    return "cosmos_predict2", found | {"dim": width, "num_heads": COSMOS_HEADS.get(width), "in_dim": columns // 4 - 1}


@pytest.mark.parametrize("name", RELEASES)
def test_its_loader_would_find_the_release(name):
    net = build(name, device="meta")
    shapes = {key: tuple(parameter.shape) for key, parameter in official_names(net).items()}
    family, sizes = detected(shapes)
    assert (family, sizes) == (net.spec.family.replace("-", "_"), RELEASES[name])
    assert sizes == {key: getattr(net.config, key) for key in sizes}


def test_it_knows_no_heads_for_the_smallest_cosmos():
    """Its table of widths ends without 1280: docs/weights.md says that the 0.6B does not load there."""
    shapes = {k: tuple(p.shape) for k, p in official_names(build("cosmos-predict2-t2i-0.6b", device="meta")).items()}
    assert detected(shapes)[1]["num_heads"] is None


@pytest.mark.parametrize("small", [small_wan, small_cosmos])
def test_the_file_has_the_prefix_it_strips_and_nothing_that_misleads_it(small, tmp_path):
    net = small.small_network()
    with safe_open(save_network(net, tmp_path / "w.safetensors", "comfyui"), framework="pt") as file:
        keys, metadata = list(file.keys()), file.metadata() or {}
        shapes = {key.removeprefix(COMFYUI_PREFIX): tuple(file.get_slice(key).get_shape()) for key in keys}
    # More than five keys under the first prefix that it looks for, and none outside it, which would be ignored.
    assert COMFYUI_PREFIX == "model.diffusion_model." and len(keys) > 5
    assert all(key.startswith(COMFYUI_PREFIX) for key in keys)
    family, sizes = detected(shapes)
    assert family == net.spec.family.replace("-", "_")
    assert sizes["num_layers"] == net.config.num_layers
    assert set(shapes) == set(official_names(net))
    # A `transformer` table in the header's config would overwrite what it reads from shapes.
    assert "transformer" not in json.loads(metadata.get("config", "{}"))
