"""Latents and texts from shards: a pure function of position, whatever is read ahead and whatever is damaged."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from data.shards import LATENT, TEXT, latent_of, sample_of, saved, text_of, write_shard, write_shards

from rcm_sidecar.data import latent_shards
from rcm_sidecar.data.latent_shards import LatentShards, Reading, SampleShape
from rcm_sidecar.data.shard_index import open_index
from rcm_sidecar.errors import DataError

N = 10


def opened(
    folder: Path,
    workers: int = 2,
    ahead: int = 8,
    stride: int = 4,
    max_bad: int = 100,
    latent: tuple[int, int, int, int] = LATENT,
    crop: bool = True,
    text: tuple[int, int] = TEXT,
    pinned: bool = False,
) -> LatentShards:
    shape = SampleShape(latent, crop, *text)
    return LatentShards(open_index(folder, None), shape, Reading(workers, ahead, stride, max_bad, pinned))


class Code:
    """Runs code when it is unpickled by the ordinary pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/rcm-bridge-code-was-run",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), N)


def test_a_batch_holds_what_was_stored(folder: Path) -> None:
    data = opened(folder)
    batch = data.batch(0, N, 5)
    numbers = [int(name.split("/")[1]) for name in batch.ids]
    assert sorted(numbers) == list(range(N)) and numbers != list(range(N))
    for index, number in enumerate(numbers):
        assert torch.equal(batch.latents[index], latent_of(number).float())
        assert torch.equal(batch.condition[index], text_of(number).float())
    assert set(batch.tensors) == {"latents", "text"} and batch.skipped == ()
    data.close()


@pytest.mark.parametrize("workers", [0, 3])
def test_batches_are_a_function_of_position(workers: int, folder: Path) -> None:
    """In any order, with any read-ahead, in any parts: as two processes ask for them, and after a resume."""
    plain, data = opened(folder, workers=0), opened(folder, workers=workers, stride=4)
    for start in (0, 4, 8, 12, 40, 0, 7, 96):
        wanted = plain.batch(start, 4, 1)
        halves = [data.batch(start + offset, 2, 1) for offset in (0, 2)]
        assert wanted.ids == halves[0].ids + halves[1].ids
        assert torch.equal(wanted.latents, torch.cat([half.latents for half in halves]))
        assert torch.equal(wanted.condition, torch.cat([half.condition for half in halves]))
    assert plain.batch(0, 4, 2).ids != plain.batch(0, 4, 1).ids
    assert plain.batch(N, N, 1).ids != plain.batch(0, N, 1).ids
    data.close()


def test_the_next_batches_are_read_meanwhile_and_no_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = opened(folder, workers=2, ahead=5, stride=4)
    read: list[int] = []
    original = LatentShards._load

    def counted(self: LatentShards, number: int):
        read.append(number)
        return original(self, number)

    monkeypatch.setattr(LatentShards, "_load", counted)
    data.batch(0, 2, 0)
    for future in list(data._pending.values()):
        future.result()
    order = data._order.epoch(0, 0).tolist()
    assert sorted(data._pending) == [(position, 0) for position in (4, 5, 8, 9)]
    assert sorted(read) == sorted(order[position] for position in (0, 1, 4, 5, 8, 9))
    data.batch(4, 2, 0)
    assert len(read) - 6 <= 2  # positions 4 and 5 were there
    data.close()


def test_closing_ends_the_threads(folder: Path) -> None:
    data = opened(folder, workers=3)
    data.batch(0, 2, 0)
    data.close()
    data.close()
    for thread in threading.enumerate():
        if thread.name.startswith("data"):
            thread.join(5)
            assert not thread.is_alive()


def test_short_texts_are_filled_up_and_long_latents_cut(tmp_path: Path) -> None:
    longer = (16, 3, 4, 6)
    trimmed = saved(text_of(0)[:1])
    write_shards(
        tmp_path, 1, latent=longer, changes={0: {"embed.pt": trimmed, "latent.pt": saved(latent_of(0, longer).float())}}
    )
    batch = opened(tmp_path).batch(0, 1, 0)
    assert torch.equal(batch.latents[0], latent_of(0, longer).float()[:, :2])
    assert torch.equal(batch.condition[0], text_of(0).float())


