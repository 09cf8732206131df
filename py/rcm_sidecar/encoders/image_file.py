"""Pictures as PNG files, through Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy
import torch
from torch import Tensor

from rcm_sidecar.errors import ConfigError
from rcm_sidecar.files import write_through


def write_image(path: Path, pixels: Tensor) -> None:
    """Write u8 [H,W,3] as a PNG, whole or not at all.

    Raises:
        HostError: E_DISK_FULL or E_RUN_DIR.
    """
    from PIL import Image

    image = Image.fromarray(pixels.contiguous().numpy())
    write_through(path, lambda temporary: image.save(temporary, format="PNG"))


def read_image(path: Path) -> Tensor:
    """u8 [H,W,3] of a picture of any format that Pillow knows, the right way up.

    Raises:
        ConfigError: E_USAGE, it is missing or no picture.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)  # photographs lie on their side, with a note of it
            return torch.from_numpy(numpy.array(upright.convert("RGB")))
    except OSError as error:  # also what Pillow raises for another kind of file
        raise ConfigError("E_USAGE", f"{path} cannot be read as a picture: {error}") from error
