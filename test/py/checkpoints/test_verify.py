"""Verifying: values, hashes, other kinds of files, and how much memory full size takes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time

import pytest
import torch
from checkpoints.full_size import write_sparse
from networks import small_cosmos, small_wan
from safetensors.torch import save_file

from rcm_sidecar.checkpoints import save_network
from rcm_sidecar.checkpoints.verify import non_finite, verify_weights
from rcm_sidecar.errors import WeightsError
from rcm_sidecar.networks import build

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2]


def refused(path, code, *words, model=None):
    with pytest.raises(WeightsError) as caught:
        verify_weights(path, model)
    error = caught.value
    assert error.code == code, error.message
    assert error.hint and "\n" not in error.message
    for word in words:
        assert word in f"{error.message}\n{error.hint}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_nan_and_infinity_is_counted(dtype):
    for broken in ((), (0,), (999,), (3, 500)):
        for value in (float("nan"), float("inf"), -float("inf")):
            numbers = torch.linspace(-2, 2, 1000)
            numbers[list(broken)] = value
            assert non_finite(numbers.to(dtype).reshape(10, 100)) == len(broken)
    assert non_finite(torch.empty(0, dtype=dtype)) == 0


def test_values_that_are_not_finite_name_their_tensors(tmp_path):
    net = small_wan.small_network(torch.float32)
    path = save_network(net, tmp_path / "w")
    inspection, hashes = verify_weights(path)
    assert (inspection.tensors, hashes) == (69, {})
    net.head.head.bias.data[:2] = float("nan")
    net.blocks[1].modulation.data[0, 0, 0] = float("inf")
    broken = save_network(net, tmp_path / "w")
    refused(broken, "E_WEIGHTS_NON_FINITE", "2 tensors", "blocks.1.modulation (1)", "head.head.bias (2)")


def test_hashes_are_compared_where_one_is_known(tmp_path):
    """As huggingface_hub leaves them: a blob of the cache is named by its hash; beside other files there is a note."""
    folder = tmp_path / "snapshot"
    blob = save_network(small_wan.small_network(torch.float32), tmp_path / "w.safetensors")
    digest = hashlib.sha256(blob.read_bytes()).hexdigest()
    folder.mkdir()
    blob.rename(tmp_path / digest)
    link = folder / "model.safetensors"
    link.symlink_to(tmp_path / digest)
    assert verify_weights(folder)[1] == {link: digest}
    (tmp_path / digest).rename(tmp_path / ("0" * 64))
    link.unlink()
    link.symlink_to(tmp_path / ("0" * 64))
    refused(folder, "E_WEIGHTS_HASH", digest)
    note = folder / ".cache" / "huggingface" / "download" / "model.safetensors.metadata"
    content = link.read_bytes()
    link.unlink()
    link.write_bytes(content)
    note.parent.mkdir(parents=True)
    note.write_text(f"{'1' * 40}\n{digest}\n1700000000.0\n")
    assert verify_weights(folder)[1] == {link: digest}
    note.write_text(f"{'1' * 40}\n{'2' * 40}\n1700000000.0\n")  # a git hash: not of a large file
    assert verify_weights(folder)[1] == {}


def test_other_networks_are_named(tmp_path):
    wan = save_network(small_wan.small_network(torch.float32), tmp_path / "wan")
    cosmos = save_network(small_cosmos.small_network(torch.float32), tmp_path / "cosmos")
    refused(wan, "E_WEIGHTS_MISMATCH", "weights of Wan2.1", model="cosmos-predict2-t2i-2b")
    refused(cosmos, "E_WEIGHTS_MISMATCH", "weights of Cosmos-Predict2", model="wan2.1-t2v-1.3b")
    for key, cause in (("decoder.conv1.weight", "the VAE"), ("encoder.block.0.layer.0.shared.weight", "text encoder")):
        save_file({key: torch.ones(2)}, tmp_path / "w.safetensors")
        refused(tmp_path / "w.safetensors", "E_WEIGHTS_MISMATCH", cause)


VERIFY = """
import sys
from rcm_sidecar.checkpoints.verify import verify_weights
print(verify_weights(sys.argv[1])[0].parameters)
"""
CONVERT = """
import sys
from rcm_sidecar.checkpoints.convert import convert_weights
print(convert_weights(*sys.argv[1:3], "diffusers", dtype=sys.argv[3], check=sys.argv[4] == "check").source.parameters)
"""


def peak_of(script, *words):
    """Largest RssAnon of a process in bytes, sampled each 50 ms, and what it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *map(str, words)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        try:
            with open(f"/proc/{process.pid}/status") as status:
                kilobytes = next((int(line.split()[1]) for line in status if line.startswith("RssAnon:")), 0)
        except (OSError, ValueError):
            kilobytes = 0
        peak = max(peak, kilobytes * 1024)
        time.sleep(0.05)
    assert process.returncode == 0
    return peak, int(process.stdout.read())


def check_conversion(net, file, out, dtype, check):
    """RssAnon stays below 1.2 times the largest tensor, in the dtype it is written in, and 2 GB."""
    written = {"bf16": 2, "fp32": 4}[dtype]
    peak, parameters = peak_of(CONVERT, file, out, dtype, check)
    assert parameters == sum(p.numel() for p in net.parameters())
    assert peak < 1.2 * max(p.numel() for p in net.parameters()) * written + 2e9, f"convert: {peak / 1e9:.2f} GB"
    shards = list(out.glob("*.safetensors"))
    assert sum(shard.stat().st_size for shard in shards) > parameters * written
    assert sum(shard.stat().st_blocks for shard in shards) * 512 < 2**30  # holes stay holes
    return peak


def test_memory_at_the_width_of_14b(tmp_path):
    """One of the forty blocks: 2.3 GB in float32 altogether, so that holding all of it fails."""
    net = build("wan2.1-t2v-14b", device="meta", num_layers=1)
    file = write_sparse(net, tmp_path / "w.safetensors", torch.bfloat16)
    (tmp_path / "config.json").write_text('{"num_layers": 1}')
    assert check_conversion(net, file, tmp_path / "out", "fp32", "") < 1.5e9


@pytest.mark.long
@pytest.mark.parametrize("name", ["wan2.1-t2v-14b", "cosmos-predict2-t2i-14b"])
def test_memory_at_full_size(name, tmp_path):
    """28 GB that cost no disk: the source and the result are holes."""
    net = build(name, device="meta")
    file = write_sparse(net, tmp_path / "w.safetensors", torch.bfloat16)
    verified, parameters = peak_of(VERIFY, file)
    assert parameters == sum(p.numel() for p in net.parameters())
    assert verified < 1.2 * max(p.numel() for p in net.parameters()) * 2 + 2e9, f"verify: {verified / 1e9:.2f} GB"
    converted = check_conversion(net, file, tmp_path / "out", "bf16", "check")
    print(f"{name}: RssAnon {verified / 1e9:.2f} GB verifying, {converted / 1e9:.2f} GB converting and comparing")
