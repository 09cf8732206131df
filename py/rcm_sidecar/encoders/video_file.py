"""Videos as MP4 files (H.264), through PyAV."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from rcm_sidecar.errors import ConfigError
from rcm_sidecar.files import write_through

FRAMES_PER_SECOND = 16
"""Of Wan2.1 (wan2.1.md section 8)."""

# Close to lossless: what the model drew is what a person judges. Colours as BT.709, which players assume of H.264.
_QUALITY = {"crf": "14", "preset": "medium"}
_BT709 = 1
_LIMITED_RANGE = 1
_SAME_MOMENT = 1e-3
"""Of a frame's time: time stamps are rounded."""


def write_video(path: Path, frames: Tensor, frames_per_second: int = FRAMES_PER_SECOND) -> None:
    """Write u8 [F,H,W,3] as an MP4 file, whole or not at all. H and W are even.

    Raises:
        HostError: E_DISK_FULL or E_RUN_DIR.
    """
    write_through(path, lambda temporary: _write(temporary, frames, frames_per_second))


def _write(path: Path, frames: Tensor, frames_per_second: int) -> None:
    import av

    _, height, width, _ = frames.shape
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=frames_per_second, options=dict(_QUALITY))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE
        for pixels in frames.contiguous().numpy():
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            converted = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            container.mux(stream.encode(converted))
        container.mux(stream.encode())


def read_video(path: Path, most_frames: int | None = None) -> Tensor:
    """u8 [F,H,W,3] of the first frames of a video.

    Args:
        path: Any format that PyAV knows.
        most_frames: None for all.

    Raises:
        ConfigError: E_USAGE, it is missing, no video, or broken.
    """
    import av

    try:
        with av.open(str(path)) as container:
            frames: list[numpy.ndarray[Any, Any]] = []
            for frame in container.decode(video=0):
                if most_frames is not None and len(frames) == most_frames:
                    break
                frames.append(frame.to_ndarray(format="rgb24"))
    except (OSError, IndexError, av.FFmpegError) as error:
        raise ConfigError("E_USAGE", f"{path} cannot be read as a video: {error}") from error
    if not frames:
        raise ConfigError("E_USAGE", f"{path} holds no frames.")
    return torch.from_numpy(numpy.stack(frames))


def read_video_at(path: Path, most_frames: int, frames_per_second: int) -> Tensor:
    """u8 [F,H,W,3] of the first frames of a video at a rate of one's own: at each moment the frame shown then.

    Args:
        path: Any format that PyAV knows.
        most_frames: As many or, of a short video, fewer.
        frames_per_second: The rate.

    Raises:
        ConfigError: E_USAGE, it is missing, no video, or broken.
    """
    import av

    taken: list[numpy.ndarray[Any, Any]] = []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            own = float(stream.average_rate or frames_per_second)
            begin: float | None = None
            for index, frame in enumerate(container.decode(stream)):
                moment = index / own if frame.time is None else frame.time
                begin = moment if begin is None else begin
                # Shown until the next one: rounding must not lose the frame at the very end of its time.
                until = (moment - begin + 1 / own) * frames_per_second - _SAME_MOMENT
                if len(taken) < until:
                    pixels = frame.to_ndarray(format="rgb24")
                    taken += [pixels] * (min(most_frames, math.ceil(until)) - len(taken))
                if len(taken) == most_frames:
                    break
    except (OSError, IndexError, av.FFmpegError) as error:
        raise ConfigError("E_USAGE", f"{path} cannot be read as a video: {error}") from error
    if not taken:
        raise ConfigError("E_USAGE", f"{path} holds no frames.")
    return torch.from_numpy(numpy.stack(taken))


def count_at(path: Path, frames_per_second: int) -> int | None:
    """Frames of a video at a rate of one's own, from its header; None where that does not tell.

    Raises:
        ConfigError: E_USAGE, it is missing or no video.
    """
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if not stream.frames or not stream.average_rate:
                return None
            return max(1, math.ceil(stream.frames / float(stream.average_rate) * frames_per_second - _SAME_MOMENT))
    except (OSError, IndexError, av.FFmpegError) as error:
        raise ConfigError("E_USAGE", f"{path} cannot be read as a video: {error}") from error
