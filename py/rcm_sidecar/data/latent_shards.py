"""Latents and text embeddings from WebDataset shards, by position (`data.kind: latentShards`)."""

from __future__ import annotations

import io
import os
import pickle
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rcm_sidecar.data.order import ShuffledOrder
from rcm_sidecar.data.shard_index import Member, ShardIndex
from rcm_sidecar.data.training_data import BadSample, Batch, Statistics
from rcm_sidecar.errors import DataError

_LOOKED_AT = 8
"""Samples read before anything else is loaded, spread over all shards."""
_MEASURED = 32
"""Samples that mean and standard deviation are taken from."""
_NAMES_CODE = "GLOBAL"
"""In torch's message on a pickle that names a function or class that is no part of a tensor."""
_ATTEMPTS = 4
_PAUSE_SECONDS = 1.0
"""A read that fails is repeated, after 1, 2 and 4 seconds: a network file system may be gone for a moment."""


@dataclass(frozen=True)
class SampleShape:
    """What a network takes.

    Attributes:
        latent: [C,T,H,W].
        crop_frames: Longer latents give their first T frames.
        text_rows: Texts of fewer rows are filled up with zeros.
        text_width: Of a row.
    """

    latent: tuple[int, int, int, int]
    crop_frames: bool
    text_rows: int
    text_width: int


@dataclass(frozen=True)
class Reading:
    """How samples are read.

    Attributes:
        workers: Threads; 0 reads when a batch is asked for, and nothing ahead.
        ahead: Most samples held ready.
        stride: Positions between the batches of a process: the samples of a step.
        max_bad: Most damaged samples that are skipped.
        pinned: Batches are made in pinned memory, from which a GPU fetches them beside its work.
    """

    workers: int
    ahead: int
    stride: int
    max_bad: int
    pinned: bool = False


class DamagedSample(Exception):
    """A sample that cannot be used; the message completes "sample X is skipped: "."""


