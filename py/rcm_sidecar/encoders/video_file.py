"""Videos as MP4 files (H.264), through PyAV."""

from __future__ import annotations

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
