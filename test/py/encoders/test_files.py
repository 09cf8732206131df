"""Pictures and videos on disk."""

import av
import pytest
import torch

from rcm_sidecar.encoders.image_file import read_image, write_image
from rcm_sidecar.encoders.video_file import FRAMES_PER_SECOND, read_video, write_video
from rcm_sidecar.errors import ConfigError, HostError

# Corners of the colour cube and a grey: a wrong matrix or range moves them by more than ten levels.
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (90, 120, 200)]


def test_a_picture_comes_back_bit_for_bit(tmp_path):
    pixels = torch.randint(0, 256, (24, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_image(tmp_path / "new" / "a.png", pixels)
    assert torch.equal(read_image(tmp_path / "new" / "a.png"), pixels)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.png"]


def test_a_video_keeps_frames_colours_and_rate(tmp_path):
    frames = torch.tensor(COLOURS, dtype=torch.uint8)[:, None, None].expand(-1, 32, 48, -1)
    write_video(tmp_path / "a.mp4", frames)
    found = read_video(tmp_path / "a.mp4")
    assert found.shape == frames.shape
    assert (found.int() - frames.int()).abs().max() <= 4
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == FRAMES_PER_SECOND and stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
    assert len(read_video(tmp_path / "a.mp4", most_frames=2)) == 2


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for read, name in ((read_image, "text.png"), (read_image, "gone.png"), (read_video, "text.png")):
        with pytest.raises(ConfigError, match=f"{name} cannot be read") as caught:
            read(tmp_path / name)
        assert caught.value.code == "E_USAGE"


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError) as caught:
        write_video(tmp_path / "file" / "a.mp4", torch.zeros(1, 16, 16, 3, dtype=torch.uint8))
    assert caught.value.code == "E_RUN_DIR"