BAD = {
    "a pickle with code, which is never run": {"latent.pt": saved(Code())},
    "its text embedding is no plain tensor but a pickle with code": {"embed.pt": saved({"a": Code()})},
    "its latent cannot be read": {"latent.pt": b"\0" * 700},
    "its latent is no tensor of numbers": {"latent.pt": saved({"latent": latent_of(0)})},
    "its text embedding is no tensor of numbers": {"embed.pt": saved(torch.ones(TEXT, dtype=torch.int64))},
    "its latent holds NaN or infinity": {"latent.pt": saved(latent_of(0) / 0)},
    "text embeddings are [8, 12], the model takes up to 8 rows of 16": {"embed.pt": saved(torch.ones(8, 12))},
    "latents are [16, 2, 4, 4], the model takes [16, 2, 4, 6]": {"latent.pt": saved(torch.ones(16, 2, 4, 4))},
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_sample_is_named_and_replaced_by_the_next(reason: str, tmp_path: Path) -> None:
    bad = 7
    data = opened(write_shards(tmp_path, N, changes={bad: BAD[reason]}))
    order = data._order.epoch(0, 3).tolist()
    place = order.index(bad)
    batch = data.batch(0, N, 3)
    wanted = [order[(place + 1) % N] if number == bad else number for number in order]
    assert [int(name.split("/")[1]) for name in batch.ids] == wanted
    assert [skipped.name for skipped in batch.skipped] == ["shard_000001.tar/000000007"]
    assert reason in batch.skipped[0].reason
    assert not Path("/tmp/rcm-bridge-code-was-run").exists()
    data.close()


def test_too_many_in_a_row_end_the_search(tmp_path: Path) -> None:
    broken = {number: {"latent.pt": b"x"} for number in range(1, N)}
    data = opened(write_shards(tmp_path, N, changes=broken), max_bad=3)
    with pytest.raises(DataError) as caught:
        data.batch(0, N, 0)
    assert caught.value.code == "E_DATA_BAD_SAMPLES" and "data.maxBadSamples" in caught.value.message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"latent": (16, 2, 4, 8)}, ("latents are [16, 2, 4, 6]", "[16, 2, 4, 8]", "model.frames")),
        ({"latent": (16, 3, 4, 6)}, ("latents are [16, 2, 4, 6]", "[16, 3, 4, 6]", "model.frames")),
        ({"latent": (16, 1, 4, 6), "crop": False}, ("2 frames", "takes 1", "data.cropFrames: true")),
        ({"text": (8, 32)}, ("text embeddings are [8, 16]", "rows of 32", "text encoder")),
        ({"text": (4, 16)}, ("text embeddings are [8, 16]", "up to 4 rows", "text encoder")),
    ],
)
def test_data_of_another_model_are_refused_at_once(settings: Any, words: tuple[str, ...], folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        opened(folder, **settings)
    assert caught.value.code == "E_DATA_SHAPE"
    said = f"{caught.value.message} {caught.value.hint}"
    assert all(word in said for word in words), said


def test_nothing_usable_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        opened(write_shards(tmp_path, 3, changes={number: {"latent.pt": saved(Code())} for number in range(3)}))
    assert caught.value.code == "E_DATA_BAD_SAMPLES" and "a pickle with code" in caught.value.message


def test_a_disk_that_stumbles_is_asked_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = opened(folder, workers=0)
    failures = iter([True, True])
    original = latent_shards._read_once

    def stumbling(*arguments: Any) -> bytes:
        if next(failures, False):
            raise OSError(5, "Input/output error")
        return original(*arguments)

    monkeypatch.setattr(latent_shards, "_read_once", stumbling)
    monkeypatch.setattr(latent_shards, "_PAUSE_SECONDS", 0.0)
    assert data.batch(0, 2, 0).skipped == ()
    failures = iter([True] * 9)
    with pytest.raises(DataError) as caught:
        data.batch(0, 2, 0)
    assert caught.value.code == "E_DATA_SHARD" and "Input/output error" in caught.value.message


def test_statistics_are_those_of_the_latents(tmp_path: Path) -> None:
    shifted = {number: {"latent.pt": saved(latent_of(number).float() * 2 + 1)} for number in range(N)}
    found = opened(write_shards(tmp_path, N, changes=shifted)).statistics()
    assert abs(found.mean - 1) < 0.1 and abs(found.std - 2) < 0.1


def test_a_shard_of_another_size_beside_good_ones(folder: Path, tmp_path: Path) -> None:
    write_shards(tmp_path, 4)
    write_shard(tmp_path / "z.tar", [sample_of(50, latent=(16, 2, 8, 8))])
    data = opened(tmp_path, workers=0)
    batch = data.batch(0, 5, 0)
    assert [bad.name for bad in batch.skipped] == ["z.tar/000000050"]


@pytest.mark.gpu
def test_batches_for_a_gpu_are_pinned_and_the_same(folder: Path) -> None:
    plain, pinned = (opened(folder, pinned=pinned).batch(3, 4, 0) for pinned in (False, True))
    assert pinned.latents.is_pinned() and pinned.condition.is_pinned()
    assert torch.equal(pinned.latents, plain.latents) and torch.equal(pinned.condition, plain.condition)
