"""Sizes, names, initial weights and laws of Cosmos-Predict2 that hold for any weights."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import cosmos_twin
from networks.checks import loss_of
from networks.small_cosmos import small_inputs, small_network
from networks.small_wan import derivative, relative

from rcm_sidecar.dual import Dual
from rcm_sidecar.errors import ConfigError
from rcm_sidecar.networks import build
from rcm_sidecar.networks.layers import patchify

DIGITS = dict(dim=64, num_heads=2, num_layers=3, text_dim=64, in_dim=1, out_dim=1)


@pytest.mark.parametrize(
    ("name", "parameters", "tensors"),
    [
        ("cosmos-predict2-t2i-0.6b", 597_536_000, 407),
        ("cosmos-predict2-t2i-2b", 1_956_405_248, 567),
        ("cosmos-predict2-t2i-14b", 14_265_265_152, 727),
        ("cosmos-predict2-tiny", 1_950_848, 47),
    ],
)
def test_parameters_on_meta(name, parameters, tensors):
    net = build(name, device="meta")
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert len(net.state_dict()) == len(list(net.parameters())) == tensors
    assert not list(net.buffers())
    dim, head = net.config.dim, net.config.dim // net.config.num_heads
    per_block = sum(p.numel() for p in net.blocks[0].parameters())
    assert per_block == 14 * dim**2 + 5120 * dim + 4 * head
    assert parameters - per_block * net.config.num_layers == 4 * dim**2 + 901 * dim


def test_names_and_shapes_are_the_official_ones():
    net = build("cosmos-predict2-t2i-2b", device="meta")
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    block = {
        "self_attn.q_proj": (2048, 2048),
        "self_attn.k_proj": (2048, 2048),
        "self_attn.v_proj": (2048, 2048),
        "self_attn.output_proj": (2048, 2048),
        "self_attn.q_norm": (128,),
        "self_attn.k_norm": (128,),
        "cross_attn.q_proj": (2048, 2048),
        "cross_attn.k_proj": (2048, 1024),
        "cross_attn.v_proj": (2048, 1024),
        "cross_attn.output_proj": (2048, 2048),
        "cross_attn.q_norm": (128,),
        "cross_attn.k_norm": (128,),
        "mlp.layer1": (8192, 2048),
        "mlp.layer2": (2048, 8192),
        **{f"adaln_modulation_{part}.1": (256, 2048) for part in ("self_attn", "cross_attn", "mlp")},
        **{f"adaln_modulation_{part}.2": (6144, 256) for part in ("self_attn", "cross_attn", "mlp")},
    }
    wanted = {f"blocks.{i}.{name}.weight": shape for i in range(28) for name, shape in block.items()}
    wanted |= {
        "x_embedder.proj.1.weight": (2048, 68),
        "t_embedder.1.linear_1.weight": (2048, 2048),
        "t_embedder.1.linear_2.weight": (6144, 2048),
        "t_embedding_norm.weight": (2048,),
        "final_layer.linear.weight": (64, 2048),
        "final_layer.adaln_modulation.1.weight": (256, 2048),
        "final_layer.adaln_modulation.2.weight": (4096, 256),
    }
    assert shapes == wanted


def test_spec():
    spec = build("cosmos-predict2-t2i-2b", device="meta").spec
    assert (spec.family, spec.time_scale, spec.negative) == ("cosmos-predict2", 1.0, "zeros")
    assert (spec.in_dim, spec.out_dim, spec.patch, spec.text_len, spec.text_dim) == (16, 16, (1, 2, 2), 512, 1024)
    assert spec.sampler_times == (1.3, 1.0, 0.6)
    assert all(side % 16 == 0 for size in spec.pixel_sizes for side in size)
    assert spec.max_latent == (128, 240, 240)


def test_full_size_shapes_on_meta():
    net = build("cosmos-predict2-t2i-2b", device="meta", dtype=torch.bfloat16)
    x, t = torch.empty(1, 16, 1, 96, 170, device="meta"), torch.empty(1, device="meta")
    text = torch.empty(1, 512, 1024, device="meta")
    with torch.no_grad():
        out = net(Dual(x, x), Dual(t, t), text)
    assert out.primal.shape == out.tangent.shape == x.shape
    assert out.primal.dtype == out.tangent.dtype == torch.float32


def test_the_digits_network_accepts_what_the_default_config_removes():
    net = build("cosmos-predict2-tiny", **DIGITS, ffn_dim=None, freq_dim=None)
    out = net(torch.randn(3, 1, 1, 8, 8), torch.tensor([0.0, 0.5, 1.0]), torch.randn(3, 4, 64))
    assert out.shape == (3, 1, 1, 8, 8)
    with pytest.raises(ConfigError, match="ffn_dim"):
        build("cosmos-predict2-tiny", ffn_dim=192)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"num_heads": 3}, "3 heads"),
        ({"num_layers": 0}, "num_layers"),
        ({"patch_size": [2, 2, 2]}, "one frame"),
        ({"rope_ratios": (1.0, 0.0, 4.0)}, "rope_ratios"),
    ],
)
def test_sizes_that_fit_no_network(overrides, words):
    with pytest.raises(ConfigError, match=words) as caught:
        build("cosmos-predict2-tiny", **overrides)
    assert caught.value.code == "E_NETWORK_SIZE"


def test_initial_weights():
    net = build("cosmos-predict2-tiny", generator=torch.Generator().manual_seed(0))
    again = build("cosmos-predict2-tiny", generator=torch.Generator().manual_seed(0))
    for name, parameter in net.named_parameters():
        values = parameter.detach()
        assert torch.equal(values, again.get_parameter(name))
        if values.dim() == 1:
            assert (values == 1).all(), name
        elif "adaln_modulation" in name and ".2." in name:
            assert values.abs().max() == 0, name
        else:
            std = values.shape[1] ** -0.5
            assert 0.9 < values.std() / std < 1.05, name
            assert 2.5 < values.abs().max() / std <= 3.0001, name


@settings(deadline=None, max_examples=15, derandomize=True)
@given(
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([2, 4, 6, 12, 14]),
    layers=st.integers(1, 2),
    patch=st.tuples(st.just(1), st.integers(1, 2), st.integers(1, 3)),
    grid=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)),
    rows=st.integers(1, 5),
)
def test_any_size_runs(heads, head_dim, layers, patch, grid, rows):
    net = build(
        "cosmos-predict2-tiny", dim=heads * head_dim, num_heads=heads, num_layers=layers, text_dim=4, in_dim=2,
        out_dim=3, patch_size=patch, adaln_lora_dim=5,
    )  # fmt: skip
    frames, height, width = (n * p for n, p in zip(grid, patch, strict=True))
    out = net(torch.randn(2, 2, frames, height, width), torch.tensor([0.0, 0.99]), torch.randn(2, rows, 4))
    assert out.shape == (2, 3, frames, height, width)
    assert torch.isfinite(out).all()


def test_patch_order_in_reaches_the_columns_of_the_weight():
    net = small_network()
    weight = net.x_embedder.proj[1].weight
    for c, row, column in itertools.product(range(3), range(4), range(6)):
        x = torch.zeros(1, 3, 1, 4, 6, dtype=torch.float64)
        x[0, c, 0, row, column] = 1
        tokens = net.x_embedder(patchify(x, (1, 2, 2)))
        token, feature = (row // 2) * 3 + column // 2, (c * 2 + row % 2) * 2 + column % 2
        assert torch.equal(tokens[0, token], weight[:, feature])
        assert tokens.count_nonzero() == 32


def test_patch_order_out_is_row_column_channel():
    """Feature ((row 2 + column) out_dim + channel) of a token, not the order of the way in."""
    for feature in range(8):
        net = small_network()
        x, t, text, *_ = small_inputs()
        with torch.no_grad():
            net.final_layer.linear.weight[torch.arange(8) != feature] = 0
            out = net(x, t, text)
        corner, channel = divmod(feature, 2)
        row, column = divmod(corner, 2)
        assert out[:, channel, 0, row::2, column::2].abs().min() > 0
        assert out.count_nonzero() == 2 * 6


def test_weights_of_the_padding_mask_change_nothing():
    net = small_network()
    x, t, text, *_ = small_inputs()
    with torch.no_grad():
        before = net(x, t, text)
        net.x_embedder.proj[1].weight[:, 12:] = 1e6
        assert torch.equal(net(x, t, text), before)


def test_columns_of_the_padding_mask_get_zero_gradient():
    net = small_network()
    loss_of(derivative(net, *small_inputs()).primal).backward()
    gradient = net.x_embedder.proj[1].weight.grad
    assert gradient.shape == (32, 16)
    assert gradient[:, 12:].abs().max() == 0
    assert gradient[:, :12].abs().min() > 0


def test_zero_text_makes_cross_attention_contribute_exactly_zero():
    net = small_network()
    x, t, text, *_ = small_inputs()
    seen = []
    net.blocks[0].cross_attn.register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.no_grad():
        net(x, t, torch.zeros_like(text))
        net(x, t, text)
    assert seen[0].abs().max() == 0
    assert seen[1].abs().max() > 0


def test_several_frames_equal_the_formulas():
    net = small_network()
    x, t, text, *_ = small_inputs(frames=2)
    twin = cosmos_twin.velocity(dict(net.named_parameters()), net.config, x, t, text)
    assert relative(net(x, t, text), twin) < 1e-13


def test_bases_of_the_rotary_frequencies():
    for name, base in (("cosmos-predict2-t2i-2b", 42870.938501451725), ("cosmos-predict2-t2i-0.6b", 46661.16158304467)):
        assert build(name, device="meta").config.rotary_bases == pytest.approx((10000.0, base, base), rel=1e-15)


def test_rotary_turns_half_split_pairs_in_the_order_frames_rows_columns():
    net = small_network()
    table = net._rotary.get((2, 3, 4), torch.float64, torch.device("cpu"))
    assert table.shape == (24, 8, 2)
    bases = net.config.rotary_bases
    widths = (8, 4, 4)
    frame, row, column = 1, 2, 3
    angles = [
        position * base ** (-2 * pair / width)
        for position, base, width in zip((frame, row, column), bases, widths, strict=True)
        for pair in range(width // 2)
    ]
    actual = torch.atan2(table[-1, :, 1], table[-1, :, 0])
    wanted = torch.tensor(angles, dtype=torch.float64)
    torch.testing.assert_close(torch.sin(actual - wanted), torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-15)


def test_rotary_tables_stay_exact_under_half_precision():
    net = small_network(torch.float32)
    net.to(torch.bfloat16)(*small_inputs(torch.float32)[:3])
    assert [table.dtype for table in net._rotary._tables.values()] == [torch.float32]
    assert not any("rotary" in key or "pos_embedder" in key for key in net.state_dict())


def test_a_picture_beyond_the_last_position_is_refused():
    net = build("cosmos-predict2-tiny", device="meta", **DIGITS)
    text, t = torch.empty(1, 2, 64, device="meta"), torch.empty(1, device="meta")
    assert net(torch.empty(1, 1, 1, 240, 2, device="meta"), t, text).shape == (1, 1, 1, 240, 2)
    for shape in ((129, 2, 2), (1, 242, 2), (1, 2, 242)):
        with pytest.raises(ValueError, match="last position"):
            net(torch.empty(1, 1, *shape, device="meta"), t, text)
