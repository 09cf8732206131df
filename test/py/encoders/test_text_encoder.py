"""Text states against the formulas of the original code and against transformers itself."""

import json
import shutil

import pytest
import torch
from encoders import native_umt5, tiny_models
from transformers import T5EncoderModel

from rcm_sidecar.encoders.model_folder import open_model_folder
from rcm_sidecar.encoders.prompts import NEGATIVE_PROMPTS, cleaned, negative_prompt
from rcm_sidecar.encoders.text_encoder import load_text_encoder, padded
from rcm_sidecar.errors import ConfigError, WeightsError

CPU = torch.device("cpu")
LENGTH = 40
PROMPT = "a cat on a mat"


def encoder_of(folder, family="wan2.1", dtype=torch.float32):
    return load_text_encoder(open_model_folder(folder, family), LENGTH, CPU, dtype)


def test_the_original_file_gives_what_the_original_formulas_give(folders):
    weights = torch.load(folders["wan_original"] / "models_t5_umt5-xxl-enc-bf16.pth")
    weights = {key: value.float() for key, value in weights.items()}
    tokens = tiny_models.tokenizer().encode(PROMPT)
    ids = torch.tensor(tokens.ids + [0] * (LENGTH - len(tokens.ids)))
    mask = torch.tensor([1] * len(tokens.ids) + [0] * (LENGTH - len(tokens.ids)))
    expected = native_umt5.encode(weights, ids, mask, heads=4)[: len(tokens.ids)]

    found = encoder_of(folders["wan_original"]).encode(PROMPT)
    assert tokens.ids[-1] == 1  # the end belongs to the text
    assert found.rows.dtype == torch.bfloat16
    torch.testing.assert_close(found.rows.float(), expected, rtol=1e-2, atol=1e-2)
    assert (expected[0] - expected[1]).norm() > 0.5  # the rows differ, so a mix-up would show


def test_both_layouts_give_the_same_states(folders):
    original, diffusers = (encoder_of(folders[name]).encode(PROMPT) for name in ("wan_original", "wan_diffusers"))
    assert torch.equal(original.rows, diffusers.rows)


def test_t5_gives_what_transformers_gives(folders):
    folder = folders["cosmos_diffusers"]
    model = T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
    ids = torch.tensor([tiny_models.tokenizer().encode(PROMPT).ids])
    with torch.no_grad():
        expected = model(input_ids=ids).last_hidden_state[0]
    found = encoder_of(folder, "cosmos-predict2").encode(PROMPT)
    torch.testing.assert_close(found.rows.float(), expected, rtol=1e-2, atol=1e-2)


def test_a_long_prompt_is_cut_before_its_end_mark(folders):
    encoder = encoder_of(folders["wan_original"])
    long, short = encoder.encode("abc " * 60), encoder.encode(PROMPT)
    assert long.truncated and len(long.rows) == LENGTH
    assert not short.truncated and len(short.rows) < LENGTH
    text = padded(short.rows, LENGTH)
    assert text.shape == (LENGTH, tiny_models.WIDTH)
    assert torch.equal(text[: len(short.rows)], short.rows) and not text[len(short.rows) :].any()


def test_wan_mends_prompts_and_cosmos_does_not():
    raw = "  a &amp;amp; b\u00a0\n c  \u201cd\u201d "
    assert cleaned(raw, "wan2.1") == 'a & b c "d"'
    assert cleaned(raw, "cosmos-predict2") == raw


def test_negative_prompts():
    assert negative_prompt("default", "wan2.1") == NEGATIVE_PROMPTS["wan2.1"]
    assert NEGATIVE_PROMPTS["wan2.1"].count("，") == 27 and "," not in NEGATIVE_PROMPTS["wan2.1"]
    assert negative_prompt("default", "cosmos-predict2") is None
    assert negative_prompt("zeros", "wan2.1") is None
    assert negative_prompt("empty", "wan2.1") == ""
    assert negative_prompt("text:blurry", "wan2.1") == "blurry"
    with pytest.raises(ConfigError, match="no negative prompt"):
        negative_prompt("nothing", "wan2.1")


def broken(folders, tmp_path, name):
    return shutil.copytree(folders[name], tmp_path / "model")


def test_an_incomplete_original_file_is_refused(folders, tmp_path):
    folder = broken(folders, tmp_path, "wan_original")
    file = folder / "models_t5_umt5-xxl-enc-bf16.pth"
    weights = torch.load(file)
    del weights["blocks.1.ffn.fc1.weight"]
    torch.save(weights, file)
    with pytest.raises(WeightsError, match=r"block\.1\.layer\.1\.DenseReluDense\.wi_1\.weight is missing") as caught:
        encoder_of(folder)
    assert caught.value.code == "E_WEIGHTS_MISMATCH"


def test_the_encoder_of_another_model_is_refused(folders, tmp_path):
    folder = broken(folders, tmp_path, "wan_diffusers")
    shutil.rmtree(folder / "text_encoder")
    shutil.copytree(folders["cosmos_diffusers"] / "text_encoder", folder / "text_encoder")
    with pytest.raises(WeightsError, match="holds a t5 model; wan2.1 reads the states of a umt5 one"):
        encoder_of(folder)


def test_a_broken_tokenizer_is_named(folders, tmp_path):
    folder = broken(folders, tmp_path, "wan_diffusers")
    (folder / "tokenizer" / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    with pytest.raises(WeightsError, match=r"tokenizer\.json is no tokenizer") as caught:
        encoder_of(folder)
    assert caught.value.code == "E_WEIGHTS_UNREADABLE"
