"""Conversion: bit-exact round trips, nothing half done, nothing overwritten without consent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import msgspec
import pytest
import torch
from checkpoints.checks import assert_same, files_of, state
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import small_cosmos, small_wan
from safetensors.torch import load_file

from rcm_sidecar import files
from rcm_sidecar.checkpoints import compare, convert, load_network, save_network
from rcm_sidecar.checkpoints.convert import DTYPES, convert_weights
from rcm_sidecar.checkpoints.reading import open_weights, weights_files
from rcm_sidecar.checkpoints.sources import load_source, load_table, locate
from rcm_sidecar.checkpoints.weights_file import open_network
from rcm_sidecar.errors import SidecarError, WeightsError

FAMILIES = {"wan": small_wan, "cosmos": small_cosmos}
STEPS = ["diffusers", "comfyui", "official", "w.safetensors", "w.pt", "w.pth"]


@pytest.fixture
def source(tmp_path):
    return save_network(small_wan.small_network(torch.float32), tmp_path / "source")


@given(
    st.sampled_from(sorted(FAMILIES)),
    st.sampled_from(sorted(DTYPES)),
    st.lists(st.sampled_from(STEPS), min_size=1, max_size=2),
)
@settings(deadline=None, max_examples=10, derandomize=True)
def test_any_way_round_ends_in_the_same_bytes(tmp_path_factory, family, dtype, steps):
    folder = tmp_path_factory.mktemp("ways")
    net = FAMILIES[family].small_network(torch.float32)
    path = first = save_network(net, folder / "first", dtype=DTYPES[dtype])
    for number, step in enumerate(steps):
        layout, name = ("official", step) if step.startswith("w.") else (step, "out")
        conversion = convert_weights(path, folder / str(number) / name, layout, check=True)
        assert conversion.compared.forward.difference == 0
        path = conversion.path
    last = convert_weights(path, folder / "last", "official").path
    name = "diffusion_pytorch_model.safetensors"
    assert (first / name).read_bytes() == (last / name).read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["official", "diffusers"])
def test_folders_keep_their_config(family, layout, tmp_path):
    first = save_network(FAMILIES[family].small_network(torch.float32), tmp_path / "first", layout)
    middle = convert_weights(first, tmp_path / "middle", "diffusers" if layout == "official" else "official").path
    last = convert_weights(middle, tmp_path / "last", layout).path
    assert files_of(first) == files_of(last)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cast_is_that_of_torch_and_the_forward_pass_says_what_it_costs(source, dtype, tmp_path):
    conversion = convert_weights(source, tmp_path / "out", "official", dtype=dtype, check=True)
    net = small_wan.small_network(torch.float32)
    stored = open_network(conversion.path).tensors
    assert all(torch.equal(stored[name].load(), tensor.to(DTYPES[dtype])) for name, tensor in state(net).items())
    limits = {"fp32": (0, 0), "fp16": (1e-6, 1e-2), "bf16": (1e-5, 1e-1)}
    low, high = limits[dtype]
    assert low <= conversion.compared.forward.difference <= high


def test_shards_and_reports(source, tmp_path):
    seen = []
    report = lambda phase, done, total, size: seen.append((phase, done, total, size))  # noqa: E731
    options = {"check": True, "max_shard_bytes": 20_000, "report": report}
    conversion = convert_weights(source, tmp_path / "out", "diffusers", **options)
    assert len(conversion.files) > 2
    assert all(file.stat().st_size < 25_000 for file in conversion.files)
    total = sum(tensor.nbytes for tensor in state(small_wan.small_network(torch.float32)).values())
    assert seen[68] == ("writing", 69, 69, total)
    assert seen[-1] == ("comparing", 69, 69, total)


def refused(source, out, code, *words, layout="diffusers", **options):
    """Converting fails with `code` and `words`, and nothing on the disk has changed."""
    before, root = files_of(out.parent), out.parent
    with pytest.raises(SidecarError) as caught:
        convert_weights(source, out, layout, **options)
    error = caught.value
    assert error.code == code, error.message
    assert error.hint and "\n" not in error.message
    for word in words:
        assert word in f"{error.message}\n{error.hint}"
    assert files_of(root) == before
    return error


def test_what_is_there_is_replaced_only_with_consent(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    convert_weights(source, out, "diffusers", max_shard_bytes=20_000)  # an empty folder is no output
    (out / "README.md").write_text("mine")
    refused(source, out, "E_CONSENT", "--yes")
    convert_weights(source, out, "diffusers", overwrite=True)
    assert sorted(os.listdir(out)) == ["README.md", "config.json", "diffusion_pytorch_model.safetensors"]
    file = tmp_path / "w.safetensors"
    file.write_text("mine")
    refused(source, file, "E_CONSENT", "--yes", layout="comfyui")


def test_a_folder_of_models_gets_one_file_more_without_consent(source, tmp_path):
    """As ComfyUI's models/diffusion_models; only the same file again would replace something."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "other.safetensors").write_text("mine")
    file = convert_weights(source, tmp_path / "models", "comfyui").path
    assert sorted(os.listdir(tmp_path / "models")) == sorted(["other.safetensors", file.name])
    refused(source, tmp_path / "models", "E_CONSENT", file.name, layout="comfyui")
    refused(file, tmp_path / "models", "E_USAGE", "source", layout="comfyui", overwrite=True)


