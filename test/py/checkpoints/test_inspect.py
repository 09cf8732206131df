"""Weights from their headers alone: which network, which layout, what does not fit."""

from __future__ import annotations

import json

import pytest
import torch
from checkpoints.full_size import write_sparse
from networks import small_cosmos, small_wan
from safetensors.torch import save_file

from rcm_sidecar.checkpoints import load_network, save_network
from rcm_sidecar.checkpoints.inspect import inspect_weights
from rcm_sidecar.checkpoints.layouts import LAYOUTS
from rcm_sidecar.errors import ConfigError, WeightsError
from rcm_sidecar.networks import build, names


@pytest.mark.parametrize("name", names())
def test_every_network_is_known_by_its_shapes(name, tmp_path):
    net = build(name, device="meta")
    file = write_sparse(net, tmp_path / "w.safetensors", torch.bfloat16)
    found = inspect_weights(file)
    assert (found.network.model, found.network.overrides, found.misfit) == (name, {}, None)
    assert (found.layout, found.family, found.prefix) == ("official", net.spec.family, "")
    assert found.parameters == sum(p.numel() for p in net.parameters())
    assert found.dtypes == {"bfloat16": found.tensors}
    assert found.bytes == file.stat().st_size


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("module", [small_wan, small_cosmos])
def test_unusual_sizes_come_back_as_overrides(module, layout, tmp_path):
    net = module.small_network(torch.float32)
    path = save_network(net, tmp_path / "w", layout)
    found = inspect_weights(path)
    assert (found.layout, found.misfit) == (layout, None)
    assert build(found.network.model, device="meta", **found.network.overrides).config == net.config


def test_what_no_shape_shows_comes_from_the_config_beside(tmp_path):
    net = build("wan2.1-tiny", num_heads=4, eps=1e-5, text_len=77)
    for layout in ("official", "diffusers"):
        found = inspect_weights(save_network(net, tmp_path / layout, layout))
        wanted = {"num_heads": 4, "eps": 1e-5} | ({"text_len": 77} if layout == "official" else {})
        assert (found.network.model, found.network.overrides) == ("wan2.1-tiny", wanted)
    config = tmp_path / "official" / "config.json"
    for content in ('{"num_heads": "many"}', "[", "[]", '{"eps": -1, "patch_size": [1, 0, 2]}'):
        config.write_text(content)
        assert inspect_weights(tmp_path / "official").network.overrides == {}


def test_a_release_that_lacks_blocks_is_incomplete_not_another_network(tmp_path):
    net = build("wan2.1-t2v-1.3b", device="meta", num_layers=3)
    file = write_sparse(net, tmp_path / "w.safetensors", torch.bfloat16)
    found = inspect_weights(file)
    assert (found.network.model, found.network.overrides) == ("wan2.1-t2v-1.3b", {})
    assert len(found.misfit.mismatch.missing) == 27 * 27
    (tmp_path / "config.json").write_text(json.dumps({"num_layers": 3}))
    assert inspect_weights(file).network.overrides == {"num_layers": 3}


def test_a_misfit_is_what_loading_says(tmp_path):
    small, large = build("wan2.1-t2v-1.3b", device="meta"), build("wan2.1-t2v-14b", device="meta")
    file = write_sparse(small, tmp_path / "w.safetensors", torch.bfloat16)
    misfit = inspect_weights(file, "wan2.1-t2v-14b").misfit
    with pytest.raises(WeightsError) as caught:
        load_network(large, file)
    assert caught.value.message.endswith(misfit.mismatch.summary())
    assert caught.value.hint == misfit.cause
    assert "width 1536 and 30 blocks, here width 5120 and 40 blocks" in misfit.cause
    assert inspect_weights(file, "wan2.1-t2v-1.3b").misfit is None


def test_other_kinds_of_files(tmp_path):
    file = tmp_path / "w.safetensors"
    for key, cause in (("decoder.conv1.weight", "VAE"), ("shared.weight", "text encoder"), ("x", "another network")):
        save_file({key: torch.ones(2)}, file)
        found = inspect_weights(file)
        assert (found.layout, found.family, found.network) == (None, None, None)
        assert cause in found.misfit.cause
    with pytest.raises(WeightsError, match="no weights"):
        inspect_weights(tmp_path / "none")
    with pytest.raises(ConfigError, match="unknown network"):
        inspect_weights(file, "wan3")


def test_a_pickled_file_shows_its_shapes_too(tmp_path):
    net = small_cosmos.small_network(torch.bfloat16)
    torch.save({f"net.{key}": value for key, value in net.state_dict().items()}, tmp_path / "model.pt")
    found = inspect_weights(tmp_path)
    assert (found.prefix, found.family, found.misfit) == ("net.", "cosmos-predict2", None)
    assert found.dtypes == {"bfloat16": 47}
