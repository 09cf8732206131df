"""Weights a user names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rcm_sidecar.checkpoints import save_network
from rcm_sidecar.checkpoints.sampler_file import TeacherFolder
from rcm_sidecar.checkpoints.sources import content_key, load_source, locate
from rcm_sidecar.errors import WeightsError
from rcm_sidecar.networks import build


def copy_of(teacher: Path, folder: Path, changes: dict[str, Any] | None = None) -> Path:
    shutil.copytree(teacher, folder)
    document = json.loads((folder / "sampler.json").read_text())
    (folder / "sampler.json").write_text(json.dumps({**document, **(changes or {})}))
    return folder


def test_locators(tmp_path: Path) -> None:
    assert (locate("builtin:digits-teacher") / "sampler.json").is_file()
    assert locate(str(tmp_path)) == tmp_path
    for locator in ("builtin:digits-nothing", "builtin:../x", str(tmp_path / "no"), "hf:owner/name@main"):
        with pytest.raises(WeightsError) as caught:
            locate(locator)
        assert caught.value.code == "E_WEIGHTS_NOT_FOUND" and locator in caught.value.message


def test_the_shipped_teacher_is_a_source() -> None:
    source = load_source(locate("builtin:digits-teacher"))
    assert isinstance(source.settings, TeacherFolder) and source.conditioner is not None


def test_a_folder_and_its_file_are_the_same_source(tiny_teacher: Path) -> None:
    folder, file = load_source(tiny_teacher), load_source(tiny_teacher / "model.safetensors")
    pairs = zip(folder.network.parameters(), file.network.parameters(), strict=True)
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in pairs)
    assert isinstance(folder.settings, TeacherFolder) and folder.conditioner is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 2},
        {"network": {"name": "wan2.1-tiny"}},
        {"network": {"name": "wan2.1-tiny", "overrides": {"height": 3}}},
        {"weights": "../elsewhere.safetensors"},
        {"weights": ".."},
        {"conditioner": "../elsewhere.safetensors"},
        {"conditioner": 5},
        {"kind": "critic"},
        {"network": {"name": "wan2.1-huge", "overrides": {}}},
        {"latent": {"mean": 0.0, "std": 1.0}},
        {"latent": {"shape": [3, 1, 8, 8], "mean": 0.0, "std": 1.0}},
        {"sampler": {"sigmaMax": 80, "times": []}},
        {"timeScale": None},
    ],
)
def test_a_bad_sampler_file_is_refused(changes: dict[str, Any], tiny_teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        load_source(copy_of(tiny_teacher, tmp_path / "copy", changes))
    assert caught.value.code == "E_WEIGHTS_SAMPLER"


def test_weights_without_a_sampler_file_are_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_teacher, tmp_path / "copy")
    (folder / "sampler.json").unlink()
    with pytest.raises(WeightsError) as caught:
        load_source(folder)
    assert caught.value.code == "E_WEIGHTS_SAMPLER"


def test_the_content_key_follows_the_weights_only(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_teacher, tmp_path / "copy", {"runId": "other"})
    assert content_key(folder) == content_key(tiny_teacher)
    assert content_key(folder / "model.safetensors") == content_key(tiny_teacher)
    (folder / "conditioner.safetensors").write_bytes(b"other")
    assert content_key(folder) != content_key(tiny_teacher)


def test_the_content_key_follows_weights_in_a_pipeline_folder(tmp_path: Path) -> None:
    keys = set()
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        save_network(
            build("wan2.1-tiny", generator=torch.Generator().manual_seed(seed)), folder / "transformer", "diffusers"
        )
        keys.add(content_key(folder))
    assert len(keys) == 2


def test_a_label_table_of_another_width_is_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_teacher, tmp_path / "copy")
    save_file({"table": torch.zeros(11, 4, 20)}, folder / "conditioner.safetensors")
    with pytest.raises(WeightsError) as caught:
        load_source(folder)
    assert caught.value.code == "E_WEIGHTS_SHAPE" and "20" in caught.value.message
