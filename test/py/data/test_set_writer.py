"""Sets that are written in pieces: killed at any write and gone on with, they are the same bytes as in one go."""

import os

import pytest
import torch
from data.shards import latent_of, text_of

from rcm_sidecar.data import set_writer
from rcm_sidecar.data.set_writer import PARTS, open_set
from rcm_sidecar.data.shard_index import open_index
from rcm_sidecar.errors import ConfigError

CONTENT = {"seed": 3, "teacher": "abc"}


class Killed(BaseException):
    """Stands for kill -9 between two system calls."""


def write(folder, samples=7, per_shard=3, share=0, shares=1, content=CONTENT, drawn=None):
    writer = open_set(folder, samples, content, share, shares, per_shard)
    for number in writer.missing():
        if drawn is not None:
            drawn.append(number)
        writer.add(number, latent_of(number).float(), text_of(number), f"prompt {number}")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def keys(folder):
    return [sample.key for _, sample in open_index(folder, None).samples]


def test_a_set_is_read_by_training(tmp_path):
    write(tmp_path)
    assert keys(tmp_path) == [f"{number:09d}" for number in range(7)]
    shard, sample = open_index(tmp_path, None).samples[4]
    stored = (tmp_path / shard).read_bytes()[sample.latent.offset :][: sample.latent.size]
    path = tmp_path / "one.pt"
    path.write_bytes(stored)
    assert torch.equal(torch.load(path, weights_only=True), latent_of(4))


def test_killed_at_every_rename_it_ends_as_uninterrupted(tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    write(whole)
    drawn, attempts, rename = [], 0, os.replace
    # Of each attempt a later rename is the one that never returns; half of the kills come just before it.
    for allowed in range(1, 40):
        attempts += 1
        left = [allowed % 4 + 1]

        def replace(source, target, left=left, before=bool(allowed % 2)):
            left[0] -= 1
            if left[0] == 0 and before:
                raise Killed
            rename(source, target)
            if left[0] == 0:
                raise Killed

        monkeypatch.setattr(os, "replace", replace)
        try:
            write(cut, drawn=drawn)
        except Killed:
            continue
        break
    monkeypatch.undo()
    assert attempts > 4
    assert contents(cut) == contents(whole)
    assert not list((cut / PARTS).glob("*.part"))
    assert sorted(set(drawn)) == list(range(7))


@pytest.mark.parametrize("before", [1, 2, 3])
def test_shares_make_the_same_set_also_when_their_number_changes(tmp_path, before):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    write(whole, samples=11, per_shard=2)
    write(parts, 11, 2, 0, before)
    drawn = []
    for share in range(2):
        write(parts, 11, 2, share, 2, drawn=drawn)
    assert contents(parts) == contents(whole)
    assert len(drawn) == len(set(drawn))


def test_a_shard_that_was_not_written_to_its_end_leaves_only_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(set_writer, "sync", lambda path: None)
    monkeypatch.setattr(set_writer, "_write_shard", lambda path, members: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        write(tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.tar"))
    drawn = []
    write(tmp_path, drawn=drawn)
    assert drawn == [3, 4, 5, 6]
    assert len(keys(tmp_path)) == 7


def test_another_set_is_refused_and_nothing_is_overwritten(tmp_path):
    write(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="begun with seed 3, not 4"):
        write(tmp_path, content={**CONTENT, "seed": 4})
    with pytest.raises(ConfigError, match="begun with samples 7, not 8"):
        write(tmp_path, samples=8)
    assert contents(tmp_path) == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "shard_000000.tar").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"shard_000000\.tar, which is of no set"):
        write(foreign)
    assert contents(foreign) == {"shard_000000.tar": b"mine"}


@pytest.mark.parametrize(("samples", "shares", "per_shard"), [(8, 1, 8), (1000, 1, 64), (8, 8, 1), (1000, 8, 15)])
def test_processes_get_enough_shards_to_end_together(tmp_path, samples, shares, per_shard):
    open_set(tmp_path, samples, CONTENT, 0, shares)
    assert f'"perShard": {per_shard}' in (tmp_path / "set.json").read_text()
