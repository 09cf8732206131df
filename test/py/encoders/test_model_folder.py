"""Which parts a folder has, and what is said about those it lacks."""

import shutil

import pytest

from rcm_sidecar.encoders.model_folder import model_root, open_model_folder
from rcm_sidecar.errors import WeightsError


def test_parts_are_found_from_the_folder_or_the_network_in_it(folders):
    folder = folders["wan_diffusers"]
    for path in (folder, folder / "transformer", folder / "transformer" / "diffusion_pytorch_model.safetensors"):
        assert model_root(path) == folder
        found = open_model_folder(path, "wan2.1")
        assert (found.text_encoder, found.vae) == (folder / "text_encoder", folder / "vae")
    original = open_model_folder(folders["wan_original"] / "diffusion_pytorch_model.safetensors", "wan2.1")
    assert original.vae.name == "Wan2.1_VAE.pth"
    assert original.tokenizer == folders["wan_original"] / "google" / "umt5-xxl" / "tokenizer.json"
    assert open_model_folder(folders["cosmos_original"], "cosmos-predict2").vae.name == "tokenizer.pth"


def test_what_is_missing_is_listed_with_the_way_to_get_it(folders, tmp_path):
    folder = shutil.copytree(folders["wan_original"], tmp_path / "model")
    (folder / "Wan2.1_VAE.pth").unlink()
    shutil.rmtree(folder / "google")
    with pytest.raises(WeightsError) as caught:
        open_model_folder(folder, "wan2.1")
    error = caught.value
    assert error.code == "E_WEIGHTS_NOT_FOUND"
    assert "lacks the tokenizer (google/umt5-xxl/tokenizer.json or tokenizer/tokenizer.json) and VAE (" in error.message
    assert "text encoder" not in error.message
    assert "--encoders" in error.hint and "weights fetch hf:Wan-AI/Wan2.1-T2V-1.3B --with-encoders" in error.hint
