"""Weight files: round trips of every layout, strictness, atomic saving, bad files."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import subprocess

import pytest
import torch
from checkpoints.checks import assert_same, refused, state
from networks.small_wan import small_network
from safetensors.torch import load_file, save_file

from rcm_sidecar import safetensors_file
from rcm_sidecar.checkpoints import load_network, save_network
from rcm_sidecar.checkpoints.layouts import diffusers_names
from rcm_sidecar.errors import HostError, WeightsError
from rcm_sidecar.files import temporary_path
from rcm_sidecar.networks import build


@pytest.fixture(scope="module")
def net():
    return small_network(torch.float32)


@pytest.fixture
def other():
    return small_network(torch.float32, seed=99)


def test_diffusers_keys_are_those_of_the_table():
    names = diffusers_names(build("wan2.1-t2v-1.3b", device="meta"))
    assert len(names) == len(set(names.values())) == 825
    assert len(set(diffusers_names(build("wan2.1-t2v-14b", device="meta")).values())) == 1095
    table = {
        "patch_embedding.weight": "patch_embedding.weight",
        "text_embedding.0.weight": "condition_embedder.text_embedder.linear_1.weight",
        "text_embedding.2.bias": "condition_embedder.text_embedder.linear_2.bias",
        "time_embedding.0.bias": "condition_embedder.time_embedder.linear_1.bias",
        "time_embedding.2.weight": "condition_embedder.time_embedder.linear_2.weight",
        "time_projection.1.weight": "condition_embedder.time_proj.weight",
        "blocks.11.modulation": "blocks.11.scale_shift_table",
        "blocks.1.self_attn.q.weight": "blocks.1.attn1.to_q.weight",
        "blocks.1.self_attn.o.bias": "blocks.1.attn1.to_out.0.bias",
        "blocks.1.self_attn.norm_k.weight": "blocks.1.attn1.norm_k.weight",
        "blocks.2.norm3.weight": "blocks.2.norm2.weight",
        "blocks.2.norm3.bias": "blocks.2.norm2.bias",
        "blocks.3.cross_attn.v.weight": "blocks.3.attn2.to_v.weight",
        "blocks.3.cross_attn.norm_q.weight": "blocks.3.attn2.norm_q.weight",
        "blocks.29.ffn.0.weight": "blocks.29.ffn.net.0.proj.weight",
        "blocks.29.ffn.2.bias": "blocks.29.ffn.net.2.bias",
        "head.modulation": "scale_shift_table",
        "head.head.weight": "proj_out.weight",
    }
    assert {key: names[key] for key in table} == table


def test_config_files(net, tmp_path):
    official = json.loads((save_network(net, tmp_path / "o") / "config.json").read_text())
    assert official["_class_name"] == "WanModel"
    assert (official["dim"], official["num_heads"], official["ffn_dim"], official["text_len"]) == (24, 2, 40, 512)
    diffusers = json.loads((save_network(net, tmp_path / "d", "diffusers") / "config.json").read_text())
    assert diffusers == {
        "_class_name": "WanTransformer3DModel",
        "added_kv_proj_dim": None,
        "attention_head_dim": 12,
        "cross_attn_norm": True,
        "eps": 1e-6,
        "ffn_dim": 40,
        "freq_dim": 16,
        "in_channels": 3,
        "num_attention_heads": 2,
        "num_layers": 2,
        "out_channels": 2,
        "patch_size": [1, 2, 2],
        "qk_norm": "rms_norm_across_heads",
        "text_dim": 10,
    }


def test_single_file_and_comfyui_keys(net, other, tmp_path):
    file = save_network(net, tmp_path / "deep" / "w.safetensors")
    assert load_network(other, file).tensors == 69
    assert_same(net, other)
    comfy = save_network(net, tmp_path / "comfy.safetensors", "comfyui")
    assert all(key.startswith("model.diffusion_model.") for key in load_file(comfy))
    assert os.listdir(tmp_path / "deep") == ["w.safetensors"]


def test_shards(net, other, tmp_path):
    folder = save_network(net, tmp_path / "out", max_shard_bytes=20_000)
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"diffusion_pytorch_model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((folder / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in state(net).values())
    load_network(other, folder)
    assert_same(net, other)
    load_network(small_network(torch.float32, seed=5), folder / "diffusion_pytorch_model.safetensors.index.json")
    shards[1].unlink()
    refused(other, folder, "E_WEIGHTS_NOT_FOUND", shards[1].name)


def test_saving_again_replaces_and_removes_stale_shards(net, other, tmp_path):
    folder = save_network(net, tmp_path / "out", max_shard_bytes=20_000)
    (folder / "README.md").write_text("kept")
    save_network(other, folder)
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "diffusion_pytorch_model.safetensors"]
    loaded = small_network(torch.float32, seed=7)
    load_network(loaded, folder)
    assert_same(loaded, other)


PREFIXES = ["", "net.", "module.", "module.net.", "model.diffusion_model.", "_orig_mod.", "net._orig_mod."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt"])
def test_prefixes(net, other, prefix, suffix, tmp_path):
    tensors = {prefix + name: tensor for name, tensor in state(net).items()}
    file = tmp_path / f"w.{suffix}"
    save_file(tensors, file) if suffix == "safetensors" else torch.save(tensors, file)
    load_network(other, file)
    assert_same(net, other)


def test_checkpoint_wrapper_names_inside_keys(net, other, tmp_path):
    tensors = {
        re.sub(r"blocks\.(\d+)\.", r"blocks.\1._checkpoint_wrapped_module.", name): tensor
        for name, tensor in state(net).items()
    }
    save_file(tensors, tmp_path / "w.safetensors")
    load_network(other, tmp_path / "w.safetensors")
    assert_same(net, other)


@pytest.mark.parametrize("container", ["model", "state_dict", "module"])
def test_containers_of_pickled_files(net, other, container, tmp_path):
    torch.save({container: state(net), "step": 3}, tmp_path / "w.pt")
    load_network(other, tmp_path / "w.pt")
    assert_same(net, other)


def test_patch_embedding_as_a_matrix(net, other, tmp_path):
    tensors = {f"net.{name}": tensor for name, tensor in state(net).items()}
    tensors["net.patch_embedding.weight"] = tensors["net.patch_embedding.weight"].flatten(1).clone()
    torch.save(tensors, tmp_path / "student.pth")
    load_network(other, tmp_path / "student.pth")
    assert_same(net, other)


def test_a_pipeline_folder_and_an_original_folder_with_other_models(net, other, tmp_path):
    save_network(net, tmp_path / "pipe" / "transformer", "diffusers")
    (tmp_path / "pipe" / "vae").mkdir()
    load_network(other, tmp_path / "pipe")
    assert_same(net, other)
    folder = save_network(net, tmp_path / "orig")
    torch.save({"decoder.conv1.weight": torch.ones(1)}, folder / "Wan2.1_VAE.pth")
    torch.save({"token_embedding.weight": torch.ones(1)}, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    load_network(small_network(torch.float32, seed=2), folder)


def test_a_teacher_folder_with_a_conditioner(net, other, tmp_path):
    save_network(net, tmp_path / "model.safetensors")
    save_file({"table": torch.ones(2)}, tmp_path / "conditioner.safetensors")
    load_network(other, tmp_path)
    assert_same(net, other)
    (tmp_path / "model.safetensors").rename(tmp_path / "digits.safetensors")
    temporary_path(tmp_path / "other.safetensors").write_bytes(b"what a killed process left")
    load_network(small_network(torch.float32, seed=2), tmp_path)


def test_dtype_on_disk_and_in_memory(net, tmp_path):
    folder = save_network(net, tmp_path / "half", dtype=torch.bfloat16)
    assert {t.dtype for t in load_file(folder / "diffusion_pytorch_model.safetensors").values()} == {torch.bfloat16}
    loaded = small_network(torch.float32, seed=4)
    load_network(loaded, folder)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, net.get_parameter(name).bfloat16().float())


def test_meta_network_gets_memory_of_its_own(net, tmp_path):
    folder = save_network(net, tmp_path / "out")
    empty = small_network_on_meta()
    empty.head.head.weight.requires_grad_(False)
    load_network(empty, folder)
    assert_same(net, empty)
    assert not empty.head.head.weight.requires_grad
    assert empty.head.head.bias.requires_grad


def small_network_on_meta():
    from networks.small_wan import SIZES

    return build("wan2.1-tiny", device="meta", **SIZES)


def damaged(net, change):
    tensors = state(net)
    change(tensors)
    return tensors


MISMATCHES = [
    (lambda t: t.pop("head.head.bias"), ["1 missing", "missing head.head.bias", "incomplete"]),
    (lambda t: t.update({"blocks.0.self_attn.q.lora_A.weight": torch.ones(2, 2)}), ["1 unexpected", "LoRA"]),
    (
        lambda t: t.update({"head.head.bias": torch.ones(3)}),
        ["head.head.bias is [3] and should be [8]", "another size"],
    ),
    (lambda t: [t.pop(k) for k in list(t) if k.startswith("blocks.1.")], ["27 missing", "1 blocks", "2 blocks"]),
    (lambda t: t.update({"extra.weight": torch.ones(2)}), ["unexpected extra.weight", "additions"]),
    (lambda t: [t.update({f"foo.{k}": t.pop(k)}) for k in list(t)], ["69 missing, 69 unexpected"]),
]


@pytest.mark.parametrize(("change", "words"), MISMATCHES, ids=range(len(MISMATCHES)))
def test_weights_that_do_not_fit(net, other, change, words, tmp_path):
    save_file(damaged(net, change), tmp_path / "w.safetensors")
    error = refused(other, tmp_path / "w.safetensors", "E_WEIGHTS_MISMATCH", "wan2.1-tiny", *words)
    assert len(error.message.split("first: ")[1].split("; ")) <= 5
    assert "\n" not in error.message
    assert error.hint


def test_norm2_of_diffusers_is_norm3_here(net, tmp_path):
    folder = save_network(net, tmp_path / "d", "diffusers")
    stored = load_file(folder / "diffusion_pytorch_model.safetensors")
    assert torch.equal(stored["blocks.1.norm2.weight"], net.blocks[1].norm3.weight)
    assert not any("norm3" in key or "norm1" in key for key in stored)


def test_other_models_are_named(other, tmp_path):
    for key, cause in (
        ("x_embedder.proj.1.weight", "Cosmos"),
        ("shared.weight", "text encoder"),
        ("decoder.conv1.weight", "VAE"),
    ):
        save_file({key: torch.ones(2)}, tmp_path / "w.safetensors")
        refused(other, tmp_path / "w.safetensors", "E_WEIGHTS_MISMATCH", cause)


def test_integers_are_no_weights(net, other, tmp_path):
    save_file(
        damaged(net, lambda t: t.update({"head.head.bias": torch.ones(8, dtype=torch.int64)})),
        tmp_path / "w.safetensors",
    )
    refused(other, tmp_path / "w.safetensors", "E_WEIGHTS_MISMATCH", "integers")


class Payload:
    """Makes a file when it is unpickled by something that runs code."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return subprocess.check_call, (["touch", self.marker],)


