"""A folder of pictures or videos with captions, as a CSV or JSONL file lists them, and their pixels for a VAE."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcm_sidecar.encoders.image_file import read_image
from rcm_sidecar.encoders.vae import from_bytes
from rcm_sidecar.encoders.video_file import FRAMES_PER_SECOND, count_at, read_video_at
from rcm_sidecar.errors import ConfigError
from rcm_sidecar.sampling.sizes import PixelSize

_PICTURES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
_FILE, _CAPTION = "file", "caption"


@dataclass(frozen=True)
class CaptionedFile:
    """A picture or video and what it shows."""

    path: Path
    caption: str

    @property
    def is_picture(self) -> bool:
        """Everything that is not named like a picture is read as a video."""
        return self.path.suffix.lower() in _PICTURES


def read_captions(listing: Path, folder: Path) -> list[CaptionedFile]:
    """The files of a list, in its order; all are there.

    Args:
        listing: CSV with the columns file and caption, or JSONL of objects with these fields.
        folder: That file names are relative to.

    Raises:
        ConfigError: E_USAGE, which names the first line that cannot be used.
    """
    found: list[CaptionedFile] = []
    missing: list[str] = []
    for line, row in _rows(listing):
        name, caption = row.get(_FILE), row.get(_CAPTION)
        if not isinstance(name, str) or not isinstance(caption, str) or not name.strip() or not caption.strip():
            message = f"Line {line} of {listing} lacks a {_FILE} or a {_CAPTION}."
            raise ConfigError("E_USAGE", message, f"Give each line both fields, {_FILE} and {_CAPTION}.")
        path = folder / name.strip()
        if path.is_file():
            found.append(CaptionedFile(path, caption.strip()))
        else:
            missing.append(f"line {line} names {name.strip()}")
    if missing:
        more = f", and so for {len(missing) - 1} more" if len(missing) > 1 else ""
        message = f"In {listing} {missing[0]}, which is not in {folder}{more}."
        raise ConfigError("E_USAGE", message, "Add the file, or take the line out of the list.")
    if not found:
        hint = f"Write a line for each file: {_FILE} and {_CAPTION}."
        raise ConfigError("E_USAGE", f"{listing} lists no files.", hint)
    return found


def check_frames(files: list[CaptionedFile], size: PixelSize) -> None:
    """Refuse files of fewer frames than a sample has, as far as their headers tell.

    Raises:
        ConfigError: E_USAGE.
    """
    for file in files:
        held = 1 if file.is_picture else count_at(file.path, FRAMES_PER_SECOND)
        if held is not None:
            _require_frames(file, held, size.frames)


def read_pixels(file: CaptionedFile, size: PixelSize) -> tuple[Tensor, bool]:
    """Pixels [1,3,F,H,W] float32 in [-1,1] of a file, and whether it had to be enlarged.

    A video gives its first frames at 16 a second. Frames are scaled until they cover the size, their proportions kept,
    and what hangs over is cut off evenly at both ends.

    Raises:
        ConfigError: E_USAGE, a file that cannot be read or has too few frames.
    """
    if file.is_picture:
        frames = read_image(file.path)[None]
    else:
        frames = read_video_at(file.path, size.frames, FRAMES_PER_SECOND)
    _require_frames(file, len(frames), size.frames)
    scale = max(size.height / frames.shape[1], size.width / frames.shape[2])
    return _covering(frames, scale, size), scale > 1


def _covering(frames: Tensor, scale: float, size: PixelSize) -> Tensor:
    pixels = from_bytes(frames).transpose(0, 1)  # [F,3,H,W]
    if scale != 1:
        sides = [max(size.height, round(frames.shape[1] * scale)), max(size.width, round(frames.shape[2] * scale))]
        pixels = torch.nn.functional.interpolate(pixels, sides, mode="bicubic", antialias=True).clamp(-1, 1)
    top, left = (pixels.shape[2] - size.height) // 2, (pixels.shape[3] - size.width) // 2
    cut = pixels[:, :, top : top + size.height, left : left + size.width]
    return cut.transpose(0, 1)[None].contiguous()


def _require_frames(file: CaptionedFile, held: int, wanted: int) -> None:
    if held >= wanted:
        return
    possible = 1 + (held - 1) // 4 * 4
    rate = "" if file.is_picture else f" at {FRAMES_PER_SECOND} a second"
    message = f"{file.path} has {held} frame{'' if held == 1 else 's'}{rate}; a sample has {wanted}."
    hint = f"Use longer videos, or --set model.frames={possible} (4n+1) for all."
    raise ConfigError("E_USAGE", message, hint)


def _rows(listing: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with listing.open(encoding="utf-8-sig", newline="") as file:
            yield from _json_rows(file, listing) if listing.suffix == ".jsonl" else _csv_rows(file, listing)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError("E_USAGE", f"{listing} cannot be read: {error}.", "Give a CSV or JSONL file.") from error


def _csv_rows(file: Any, listing: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(file)
    lacking = [name for name in (_FILE, _CAPTION) if name not in (reader.fieldnames or ())]
    if lacking:
        message = f"{listing} has no column {' and no column '.join(lacking)}."
        raise ConfigError("E_USAGE", message, f"Begin it with a line such as: {_FILE},{_CAPTION}")
    for row in reader:
        yield reader.line_num, row


def _json_rows(file: Any, listing: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            message = f"Line {number} of {listing} is no JSON: {error}."
            raise ConfigError("E_USAGE", message, "Write one object a line.") from error
        yield number, row if isinstance(row, dict) else {}
