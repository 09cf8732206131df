"""The mirror of the config: what it accepts, refuses and gives back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcm_sidecar.config import (
    AdamW,
    ConstantEma,
    LogNormalSigma,
    NetworkOverrides,
    PowerEma,
    RunConfig,
    UniformLogisticNormal,
    UniformShifted,
    config_document,
    load_config,
    parse_config,
)
from rcm_sidecar.errors import ConfigError
from rcm_sidecar.networks.cosmos_predict2 import CosmosConfig
from rcm_sidecar.networks.wan2_1 import WanConfig

FIXTURE = Path(__file__).parent / "fixtures" / "digits-rcm.json"


def document() -> dict[str, Any]:
    return json.loads(FIXTURE.read_text())


def changed(path: str, value: Any) -> dict[str, Any]:
    root = document()
    *parents, last = path.split(".")
    block = root
    for key in parents:
        block = block[key]
    block[last] = value
    return root


def leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(value, dict) or not value:
        return [path]
    return [leaf for key, inner in value.items() for leaf in leaves(inner, (*path, key))]


def test_the_default_is_read_with_units_and_tags() -> None:
    config = load_config(FIXTURE)
    assert config.losses.scm.time_distribution == LogNormalSigma(mean=-0.4, std=1.6)
    assert config.pretrain.time_distribution == UniformLogisticNormal(std=1.2)
    assert config.student.ema == [PowerEma(relative_width=0.1)]
    assert config.pretrain.ema == ConstantEma(decay=0.999)
    assert isinstance(config.student.optimizer, AdamW)
    assert config.student.optimizer.betas == (0.0, 0.999)
    assert config.student.optimizer.final_share is None
    assert config.pretrain.optimizer.final_share == 0.05
    assert config.checkpoints.async_ is True
    assert config.student.sampler.sigma_max == 80.0
    assert isinstance(config.student.sampler.sigma_max, float)


def test_overrides_become_arguments_of_build() -> None:
    given_sizes = load_config(FIXTURE).model.overrides.arguments()
    assert given_sizes == {
        "dim": 64,
        "num_heads": 2,
        "num_layers": 3,
        "ffn_dim": 192,
        "text_dim": 64,
        "freq_dim": 64,
        "in_dim": 1,
        "out_dim": 1,
    }
    assert parse_config(changed("model.overrides", {"dim": None})).model.overrides.arguments() == {}


def test_it_comes_back_as_it_was_sent() -> None:
    assert config_document(parse_config(document())) == document()
    packed = msgspec.msgpack.encode(document())
    assert msgspec.msgpack.decode(packed, type=RunConfig) == load_config(FIXTURE)


# Overrides hold only what differs from the named network.
REQUIRED = [path for path in leaves(document()) if path[:2] != ("model", "overrides")]


@pytest.mark.parametrize("path", REQUIRED, ids=".".join)
def test_every_key_is_required(path: tuple[str, ...]) -> None:
    root = document()
    block = root
    for key in path[:-1]:
        block = block[key]
    del block[path[-1]]
    with pytest.raises(ConfigError, match=f"missing required field `{path[-1]}`"):
        parse_config(root)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schedule.stepz", 1),
        ("schedule.steps", "many"),
        ("schedule.steps", 0),
        ("schedule.steps", True),
        ("losses.scm.timeDistribution", {"kind": "uniformShifted", "shift": 5, "std": 1}),
        ("losses.scm.timeDistribution", {"shift": 5}),
        ("student.optimizer.betas", [0.9]),
        ("student.optimizer.betas", [0.9, 1.0]),
        ("name", "../up"),
        ("version", 2),
    ],
)
def test_a_bad_value_is_named_by_its_path(path: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(changed(path, value))
    assert caught.value.code == "E_CONFIG_VALUE"
    assert path.split(".")[-1].split(".")[0] in caught.value.message


def test_another_kind_is_another_struct() -> None:
    config = parse_config(changed("losses.dmd.timeDistribution", {"kind": "uniformShifted", "shift": 5}))
    assert config.losses.dmd.time_distribution == UniformShifted(shift=5.0)


def test_it_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        load_config(FIXTURE).schedule.steps = 3  # type: ignore[misc]


def test_a_file_that_is_no_config_is_refused(tmp_path: Path) -> None:
    for text in ("", "[]", "{}", "{"):
        file = tmp_path / "config.json"
        file.write_text(text)
        with pytest.raises(ConfigError):
            load_config(file)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(leaves(document())), json_values)
def test_only_config_errors_come_out(path: tuple[str, ...], value: Any) -> None:
    changed_document = changed(".".join(path), value)
    try:
        config = parse_config(changed_document)
    except ConfigError:
        return
    assert isinstance(config, RunConfig)


def test_overrides_are_the_fields_of_the_networks() -> None:
    fields = {field.name for config in (WanConfig, CosmosConfig) for field in dataclasses.fields(config)}
    assert set(NetworkOverrides.__struct_fields__) == fields