def test_bad_files(net, other, tmp_path):
    refused(other, tmp_path / "none.safetensors", "E_WEIGHTS_NOT_FOUND")
    refused(other, tmp_path, "E_WEIGHTS_NOT_FOUND", "no weights file")
    for suffix in ("safetensors", "pth"):
        file = tmp_path / f"bad.{suffix}"
        file.write_bytes(b"")
        refused(other, file, "E_WEIGHTS_EMPTY", "empty")
        file.write_bytes(b"not weights at all")
        refused(other, file, "E_WEIGHTS_UNREADABLE", "damaged")
    (tmp_path / "w.bin").write_bytes(b"x")
    refused(other, tmp_path / "w.bin", "E_WEIGHTS_LAYOUT", ".safetensors")
    whole = save_network(net, tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(other, tmp_path / "cut.safetensors", "E_WEIGHTS_UNREADABLE")
    save_file({}, tmp_path / "nothing.safetensors")
    refused(other, tmp_path / "nothing.safetensors", "E_WEIGHTS_EMPTY", "no tensors")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_not_run(other, legacy, tmp_path):
    marker, file = tmp_path / "ran", tmp_path / "evil.pth"
    torch.save({"head.head.bias": Payload(marker)}, file, _use_new_zipfile_serialization=not legacy)
    refused(other, file, "E_WEIGHTS_UNREADABLE", "before version 1.6" if legacy else "code to be run")
    assert not marker.exists()
    torch.load(file, weights_only=False)
    assert marker.exists(), "the payload works, so the test has teeth"
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    refused(other, tmp_path / "list.pth", "E_WEIGHTS_LAYOUT", "table")


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_is_not_taken_for_a_file_of_old_torch(other, protocol, tmp_path):
    marker, file = tmp_path / "ran", tmp_path / "evil.pt"
    file.write_bytes(pickle.dumps({"head.head.bias": Payload(marker)}, protocol))
    refused(other, file, "E_WEIGHTS_UNREADABLE", "bare pickle")
    assert not marker.exists()


def test_a_file_of_old_torch_says_how_to_renew_it(net, other, tmp_path):
    torch.save(state(net), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    refused(other, tmp_path / "old.pth", "E_WEIGHTS_UNREADABLE", "save it again")


def test_bad_indexes(net, other, tmp_path):
    folder = save_network(net, tmp_path / "out", max_shard_bytes=20_000)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["head.head.bias"] = "../secret.safetensors"
    index.write_text(json.dumps(content))
    refused(other, folder, "E_WEIGHTS_UNREADABLE", "secret")
    for text in ("{", "[]", '{"weight_map": 3}'):
        index.write_text(text)
        refused(other, folder, "E_WEIGHTS_UNREADABLE")


def test_two_weights_files_without_an_index_are_ambiguous(net, other, tmp_path):
    save_network(net, tmp_path / "a.safetensors")
    save_network(net, tmp_path / "b.safetensors")
    refused(other, tmp_path, "E_WEIGHTS_LAYOUT", "several")


def test_bad_save_targets(net, tmp_path):
    (tmp_path / "file").write_text("mine")
    for path, layout, code in (
        ("file", "official", "E_WEIGHTS_WRITE"),
        ("x", "gguf", "E_WEIGHTS_LAYOUT"),
        ("x.safetensors", "diffusers", "E_WEIGHTS_LAYOUT"),
    ):
        with pytest.raises(WeightsError) as caught:
            save_network(net, tmp_path / path, layout)
        assert caught.value.code == code
    assert os.listdir(tmp_path) == ["file"]


FULL = [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Disk quota exceeded")]


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("failure", FULL, ids=["full", "quota"])
def test_a_failed_save_leaves_what_was_there(net, other, monkeypatch, tmp_path, single, existing, failure):
    target = tmp_path / ("w.safetensors" if single else "out")
    if existing:
        save_network(net, target)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    fail_after_a_part(monkeypatch, failure)
    with pytest.raises(HostError) as caught:
        save_network(other, target)
    assert caught.value.code == "E_DISK_FULL"
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    assert existing or not list(tmp_path.iterdir())


def fail_after_a_part(monkeypatch, failure):
    """The third tensor written fails."""
    whole, calls = safetensors_file._write_data, []

    def broken(out, value):
        calls.append(out)
        if len(calls) == 3:
            raise failure
        whole(out, value)

    monkeypatch.setattr(safetensors_file, "_write_data", broken)


def test_other_write_errors_are_typed(net, monkeypatch, tmp_path):
    fail_after_a_part(monkeypatch, OSError(errno.EROFS, "Read-only file system"))
    with pytest.raises(WeightsError) as caught:
        save_network(net, tmp_path / "out")
    assert caught.value.code == "E_WEIGHTS_WRITE"


def test_errors_survive_copying():
    import copy

    error = WeightsError("E_X", "message", "hint", {"step": 3})
    copied = copy.copy(error)
    assert copied.details == {"step": 3}
    assert (type(copied), copied.code, copied.message, copied.hint, str(copied)) == (
        WeightsError, "E_X", "message", "hint", "message",
    )  # fmt: skip
