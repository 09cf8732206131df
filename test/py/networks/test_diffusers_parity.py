"""Both networks against the classes of diffusers, through the folders we write; exactly two adjustments, as arguments.

`qk_norm_eps`: diffusers builds Cosmos with 1e-5 where the official code has 1e-6 (cosmos-predict2.md P2).
`time_dtype`: pipelines may round the time to the weights' dtype; both sides get float32 here.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import cosmos_twin, wan_twin
from networks.wan_twin import filler
from training.tiny_run import run, start, tiny_config

from rcm_sidecar.checkpoints import load_network, save_network
from rcm_sidecar.networks import build
from rcm_sidecar.protocol import PretrainStart

TOLERANCE = 1e-5
CLASSES = {"wan2.1": "WanTransformer3DModel", "cosmos-predict2": "CosmosTransformer3DModel"}
TWINS = {"wan2.1": wan_twin, "cosmos-predict2": cosmos_twin}
GOLDEN = {
    "wan2.1": ("wan2.1-tiny", {}),
    "cosmos-predict2": ("cosmos-predict2-tiny", {}),
    "cosmos-predict2, heads of 128": ("cosmos-predict2-tiny", {"num_heads": 1}),
}
# Numbers of heads, patches, frames and text rows that no power of two divides.
ODD_WAN = dict(dim=50, num_heads=5, num_layers=3, ffn_dim=99, text_dim=21, freq_dim=34, in_dim=5, out_dim=3)
ODD_COSMOS = dict(dim=60, num_heads=3, num_layers=3, mlp_ratio=1.5, text_dim=21, adaln_lora_dim=7, in_dim=5, out_dim=3)
ODD = {
    "wan2.1": ("wan2.1-tiny", ODD_WAN, (2, 5, 5, 6, 14), 7),
    "cosmos-predict2": ("cosmos-predict2-tiny", ODD_COSMOS, (2, 5, 3, 6, 14), 7),
}
FAMILIES = pytest.mark.parametrize("family", CLASSES)


@pytest.fixture(scope="module")
def models():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        from diffusers.models import transformers

        # Theirs resizes the padding mask, all zeros here, with torchvision, whose builds are tied to torch's.
        resize = SimpleNamespace(resize=lambda mask, size, interpolation: torch.zeros(*mask.shape[:2], *size))
        shim = SimpleNamespace(functional=resize, InterpolationMode=SimpleNamespace(NEAREST="nearest"))
        patch.setattr("diffusers.models.transformers.transformer_cosmos.transforms", shim, raising=False)
        yield transformers


def filled(name, **overrides):
    """A network of ours without a zero, its queries and keys so small that the eps of their norm shows."""
    net = build(name, **overrides)
    TWINS[net.spec.family].fill(net)
    for key, parameter in net.named_parameters():
        if key.endswith(("q_proj.weight", "k_proj.weight")):
            parameter.data.mul_(0.03)
    return net


def family_inputs(net, shape, rows):
    """x, t, text; two different times."""
    x = filler(shape, 1000).float()
    t = torch.tensor([0.31, 0.97])[: shape[0]] * net.spec.time_scale
    return x, t, filler((shape[0], rows, net.config.text_dim), 1001).float()


def open_theirs(models, folder, **how):
    """Their model as `from_pretrained` makes it of a folder of ours, and what it had to say about the keys."""
    class_name = json.loads((folder / how.get("subfolder", "") / "config.json").read_text())["_class_name"]
    # Both classes keep some modules in float32, for which diffusers refuses low_cpu_mem_usage=False.
    how = {"low_cpu_mem_usage": True, "output_loading_info": True, **how}
    model, said = getattr(models, class_name).from_pretrained(folder, **how)
    return model, {key: value for key, value in said.items() if value}


def with_qk_norm_eps(model, eps):
    for name, module in model.named_modules():
        if eps is not None and name.endswith(("norm_q", "norm_k")):
            module.eps = eps
    return model


def difference(model, net, x, t, text, *, qk_norm_eps=1e-6, time_dtype=torch.float32):
    """Largest difference of the velocities over the largest velocity."""
    extra = {"padding_mask": torch.zeros(1, 1, 8, 8)} if net.spec.family == "cosmos-predict2" else {}
    model = with_qk_norm_eps(model.eval(), qk_norm_eps)
    with torch.no_grad():
        ours = net(x, t, text)
        theirs = model(x, timestep=t.to(time_dtype), encoder_hidden_states=text, return_dict=False, **extra)[0]
    return ((theirs - ours).abs().max() / ours.abs().max()).item()


def golden(name):
    preset, overrides = GOLDEN[name]
    net = filled(preset, **overrides)
    x, t, text, *_ = TWINS[net.spec.family].golden_inputs(torch.float32)
    return net, (x, t, text)


@pytest.mark.parametrize("name", GOLDEN)
def test_velocity_is_theirs(models, name, tmp_path):
    net, inputs = golden(name)
    model, complaints = open_theirs(models, save_network(net, tmp_path / "w", "diffusers"))
    assert not complaints
    assert difference(model, net, *inputs) <= TOLERANCE


@FAMILIES
def test_velocity_is_theirs_at_odd_sizes(models, family, tmp_path):
    preset, overrides, shape, rows = ODD[family]
    net = filled(preset, **overrides)
    model, complaints = open_theirs(models, save_network(net, tmp_path / "w", "diffusers"))
    assert not complaints
    assert difference(model, net, *family_inputs(net, shape, rows)) <= TOLERANCE


@pytest.mark.long
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@FAMILIES
def test_velocity_is_theirs_at_any_size(models, family, tmp_path_factory, data):
    heads, half = data.draw(st.integers(1, 5), "heads"), data.draw(st.integers(12, 40), "half a head")
    shared = dict(dim=2 * heads * half, num_heads=heads, num_layers=data.draw(st.integers(1, 3), "layers"))
    channels = data.draw(st.integers(1, 9), "channels")
    width = data.draw(st.integers(1, 40), "width of the text")
    own = {"ffn_dim": 3 * half, "freq_dim": 32} if family == "wan2.1" else {"mlp_ratio": 2.5, "adaln_lora_dim": half}
    net = filled(f"{family}-tiny", **shared, **own, in_dim=channels, out_dim=channels, text_dim=width)
    sides = (data.draw(st.integers(1, 6), side) for side in ("frames", "rows", "columns"))
    shape = (data.draw(st.integers(1, 2), "batch"), channels, next(sides), 2 * next(sides), 2 * next(sides))
    folder = save_network(net, tmp_path_factory.mktemp("w") / "w", "diffusers")
    model, complaints = open_theirs(models, folder)
    assert not complaints
    assert difference(model, net, *family_inputs(net, shape, data.draw(st.integers(1, 20), "text"))) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "adjustments"),
    [
        ("cosmos-predict2", {"qk_norm_eps": None, "time_dtype": torch.float32}),
        ("cosmos-predict2", {"qk_norm_eps": 1e-6, "time_dtype": torch.bfloat16}),
        ("wan2.1", {"qk_norm_eps": 1e-6, "time_dtype": torch.bfloat16}),
    ],
)
def test_each_adjustment_is_needed(models, name, adjustments, tmp_path):
    net, inputs = golden(name)
    model, _ = open_theirs(models, save_network(net, tmp_path / "w", "diffusers"))
    assert difference(model, net, *inputs, **adjustments) > TOLERANCE


@pytest.mark.long
def test_the_other_eps_needs_no_adjustment_on_wan(models, tmp_path):
    net, inputs = golden("wan2.1")
    model, _ = open_theirs(models, save_network(net, tmp_path / "w", "diffusers"))
    assert difference(model, net, *inputs, qk_norm_eps=None) <= TOLERANCE


@pytest.mark.long
@pytest.mark.parametrize("max_shard_bytes", [200_000, 5_000_000_000])
@FAMILIES
def test_they_load_a_pipeline_folder_of_ours(models, family, max_shard_bytes, tmp_path):
    net, inputs = golden(family)
    save_network(net, tmp_path / "transformer", "diffusers", max_shard_bytes=max_shard_bytes)
    assert (len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1) == (max_shard_bytes < 1e6)
    model, complaints = open_theirs(models, tmp_path, subfolder="transformer")
    assert not complaints
    assert difference(model, net, *inputs) <= TOLERANCE


def test_they_load_the_export_of_a_run(models, tmp_path):
    end, _ = run(start(tmp_path, {"pretrain.steps": 3}, job=PretrainStart))
    assert "diffusers" in [item.layout for item in end.exports]
    net = build("wan2.1-tiny", device="meta", **tiny_config().model.overrides.arguments())
    load_network(net, tmp_path / "export" / "official")
    inputs = family_inputs(net, (2, 1, 1, 8, 8), 4)
    model, complaints = open_theirs(models, tmp_path / "export" / "diffusers")
    assert not complaints
    assert difference(model, net, *inputs) <= TOLERANCE


@pytest.mark.parametrize("max_shard_size", ["150KB", "10GB"])
@FAMILIES
def test_what_they_save_loads_here(models, family, max_shard_size, tmp_path):
    preset, overrides, *_ = ODD[family]
    net, other = filled(preset, **overrides), build(preset, **overrides)
    model, _ = open_theirs(models, save_network(net, tmp_path / "a", "diffusers"))
    model.save_pretrained(tmp_path / "b" / "transformer", max_shard_size=max_shard_size)
    (tmp_path / "b" / "model_index.json").write_text('{"_class_name": "Pipeline"}')
    assert (len(list((tmp_path / "b").rglob("*.safetensors"))) > 1) == (max_shard_size == "150KB")
    assert load_network(other, tmp_path / "b").layout == "diffusers"
    for key, parameter in net.named_parameters():
        assert torch.equal(other.get_parameter(key), parameter), key


@FAMILIES
def test_their_config_says_what_ours_does(models, family, tmp_path):
    """Every setting that we write is one of theirs, and theirs keeps its value."""
    preset, overrides, *_ = ODD[family]
    folder = save_network(build(preset, **overrides), tmp_path / "w", "diffusers")
    written = json.loads((folder / "config.json").read_text())
    del written["_class_name"]
    model, _ = open_theirs(models, folder)
    kept = {key: list(value) if isinstance(value, tuple) else value for key, value in model.config.items()}
    assert {key: kept[key] for key in written} == written
