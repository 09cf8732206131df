"""Text states between runs: the encoder is loaded for new prompts only, and never mixed up with another one."""

import os
import shutil
import weakref

import pytest
import torch

from rcm_sidecar.encoders.embedding_cache import encode_prompts, file_hash, open_embedding_cache
from rcm_sidecar.encoders.model_folder import open_model_folder
from rcm_sidecar.encoders.text_encoder import Encoded, load_text_encoder

LENGTH = 40


class Counting:
    """An encoder that counts, with states made of the prompt."""

    def __init__(self):
        self.loaded, self.encoded = 0, []

    def load(self):
        self.loaded += 1
        return self

    def encode(self, prompt):
        self.encoded.append(prompt)
        return Encoded(torch.full((len(prompt), 4), float(ord(prompt[0])), dtype=torch.bfloat16), len(prompt) > 5)


@pytest.fixture
def opened(folders, tmp_path):
    def open_cache(name="wan_original", folder=None, length=LENGTH):
        family = "wan2.1" if name.startswith("wan") else "cosmos-predict2"
        return open_embedding_cache(open_model_folder(folder or folders[name], family), length, tmp_path / "cache")

    return open_cache


def test_a_prompt_is_encoded_once(opened):
    encoder = Counting()
    first = encode_prompts(["cat", "mat", "cat"], opened(), encoder.load)
    assert encoder.loaded == 1 and encoder.encoded == ["cat", "mat"]
    again = encode_prompts(["mat", "cat"], opened(), encoder.load)
    assert encoder.loaded == 1
    assert all(torch.equal(again[prompt].rows, first[prompt].rows) for prompt in ("cat", "mat"))
    encode_prompts(["cat", "longer prompt"], opened(), encoder.load)
    assert encoder.loaded == 2 and encoder.encoded[-1:] == ["longer prompt"]
    assert encode_prompts(["longer prompt"], opened(), encoder.load)["longer prompt"].truncated


@pytest.mark.parametrize("other", [{"name": "cosmos_diffusers"}, {"name": "wan_diffusers"}, {"length": 41}])
def test_another_encoder_or_length_has_its_own(opened, other):
    encode_prompts(["cat"], opened(), Counting().load)
    encoder = Counting()
    encode_prompts(["cat"], opened(**other), encoder.load)
    assert encoder.loaded == 1


def test_changed_content_is_another_encoder_and_a_moved_one_is_the_same(opened, folders, tmp_path):
    encode_prompts(["cat"], opened(), Counting().load)
    moved, encoder = shutil.copytree(folders["wan_original"], tmp_path / "moved"), Counting()
    encode_prompts(["cat"], opened(folder=moved), encoder.load)
    assert encoder.loaded == 0
    file = moved / "models_t5_umt5-xxl-enc-bf16.pth"
    weights = torch.load(file)
    weights["norm.weight"] += 1
    torch.save(weights, file)
    encode_prompts(["cat"], opened(folder=moved), encoder.load)
    assert encoder.loaded == 1


def test_damaged_entries_are_made_again(opened, tmp_path):
    encode_prompts(["cat"], opened(), Counting().load)
    (entry,) = (tmp_path / "cache" / "text").iterdir()
    entry.write_bytes(entry.read_bytes()[:-5])
    encoder = Counting()
    encode_prompts(["cat"], opened(), encoder.load)
    encode_prompts(["cat"], opened(), encoder.load)
    assert encoder.loaded == 1


def test_the_encoder_is_freed(opened, folders):
    parts = []

    def load():
        encoder = load_text_encoder(open_model_folder(folders["wan_original"], "wan2.1"), LENGTH, torch.device("cpu"))
        parts.extend(weakref.ref(parameter) for parameter in encoder._model.parameters())
        return encoder

    encode_prompts(["cat"], opened(), load)
    assert len(parts) > 10 and all(part() is None for part in parts)


def test_a_cache_that_cannot_be_written_only_costs_time(folders, tmp_path):
    (tmp_path / "cache").write_text("")
    cache = open_embedding_cache(open_model_folder(folders["wan_original"], "wan2.1"), LENGTH, tmp_path / "cache")
    assert encode_prompts(["cat"], cache, Counting().load)["cat"].rows.shape == (3, 4)


def test_a_file_is_hashed_again_only_when_it_changed(tmp_path):
    file, cache = tmp_path / "weights", tmp_path / "cache"
    file.write_bytes(b"one")
    first, before = file_hash(file, cache), os.stat(file)
    # The same size and time: taken for the same file, without being read.
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file_hash(file, cache) == first
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert file_hash(file, cache) != first
