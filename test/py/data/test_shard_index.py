"""Which samples a folder of shards has, and what is wrong with others."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from data.shards import latent_of, sample_of, saved, write_shard, write_shards

from rcm_sidecar.data import shard_index
from rcm_sidecar.data.shard_index import open_index
from rcm_sidecar.errors import DataError


def test_samples_are_where_the_index_says(tmp_path: Path) -> None:
    index = open_index(write_shards(tmp_path, 10, 4), None)
    assert [(shard, sample.key) for shard, sample in index.samples] == [
        (f"shard_{number // 4:06d}.tar", f"{number:09d}") for number in range(10)
    ]
    for number, (shard, sample) in enumerate(index.samples):
        content = (tmp_path / shard).read_bytes()
        place = sample.latent
        assert content[place.offset : place.offset + place.size] == saved(latent_of(number))
        assert sample.prompt is not None
    assert index.incomplete == {}


def test_names_with_folders_and_members_of_others(tmp_path: Path) -> None:
    """Merged shards have key/file names; members that belong to no sample are left alone."""
    inside = {**sample_of(3), "__key__": "000000003/000000003", "json": b"{}"}
    alone = {"__key__": "readme", "txt": b"no sample"}
    write_shard(tmp_path / "a.tar", [inside, alone])
    index = open_index(tmp_path, None)
    assert [sample.key for _, sample in index.samples] == ["000000003/000000003"]
    assert index.incomplete == {}


def test_incomplete_samples_are_named(tmp_path: Path) -> None:
    write_shards(tmp_path, 6, 3, changes={1: {"latent.pt": None}, 4: {"embed.pt": None}, 5: {"prompt.txt": None}})
    index = open_index(tmp_path, None)
    assert len(index.samples) == 4
    assert index.incomplete == {
        "shard_000000.tar/000000001": "it has no latent.pt",
        "shard_000001.tar/000000004": "it has no embed.pt",
    }


@pytest.mark.parametrize("share", [0.3, 0.55, 0.97])
def test_a_shard_cut_short_is_refused(share: float, tmp_path: Path) -> None:
    write_shards(tmp_path, 6, 3)
    shard = tmp_path / "shard_000001.tar"
    whole = shard.read_bytes()
    last = tarfile.open(shard).getmembers()[-1]
    used = last.offset_data + last.size
    shard.write_bytes(whole[: int(used * share)])
    with pytest.raises(DataError) as caught:
        open_index(tmp_path, None)
    assert caught.value.code == "E_DATA_SHARD"
    assert "shard_000001.tar" in caught.value.message and "Copy the shard again" in str(caught.value.hint)


@pytest.mark.parametrize(("content", "code"), [(b"", "E_DATA_SHARD"), (b"no tar at all" * 100, "E_DATA_SHARD")])
def test_other_files_are_refused(content: bytes, code: str, tmp_path: Path) -> None:
    write_shards(tmp_path, 3, 3)
    (tmp_path / "z.tar").write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_index(tmp_path, None)
    assert caught.value.code == code and "z.tar" in caught.value.message


def test_a_member_twice_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [sample_of(1), sample_of(1)])
    with pytest.raises(DataError) as caught:
        open_index(tmp_path, None)
    assert caught.value.code == "E_DATA_SHARD" and "twice" in caught.value.message


def test_nothing_to_read_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(DataError) as none:
        open_index(tmp_path / "nowhere", None)
    assert none.value.code == "E_DATA_NOT_FOUND"
    write_shard(tmp_path / "a.tar", [{"__key__": "x", "jpg": b"1"}])
    with pytest.raises(DataError) as empty:
        open_index(tmp_path, None)
    assert empty.value.code == "E_DATA_NOT_FOUND" and "no whole sample" in empty.value.message


def test_the_cache_reads_changed_shards_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = write_shards(tmp_path / "data", 8, 4), tmp_path / "cache"
    read: list[str] = []
    original = shard_index._samples

    def counted(path: Path, size: int):
        read.append(path.name)
        return original(path, size)

    monkeypatch.setattr(shard_index, "_samples", counted)
    first = open_index(folder, cache, workers=2)
    assert sorted(read) == ["shard_000000.tar", "shard_000001.tar"]
    assert open_index(folder, cache).identity == first.identity and len(read) == 2
    write_shard(folder / "shard_000001.tar", [sample_of(20)])
    write_shard(folder / "shard_000002.tar", [sample_of(21)])
    changed = open_index(folder, cache)
    assert sorted(read[2:]) == ["shard_000001.tar", "shard_000002.tar"]
    assert [sample.key for _, sample in changed.samples][4:] == ["000000020", "000000021"]
    assert changed.identity != first.identity
    (cache / "shard-indexes").joinpath(next((cache / "shard-indexes").iterdir()).name).write_bytes(b"broken")
    assert open_index(folder, cache).identity == changed.identity


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "data", 3, 3)
    (tmp_path / "cache").write_text("a file in the way")
    assert len(open_index(folder, tmp_path / "cache").samples) == 3


def test_the_identity_does_not_depend_on_time_stamps(tmp_path: Path) -> None:
    one, two = (open_index(write_shards(tmp_path / name, 4, 2), None) for name in ("one", "two"))
    assert one.identity == two.identity
