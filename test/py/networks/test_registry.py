"""Names, sizes, overrides and initial weights."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rcm_sidecar.dual import Dual
from rcm_sidecar.errors import ConfigError
from rcm_sidecar.networks import build, names

DIGITS = dict(dim=64, num_heads=2, num_layers=3, ffn_dim=192, text_dim=64, freq_dim=64, in_dim=1, out_dim=1)


@pytest.mark.parametrize(
    ("name", "parameters", "tensors"),
    [("wan2.1-t2v-1.3b", 1_418_996_800, 825), ("wan2.1-t2v-14b", 14_288_491_584, 1095), ("wan2.1-tiny", 2_227_008, 69)],
)
def test_parameters_on_meta(name, parameters, tensors):
    net = build(name, device="meta")
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert len(net.state_dict()) == len(list(net.parameters())) == tensors
    assert all(p.is_meta for p in net.parameters())
    assert not list(net.buffers())


def test_parameters_by_part():
    net = build("wan2.1-t2v-1.3b", device="meta")
    count = {name: sum(p.numel() for p in child.parameters()) for name, child in net.named_children()}
    assert count == {
        "patch_embedding": 99_840,
        "text_embedding": 8_653_824,
        "time_embedding": 2_755_584,
        "time_projection": 14_164_992,
        "blocks": 1_393_221_120,
        "head": 101_440,
    }
    assert net.patch_embedding.weight.shape == (1536, 16, 1, 2, 2)
    assert net.blocks[3].modulation.shape == (1, 6, 1536)
    assert net.head.modulation.shape == (1, 2, 1536)


def test_spec():
    spec = build("wan2.1-t2v-14b", device="meta").spec
    assert (spec.name, spec.family, spec.time_scale) == ("wan2.1-t2v-14b", "wan2.1", 1000.0)
    assert (spec.in_dim, spec.out_dim, spec.patch, spec.text_len, spec.text_dim) == (16, 16, (1, 2, 2), 512, 4096)
    assert spec.sampler_times == (1.5, 1.4, 1.0)
    assert (720, 1280) in spec.pixel_sizes
    assert (720, 1280) not in build("wan2.1-t2v-1.3b", device="meta").spec.pixel_sizes
    digits = build("wan2.1-tiny", **DIGITS).spec
    assert (digits.in_dim, digits.out_dim, digits.text_dim, digits.pixel_sizes) == (1, 1, 64, ())


def test_the_digits_network():
    net = build("wan2.1-tiny", **DIGITS)
    assert sum(p.numel() for p in net.parameters()) == 218_948
    out = net(torch.randn(3, 1, 1, 8, 8), torch.tensor([1.0, 500.0, 999.9]), torch.randn(3, 4, 64))
    assert out.shape == (3, 1, 1, 8, 8)
    assert out.abs().max() == 0  # the head starts at zero


@pytest.mark.parametrize(
    ("name", "overrides", "code", "words"),
    [
        ("wan2.1-t2v-1.3", {}, "E_NETWORK_UNKNOWN", "wan2.1-t2v-1.3b"),
        ("wan2.1-tiny", {"num_layer": 3}, "E_NETWORK_OVERRIDE", "num_layers"),
        ("wan2.1-tiny", {"numLayers": 3}, "E_NETWORK_OVERRIDE", "num_layers"),
        ("wan2.1-tiny", {"dim": "64"}, "E_NETWORK_OVERRIDE", "64"),
        ("wan2.1-tiny", {"dim": True}, "E_NETWORK_OVERRIDE", "True"),
        ("wan2.1-tiny", {"patch_size": [1, 2]}, "E_NETWORK_OVERRIDE", "patch_size"),
        ("wan2.1-tiny", {"num_heads": 3}, "E_NETWORK_SIZE", "3 heads"),
        ("wan2.1-tiny", {"dim": 6, "num_heads": 2}, "E_NETWORK_SIZE", "heads"),
        ("wan2.1-tiny", {"freq_dim": 7}, "E_NETWORK_SIZE", "freq_dim"),
        ("wan2.1-tiny", {"num_layers": 0}, "E_NETWORK_SIZE", "num_layers"),
    ],
)
def test_bad_names_and_overrides(name, overrides, code, words):
    with pytest.raises(ConfigError) as caught:
        build(name, **overrides)
    assert caught.value.code == code
    assert words in f"{caught.value.message} {caught.value.hint}"


def test_none_removes_an_override_and_lists_are_tuples():
    net = build("wan2.1-tiny", device="meta", dim=None, ffn_dim=64, patch_size=[1, 4, 4], eps=1)
    assert (net.config.dim, net.config.ffn_dim, net.config.patch_size, net.config.eps) == (256, 64, (1, 4, 4), 1.0)
    # A setting of another network, inherited and switched off.
    assert build("wan2.1-tiny", device="meta", adaln_lora_dim=None).config == build("wan2.1-tiny", device="meta").config


def test_unknown_modes_are_refused():
    net = build("wan2.1-tiny", device="meta")
    for attribute, value in (("activation_checkpointing", "full"), ("residual", "fp8")):
        with pytest.raises(ConfigError, match=value):
            setattr(net, attribute, value)
    net.activation_checkpointing = "asymmetric"
    assert net.activation_checkpointing == "asymmetric"


def test_full_size_shapes_on_meta():
    net = build("wan2.1-t2v-1.3b", device="meta", dtype=torch.bfloat16)
    x, t = torch.empty(1, 16, 20, 60, 104, device="meta"), torch.empty(1, device="meta")
    text = torch.empty(1, 512, 4096, device="meta")
    with torch.no_grad():
        out = net(Dual(x, x), Dual(t, t), text)
    assert out.primal.shape == out.tangent.shape == x.shape
    assert out.primal.dtype == out.tangent.dtype == torch.float32


def test_every_name_builds_on_meta():
    assert set(names()) >= {"wan2.1-t2v-1.3b", "wan2.1-t2v-14b", "wan2.1-tiny"}
    for name in names():
        assert build(name, device="meta").spec.name == name


def seeded(seed, **overrides):
    return build("wan2.1-tiny", generator=torch.Generator().manual_seed(seed), **overrides)


def test_a_generator_decides_the_weights_and_the_global_one_is_untouched():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = seeded(1), seeded(1), seeded(2)
    assert torch.equal(torch.get_rng_state(), before)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
    assert not torch.equal(first.blocks[0].ffn[0].weight, other.blocks[0].ffn[0].weight)
    torch.manual_seed(5)
    from_global = build("wan2.1-tiny")
    torch.manual_seed(5)
    assert torch.equal(from_global.blocks[1].modulation, build("wan2.1-tiny").blocks[1].modulation)


def test_initial_weights():
    net = seeded(0)
    for name, parameter in net.named_parameters():
        values = parameter.detach()
        assert torch.isfinite(values).all()
        if name.endswith(".bias") or name == "head.head.weight":
            assert values.abs().max() == 0, name
        elif name.endswith("modulation"):
            assert 0.85 < values.std() * math.sqrt(256) < 1.15, name
        elif parameter.dim() == 1:
            assert (values == 1).all(), name
        elif name.startswith(("text_embedding", "time_embedding")):
            assert 0.018 < values.std() < 0.022, name
        else:
            fan_out, fan_in = parameter.flatten(1).shape
            bound = math.sqrt(6 / (fan_in + fan_out))
            assert 0.97 * bound < values.abs().max() <= bound, name


def test_dtype_and_trainability():
    net = build("wan2.1-tiny", dtype=torch.float64)
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    assert all(p.requires_grad for p in net.parameters())


@settings(deadline=None, max_examples=15, derandomize=True)
@given(
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([2, 6, 8, 10]),
    layers=st.integers(1, 2),
    patch=st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 3)),
    grid=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)),
    rows=st.integers(1, 5),
)
def test_any_size_runs(heads, head_dim, layers, patch, grid, rows):
    net = build(
        "wan2.1-tiny", dim=heads * head_dim, num_heads=heads, num_layers=layers, ffn_dim=12, text_dim=4, freq_dim=8,
        in_dim=2, out_dim=3, patch_size=patch,
    )  # fmt: skip
    frames, height, width = (n * p for n, p in zip(grid, patch, strict=True))
    out = net(torch.randn(2, 2, frames, height, width), torch.tensor([3.0, 990.0]), torch.randn(2, rows, 4))
    assert out.shape == (2, 3, frames, height, width)


def test_a_copy_is_independent():
    net = build("wan2.1-tiny", **DIGITS)
    net.activation_checkpointing = "asymmetric"
    copied = copy.deepcopy(net)
    assert (copied.spec, copied.config, copied.activation_checkpointing) == (net.spec, net.config, "asymmetric")
    with torch.no_grad():
        copied.head.head.weight.fill_(1)
    assert net.head.head.weight.abs().max() == 0