class WrongShape(DamagedSample):
    """A sample of another size or text encoder; `hint` says what to change if all are like it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class _Fetched:
    number: int
    latent: Tensor
    text: Tensor
    skipped: tuple[BadSample, ...]


class LatentShards:
    """A folder of shards as training data.

    A sample that is damaged is replaced by the next good one of the epoch's order, so that a batch stays a pure
    function of its position on every process. Files are read by threads of this process: nothing is forked, and reading
    does not hold the interpreter.

    Args:
        index: Where samples lie.
        shape: What the network takes.
        reading: Threads, samples ahead, tolerance.

    Raises:
        DataError: E_DATA_SHAPE, when latents or texts are not what the network takes.
    """

    def __init__(self, index: ShardIndex, shape: SampleShape, reading: Reading) -> None:
        self._index, self._shape, self._reading = index, shape, reading
        self._order = ShuffledOrder(len(index.samples))
        self._pool: ThreadPoolExecutor | None = None
        self._pending: dict[tuple[int, int], Future[_Fetched]] = {}
        self._look()

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self._index.samples)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Shape [C,T,H,W] of one latent as the network takes it."""
        return self._shape.latent

    @property
    def identity(self) -> str:
        """Equal for equal streams of samples."""
        return self._index.identity

    @property
    def incomplete(self) -> tuple[BadSample, ...]:
        """Samples that lack a member; they are in no batch."""
        return tuple(BadSample(name, reason) for name, reason in self._index.incomplete.items())

    def batch(self, start_sample: int, count: int, seed: int) -> Batch:
        """See `TrainingData.batch`. The condition is text [B,L,D] float32; those that follow are read meanwhile.

        Raises:
            DataError: E_DATA_SHARD when a shard cannot be read, E_DATA_BAD_SAMPLES when there are too many bad ones.
        """
        if start_sample < 0 or count < 1:
            raise ValueError(f"no batch of {count} samples from {start_sample}")
        positions = range(start_sample, start_sample + count)
        self._begin([*positions, *self._following(positions)], seed)
        fetched = [self._take(position, seed) for position in positions]
        return Batch(
            latents=self._stacked([one.latent for one in fetched]),
            condition=self._stacked([one.text for one in fetched]),
            ids=tuple(self._name(one.number) for one in fetched),
            skipped=tuple(bad for one in fetched for bad in one.skipped),
        )

    def statistics(self) -> Statistics:
        """Mean and standard deviation of up to 32 latents, spread over all shards."""
        latents = [latent for latent, _ in self._good(self._spread(_MEASURED))]
        count = sum(latent.numel() for latent in latents)
        mean = sum(latent.double().sum().item() for latent in latents) / count
        square = sum((latent.double() - mean).square().sum().item() for latent in latents) / count
        return Statistics(mean, square**0.5)

    def close(self) -> None:
        """End the threads; what they are reading is dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool, self._pending = None, {}

    def _stacked(self, tensors: Sequence[Tensor]) -> Tensor:
        """`torch.stack`, into pinned memory where batches go to a GPU."""
        if not self._reading.pinned:
            return torch.stack(list(tensors))
        out = torch.empty((len(tensors), *tensors[0].shape), dtype=tensors[0].dtype, pin_memory=True)
        return torch.stack(list(tensors), out=out)

    def _following(self, positions: range) -> Iterator[int]:
        """Positions of this process's next batches, at most `ahead`."""
        reading = self._reading
        wanted = min(reading.ahead, max(2 * reading.workers, len(positions))) if reading.workers else 0
        for index in range(wanted):
            step, offset = divmod(index, len(positions))
            yield positions.start + (1 + step) * reading.stride + offset

    def _begin(self, positions: Sequence[int], seed: int) -> None:
        """Have these positions read; what was read for others is dropped."""
        if not self._reading.workers:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._reading.workers, thread_name_prefix="data")
        before, self._pending = self._pending, {}
        for position in positions:
            key = (position, seed)
            known = before.pop(key) if key in before else None
            self._pending[key] = known or self._pool.submit(self._fetch, *self._candidates(*key))
        for future in before.values():
            future.cancel()

    def _take(self, position: int, seed: int) -> _Fetched:
        if not self._reading.workers:
            return self._fetch(*self._candidates(position, seed))
        return self._pending.pop((position, seed)).result()

    def _candidates(self, position: int, seed: int) -> tuple[Tensor, int]:
        """The order of the position's epoch, and its place there. Only the trainer's thread comes here."""
        epoch, offset = divmod(position, self.size)
        return self._order.epoch(epoch, seed), offset

    def _fetch(self, order: Tensor, offset: int) -> _Fetched:
        """The sample at a place of an epoch, or the next good one after it."""
        skipped: list[BadSample] = []
        for distance in range(min(len(order), self._reading.max_bad + 1)):
            number = int(order[(offset + distance) % len(order)])
            try:
                latent, text = self._load(number)
            except DamagedSample as damage:
                skipped.append(BadSample(self._name(number), str(damage)))
            else:
                return _Fetched(number, latent, text, tuple(skipped))
        raise too_many_bad(len(skipped), skipped[-1])

    def _load(self, number: int) -> tuple[Tensor, Tensor]:
        """Latent [C,T,H,W] and text [L,D] of a sample, float32.

        Raises:
            DamagedSample: the sample cannot be used.
            DataError: E_DATA_SHARD, the shard cannot be read.
        """
        shard, sample = self._index.samples[number]
        path = self._index.folder / shard
        latent = fit_latent(_tensor(path, sample.latent, "latent"), self._shape)
        text = fit_text(_tensor(path, sample.text, "text embedding"), self._shape)
        return latent, text

    def _look(self) -> None:
        """Refuse data of another size or encoder before anything is loaded.

        Single samples that do not fit are skipped later; here all that were looked at do not.
        """
        numbers = self._spread(_LOOKED_AT)
        first: DamagedSample | None = None
        for number in numbers:
            try:
                self._load(number)
            except DamagedSample as damage:
                first = first or damage
            else:
                return
        assert first is not None
        name = self._name(numbers[0])
        if isinstance(first, WrongShape):
            raise DataError("E_DATA_SHAPE", f"The data do not fit the model ({name}): {first}.", first.hint)
        message = f"None of {len(numbers)} samples looked at can be used; {name}: {first}."
        raise DataError("E_DATA_BAD_SAMPLES", message, "Build the data set again.", {"sample": name})

    def _spread(self, count: int) -> list[int]:
        """Up to `count` sample numbers at equal distances."""
        count = min(count, self.size)
        return [self.size * index // count for index in range(count)]

    def _good(self, numbers: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        for number in numbers:
            try:
                yield self._load(number)
            except DamagedSample:
                continue

    def _name(self, number: int) -> str:
        shard, sample = self._index.samples[number]
        return f"{shard}/{sample.key}"


def too_many_bad(count: int, last: BadSample) -> DataError:
    """The error of data that are damaged beyond `data.maxBadSamples`."""
    return DataError(
        "E_DATA_BAD_SAMPLES",
        f"{count} samples cannot be used, more than data.maxBadSamples; the last is {last.name}: {last.reason}.",
        "Build the damaged shards again, or raise data.maxBadSamples.",
        {"samples": count, "last": last.name},
    )


def fit_latent(latent: Tensor, shape: SampleShape) -> Tensor:
    """The latent [C,T,H,W] float32 as the network takes it.

    Raises:
        DamagedSample: not finite; WrongShape: another size.
    """
    wanted, found = list(shape.latent), list(latent.shape)
    others = [size for axis, size in enumerate(found) if axis != 1]
    if len(found) != 4 or others != [size for axis, size in enumerate(wanted) if axis != 1] or found[1] < wanted[1]:
        hint = "Set model.frames, height and width to those of the data, or use other shards."
        raise WrongShape(f"latents are {found}, the model takes {wanted}", hint)
    if found[1] > wanted[1] and not shape.crop_frames:
        hint = "Set data.cropFrames: true to train on the first frames, or raise model.frames."
        raise WrongShape(f"latents have {found[1]} frames, the model takes {wanted[1]}", hint)
    return _finite(latent[:, : wanted[1]], "latent")


def fit_text(text: Tensor, shape: SampleShape) -> Tensor:
    """The text [L,D] float32 with all rows: the encoders' rows after the last token are zero.

    Raises:
        DamagedSample: not finite; WrongShape: of another encoder.
    """
    found = list(text.shape)
    if len(found) != 2 or found[1] != shape.text_width or not 1 <= found[0] <= shape.text_rows:
        hint = "Encode the prompts with this model's own text encoder, or use the data of the other model."
        wanted = f"up to {shape.text_rows} rows of {shape.text_width}"
        raise WrongShape(f"text embeddings are {found}, the model takes {wanted}", hint)
    rows = _finite(text, "text embedding")
    return torch.nn.functional.pad(rows, (0, 0, 0, shape.text_rows - len(rows)))


def load_tensor(content: bytes, what: str) -> Tensor:
    """A tensor that torch.save wrote; code in a pickle is never run.

    Raises:
        DamagedSample: anything else.
    """
    try:
        tensor = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch makes of bytes that are no archive
        if isinstance(error, pickle.UnpicklingError) and _NAMES_CODE in str(error):
            raise DamagedSample(f"its {what} is no plain tensor but a pickle with code, which is never run") from error
        raise DamagedSample(f"its {what} cannot be read ({type(error).__name__})") from error
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.layout is not torch.strided:
        raise DamagedSample(f"its {what} is no tensor of numbers")
    return tensor


def _tensor(path: Path, member: Member, what: str) -> Tensor:
    return load_tensor(_read(path, member), what)


def _finite(values: Tensor, what: str) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise DamagedSample(f"its {what} holds NaN or infinity")
    return values.float()


def _read(path: Path, member: Member) -> bytes:
    """The bytes of a member.

    Raises:
        DataError: E_DATA_SHARD.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return _read_once(path, member)
        except OSError as error:
            failed = error
        if attempt + 1 < _ATTEMPTS:
            time.sleep(_PAUSE_SECONDS * 2**attempt)
    message = f"{path} cannot be read: {failed.strerror or failed}."
    raise DataError("E_DATA_SHARD", message, "Check the disk, then go on with `rcm-bridge resume`.") from failed


def _read_once(path: Path, member: Member) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        content = os.pread(descriptor, member.size, member.offset)
    finally:
        os.close(descriptor)
    if len(content) != member.size:
        raise OSError(None, "it has become shorter")
    return content