def test_the_output_may_not_be_the_source(source, tmp_path):
    (tmp_path / "link").symlink_to(source)
    for out in (source, tmp_path / "link", source / "diffusion_pytorch_model.safetensors"):
        refused(source, out, "E_USAGE", "source", layout="official", overwrite=True)


def test_a_pipeline_folder_is_no_output(source, tmp_path):
    """Its transformer/ is what would be read back: --verify would compare that, and find it equal to itself."""
    pipeline = tmp_path / "pipeline"
    convert_weights(source, pipeline / "transformer", "diffusers")
    refused(pipeline / "transformer", pipeline, "E_USAGE", "pipeline", layout="official", overwrite=True)


def test_bad_requests(source, tmp_path):
    refused(source, tmp_path / "out", "E_USAGE", "bf16", dtype="int4")
    refused(source, tmp_path / "out", "E_WEIGHTS_LAYOUT", "official", layout="gguf")
    refused(source, tmp_path / "out.pt", "E_WEIGHTS_LAYOUT", layout="comfyui")
    refused(source, tmp_path / "out", "E_NETWORK_UNKNOWN", model="wan3")
    refused(source, tmp_path / "out", "E_WEIGHTS_MISMATCH", "weights of Wan2.1", model="cosmos-predict2-tiny")
    refused(source, tmp_path / "out", "E_WEIGHTS_MISMATCH", "another size", model="wan2.1-t2v-14b")
    (source / "diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    refused(source, tmp_path / "out", "E_WEIGHTS_UNREADABLE")


def test_values_beyond_fp16_are_refused(tmp_path):
    net = small_wan.small_network(torch.float32)
    net.head.head.bias.data[3] = 1e6
    source = save_network(net, tmp_path / "source")
    refused(source, tmp_path / "out", "E_WEIGHTS_NON_FINITE", "head.head.bias", "bf16", dtype="fp16")
    convert_weights(source, tmp_path / "out", "diffusers", dtype="bf16")


def test_a_full_disk_is_seen_before_anything_is_written(source, monkeypatch, tmp_path):
    place = SimpleNamespace(f_bavail=1, f_frsize=4096, f_blocks=1000)
    monkeypatch.setattr(files.os, "statvfs", lambda _path: place)
    refused(source, tmp_path / "deep" / "out", "E_DISK_FULL", "GB are free")
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("when", [("writing", 30), ("comparing", 30), ("comparing", 69)])
@pytest.mark.parametrize("out", ["out", "w.safetensors", "w.pt"])
def test_an_interruption_leaves_nothing(source, out, when, tmp_path):
    def interrupt(phase, done, total, size):
        if (phase, done) == when:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_weights(source, tmp_path / out, "official", check=True, report=interrupt)
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize("check", [False, True])
def test_it_can_be_stopped_until_the_result_gets_its_name(source, check, tmp_path):
    """The forward pass and the disk take their time after the last tensor."""
    seen = []

    def interrupt(phase, done, total, size):
        seen.append((phase, done))
        if seen[-2:] == [("comparing" if check else "writing", 69)] * 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_weights(source, tmp_path / "out", "diffusers", check=check, report=interrupt)
    assert os.listdir(tmp_path) == ["source"]


KILLED = """
import os, sys
from rcm_sidecar.checkpoints.convert import convert_weights
def die(phase, done, total, size):
    if done == 30:
        os.kill(os.getpid(), 9)
convert_weights(sys.argv[1], sys.argv[2], "diffusers", report=die)
"""


def test_what_a_killed_conversion_left_is_ignored_and_cleaned(source, tmp_path):
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", KILLED, source, out], env=environment).returncode == -9
    (leftover,) = [entry for entry in tmp_path.iterdir() if entry.name.startswith(".out.")]
    mine = tmp_path / f".out.{files.socket.gethostname()}.{os.getpid()}.tmp.other"
    mine.write_text("of a process that lives")
    assert not out.exists()
    convert_weights(source, out, "diffusers")
    assert not leftover.exists()
    assert mine.exists()


def test_a_mixture_of_two_conversions_never_passes_for_complete(source, monkeypatch, tmp_path):
    """Killed while the shards of an earlier one are replaced: same names, same count, other values."""
    out, other = tmp_path / "out", save_network(small_wan.small_network(torch.float32, seed=5), tmp_path / "other")
    convert_weights(source, out, "diffusers", max_shard_bytes=40_000)
    whole, moved = os.replace, []

    def stop(a, b):
        if str(b).startswith(str(out)) and ".tmp" not in str(b):
            moved.append(b)
            if len(moved) == 2:
                raise KeyboardInterrupt
        return whole(a, b)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        convert_weights(other, out, "diffusers", max_shard_bytes=40_000, overwrite=True)
    with pytest.raises(WeightsError):
        convert_weights(out, tmp_path / "again", "official")


@pytest.mark.parametrize("out", ["out", "w.safetensors", "w.pt"])
def test_a_result_that_differs_replaces_nothing(source, out, monkeypatch, tmp_path):
    """The disk gives back another bit: what was there before stays, byte for byte, and nothing is added."""
    other = save_network(small_wan.small_network(torch.float32, seed=5), tmp_path / "other")

    def corrupt(wanted, path, compared):
        (file,) = weights_files(path)
        content = bytearray(file.read_bytes())
        for place in range(len(content) // 3, len(content), len(content) // 3):
            content[place] ^= 1
        file.write_bytes(content)
        compare.compare_tensors(wanted, path, compared)

    monkeypatch.setattr(convert, "compare_tensors", corrupt)
    refused(source, tmp_path / out, "E_WEIGHTS_COMPARE", "is not what was written", layout="official", check=True)
    convert_weights(other, tmp_path / out, "official")
    options = {"layout": "official", "check": True, "overwrite": True}
    refused(source, tmp_path / out, "E_WEIGHTS_COMPARE", "is not what was written", **options)
    monkeypatch.undo()
    convert_weights(source, tmp_path / out, check=True, overwrite=True, layout="official")


def test_the_forward_pass_sees_a_config_that_is_not_the_networks(source, monkeypatch, tmp_path):
    from rcm_sidecar.checkpoints import layouts, save

    wrong = lambda net: {**layouts.diffusers_config(net), "num_attention_heads": 1}  # noqa: E731
    monkeypatch.setattr(save, "diffusers_config", wrong)
    refused(source, tmp_path / "out", "E_WEIGHTS_COMPARE", "another velocity", check=True)


def test_no_forward_pass_without_the_memory(source, monkeypatch, tmp_path):
    monkeypatch.setattr(compare, "_available_bytes", lambda: 1000)
    forward = convert_weights(source, tmp_path / "out", "diffusers", check=True).compared.forward
    assert forward.difference is None
    assert "memory" in forward.reason
    assert "too many" in compare._why_not(14_000_000_000)


def test_the_public_student_file_in_every_layout(tmp_path):
    net = small_wan.small_network(torch.bfloat16)
    tensors = {f"net.{name}": tensor for name, tensor in state(net).items()}
    tensors["net.patch_embedding.weight"] = tensors["net.patch_embedding.weight"].flatten(1).clone()
    torch.save(tensors, tmp_path / "student.pth")
    folder = convert_weights(tmp_path / "student.pth", tmp_path / "out", "diffusers", check=True).path
    stored = load_file(folder / "diffusion_pytorch_model.safetensors")
    assert torch.equal(stored["patch_embedding.weight"], net.patch_embedding.weight)
    again = convert_weights(folder, tmp_path / "again.pth", "official").path
    assert {k: t.load().tolist() for k, t in open_weights(again).items()} == {k: t.tolist() for k, t in tensors.items()}


@pytest.mark.parametrize("max_shard_bytes", [100_000, 10**9])
@pytest.mark.parametrize("layout", ["official", "diffusers"])
def test_digits_weights_can_be_sampled_and_distilled_after_a_conversion(layout, max_shard_bytes, tmp_path):
    teacher = locate("builtin:digits-teacher")
    out = convert_weights(teacher, tmp_path / "out", layout, max_shard_bytes=max_shard_bytes, check=True).path
    assert (len(list(out.glob("diffusion_pytorch_model*.safetensors"))) > 1) == (max_shard_bytes < 10**9)
    first, second = load_source(teacher), load_source(out)
    assert_same(first.network, second.network)
    assert_same(first.conditioner, second.conditioner)
    assert msgspec.structs.replace(second.settings, weights=first.settings.weights) == first.settings
    again = convert_weights(out, tmp_path / "again", "official").path
    assert_same(first.network, load_source(again).network)
    for path in (out, again):
        before, after = (json.loads((folder / "sampler.json").read_text()) for folder in (teacher, path))
        assert {**after, "weights": before["weights"]} == before  # what is for people, too
        load_network(second.network, path)  # as distill takes it: the folder, not the file that sampler.json names
        assert_same(first.network, second.network)
        load_table(path, second.network)


def test_companions_stay_with_their_weights(source, tmp_path):
    """Not beside other weights that take their place, and never among the files of a folder of models."""
    teacher, out = locate("builtin:digits-teacher"), tmp_path / "out"
    convert_weights(teacher, out, "diffusers")
    assert {"sampler.json", "conditioner.safetensors"} < set(os.listdir(out))
    convert_weights(source, out, "diffusers", overwrite=True)
    assert sorted(os.listdir(out)) == ["config.json", "diffusion_pytorch_model.safetensors"]
    convert_weights(teacher, tmp_path / "models", "comfyui")
    assert os.listdir(tmp_path / "models") == ["wan2.1-tiny.safetensors"]
    (source / "sampler.json").write_text("[]")
    refused(source, tmp_path / "new", "E_WEIGHTS_SAMPLER", "sampler.json")
