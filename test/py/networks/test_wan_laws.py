"""Laws that hold for any weights: patch order, rotary positions, what is not a buffer."""

from __future__ import annotations

import itertools

import pytest
import torch
from networks.small_wan import relative, small_inputs, small_network

from rcm_sidecar.dual import ops
from rcm_sidecar.networks.layers import patchify, unpatchify
from rcm_sidecar.networks.rotary import RotaryTables, axis_widths, rotary_table

PATCH = (1, 2, 2)


def test_patch_order_in_is_channel_slowest():
    channels, frames, height, width = 3, 2, 4, 6
    for c, f, row, column in itertools.product(range(channels), range(frames), range(height), range(width)):
        x = torch.zeros(1, channels, frames, height, width)
        x[0, c, f, row, column] = 1
        tokens = patchify(x, PATCH)
        token = (f * (height // 2) + row // 2) * (width // 2) + column // 2
        assert tokens[0, token, c * 4 + (row % 2) * 2 + column % 2] == 1
        assert tokens.sum() == 1


def test_patch_embedding_is_the_convolution():
    net = small_network()
    x, *_ = small_inputs()
    tokens = net._embed_patches(x)
    convolved = net.patch_embedding(x).flatten(2).transpose(1, 2)
    assert relative(tokens, convolved) < 1e-14


def test_patch_order_out_is_channel_fastest():
    grid, channels = (2, 2, 3), 5
    for token, feature in itertools.product(range(12), range(4 * channels)):
        tokens = torch.zeros(1, 12, 4 * channels)
        tokens[0, token, feature] = 1
        out = unpatchify(tokens, grid, PATCH)
        frame, cell = divmod(token, 6)
        corner, channel = divmod(feature, channels)
        row, column = 2 * (cell // 3) + corner // 2, 2 * (cell % 3) + corner % 2
        assert out[0, channel, frame, row, column] == 1
        assert out.sum() == 1


def test_rotary_axis_widths():
    assert axis_widths(128) == (44, 42, 42)
    assert axis_widths(64) == (24, 20, 20)
    assert axis_widths(32) == (12, 10, 10)
    assert rotary_table((2, 3, 4), 128).shape == (24, 64, 2)


def test_rotary_identity_at_the_origin_and_unit_length_everywhere():
    table = rotary_table((3, 4, 5), 128)
    assert torch.equal(table[0, :, 0], torch.ones(64, dtype=torch.float64))
    assert torch.equal(table[0, :, 1], torch.zeros(64, dtype=torch.float64))
    torch.testing.assert_close(table.square().sum(-1), torch.ones(60, 64, dtype=torch.float64), rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("interleaved", [True, False])
def test_rotary_scores_depend_on_distance_only(axis, interleaved):
    grid = (6, 6, 6)
    table = rotary_table(grid, 32)
    generator = torch.Generator().manual_seed(axis)
    q, k = (torch.randn(32, generator=generator, dtype=torch.float64) for _ in range(2))

    def score(first, second):
        places = [[2, 2, 2], [2, 2, 2]]
        places[0][axis], places[1][axis] = first, second
        rotated = []
        for vector, (f, r, c) in zip((q, k), places, strict=True):
            row = table[(f * 6 + r) * 6 + c][None]
            rotated.append(ops.rope(vector[None, None, None], row, interleaved=interleaved).flatten())
        return rotated[0] @ rotated[1]

    scores = torch.stack([score(i, i + 2) for i in range(4)])
    assert (scores - scores[0]).abs().max() < 1e-13
    assert (score(0, 3) - scores[0]).abs() > 1e-3


def test_rotary_pairs_are_ordered_frames_rows_columns():
    table = rotary_table((2, 2, 2), 128)
    still = lambda token: [bool((table[token, a:b, 1] == 0).all()) for a, b in ((0, 22), (22, 43), (43, 64))]  # noqa: E731
    assert still(1) == [True, True, False]
    assert still(2) == [True, False, True]
    assert still(4) == [False, True, True]
    assert table[4, 0, 1].item() == pytest.approx(0.8414709848078965)


def test_rotary_tables_are_no_buffers_and_stay_exact_under_half_precision():
    net = small_network(torch.float32)
    x, t, text, *_ = small_inputs(torch.float32)
    net(x, t, text)
    assert not list(net.buffers())
    assert not any("rotary" in key for key in net.state_dict())
    net.to(torch.bfloat16)(x, t, text)
    for table in net._rotary._tables.values():
        assert table.dtype == torch.float32
    exact = rotary_table((2, 2, 3), 12)
    kept = net._rotary.get((2, 2, 3), torch.bfloat16, torch.device("cpu"))
    assert (kept.double() - exact).abs().max() < 6e-8


def test_rotary_tables_keep_few():
    tables = RotaryTables(8, limit=2)
    for size in range(1, 5):
        assert tables.get((1, 1, size), torch.float32, torch.device("cpu")).shape == (size, 4, 2)
    assert len(tables._tables) == 2


def test_text_and_every_frame_matter():
    net = small_network()
    x, t, text, *_ = small_inputs()
    with torch.no_grad():
        base = net(x, t, text)
        assert relative(net(x, t, text.flip(0)), base) > 1e-3
        assert relative(net(x.flip(2), t, text), base) > 1e-3
