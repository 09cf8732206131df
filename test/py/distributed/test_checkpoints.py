"""Checkpoints of several processes: each writes its shards, any number of processes reads them, bit for bit."""

from __future__ import annotations

import pytest
import torch
from distributed import checkpoint_ranks
from distributed.spawn import run_on_ranks
from safetensors.torch import load_file


def on_ranks(ranks, folder, *scenarios):
    folder.mkdir()
    run_on_ranks(ranks, folder, checkpoint_ranks, *scenarios)


def test_two_processes_and_one(tmp_path):
    """One -> two -> one, with the same bytes of every tensor, and what goes wrong on one is known to all."""
    one, two, three = (str(tmp_path / name) for name in ("one", "two", "three"))
    checkpoint_ranks.save(one)
    on_ranks(
        2,
        tmp_path / "ranks",
        ("save", two),
        ("read_back", two),
        ("read_and_save", one, three),
        ("damage_is_seen_by_all", str(tmp_path / "damage")),
        ("a_full_disk_of_one_stops_all", str(tmp_path / "full")),
        ("training_goes_on", str(tmp_path / "async")),
    )
    for root in (one, two, three):
        checkpoint_ranks.read_back(root)


def test_plain_safetensors_reads_it(tmp_path):
    """One process writes files that any tool reads: the tensors are whole and have the network's names."""
    checkpoint_ranks.save(tmp_path)
    files = [load_file(file) for file in (tmp_path / "step-00000003" / "student").iterdir()]
    wanted = checkpoint_ranks.trained_state(None, checkpoint_ranks.STEP).tensors["student"]
    assert len(files) == 1 and files[0].keys() == wanted.keys()
    assert all(torch.equal(files[0][name], tensor) for name, tensor in wanted.items())


def test_files_are_cut_at_a_size(tmp_path, monkeypatch):
    """The writer holds a file in memory, so a large network becomes several."""
    monkeypatch.setattr("rcm_sidecar.checkpoints.sharded_tensors._FILE_BYTES", 2000)
    checkpoint_ranks.save(tmp_path)
    assert len(list((tmp_path / "step-00000003" / "student").iterdir())) > 3
    checkpoint_ranks.read_back(tmp_path)


@pytest.mark.long
def test_two_one_two_four(tmp_path):
    """Resharding along 2 -> 1 -> 2 -> 4, and 4 as two copies of two shards, in both directions."""
    names = [str(tmp_path / name) for name in ("a", "b", "c", "d", "e")]
    on_ranks(2, tmp_path / "ranks-1", ("save", names[0]))
    checkpoint_ranks.read_and_save(names[0], names[1])
    on_ranks(2, tmp_path / "ranks-2", ("read_and_save", names[1], names[2]))
    on_ranks(
        4,
        tmp_path / "ranks-4",
        ("read_and_save", names[2], names[3]),
        ("read_and_save", names[3], names[4], 2),
        ("read_back", names[4]),
        ("save", str(tmp_path / "hsdp"), 2),
        ("damage_is_seen_by_all", str(tmp_path / "damage")),
        ("a_full_disk_of_one_stops_all", str(tmp_path / "full")),
        ("training_goes_on", str(tmp_path / "async")),
    )
    on_ranks(2, tmp_path / "ranks-3", ("read_back", names[4]), ("read_back", str(tmp_path / "hsdp")))
    on_ranks(1, tmp_path / "ranks-5", ("read_back", names[4]), ("training_goes_on", str(tmp_path / "one")))
    checkpoint_ranks.read_back(names[4])


@pytest.mark.gpu
@pytest.mark.parametrize("ranks", [1, 2])
def test_gpu_memory(ranks, tmp_path):
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} GPUs")
    on_ranks(ranks, tmp_path / "ranks", ("on_a_gpu", str(tmp_path / "gpu")))
