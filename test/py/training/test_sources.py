"""Weights a user names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rcm_sidecar.checkpoints.sources import content_key, load_source, locate
from rcm_sidecar.errors import WeightsError


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


def test_a_folder_and_its_file_are_the_same_source(tiny_teacher: Path) -> None:
    folder, file = load_source(tiny_teacher), load_source(tiny_teacher / "model.safetensors")
    pairs = zip(folder.network.parameters(), file.network.parameters(), strict=True)
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in pairs)
    assert folder.document["kind"] == "teacher" and folder.conditioner is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 2},
        {"network": {"name": "wan2.1-tiny"}},
        {"network": {"name": "wan2.1-tiny", "overrides": {"height": 3}}},
        {"weights": "../elsewhere.safetensors"},
        {"conditioner": "../elsewhere.safetensors"},
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
