"""The `encode` job: a set of training data from a folder of captioned pictures or videos."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from rcm_sidecar.build_job import built, encode_texts
from rcm_sidecar.checkpoints.reading import weights_files
from rcm_sidecar.counted_progress import reporter
from rcm_sidecar.data.captioned_files import CaptionedFile, check_frames, read_captions, read_pixels
from rcm_sidecar.data.set_writer import PARTS, open_set
from rcm_sidecar.distributed.device import device_of
from rcm_sidecar.encoders.embedding_cache import file_hash
from rcm_sidecar.encoders.model_folder import open_model_folder
from rcm_sidecar.errors import WeightsError
from rcm_sidecar.files import free_bytes, require_space
from rcm_sidecar.link import JobLink
from rcm_sidecar.networks import build
from rcm_sidecar.networks.spec import NetworkSpec
from rcm_sidecar.packages import require_packages
from rcm_sidecar.protocol import EncodeStart, EndBody
from rcm_sidecar.sampling.recipe import network_arguments
from rcm_sidecar.sampling.sizes import PixelSize, latent_shape
from rcm_sidecar.set_texts import find_negative, open_set_texts
from rcm_sidecar.short_memory import free_memory

_STORED_BYTES = 2
_OVERHEAD_BYTES = 10_000
"""What torch.save and tar add to a sample, at most."""
_PACKAGES = ("av", "diffusers", "ftfy", "transformers", "webdataset")


def run_encode(start: EncodeStart, link: JobLink) -> EndBody:
    """Encode this process's share of the files that are missing in the set.

    Raises:
        ConfigError: E_USAGE, the list, a file or the folder of the set cannot be used.
        WeightsError: encoders that are missing or do not fit.
        HostError: E_PYTHON_PACKAGES, E_GPU, E_DISK_FULL.
        JobCancelled: samples that are made stay.
    """
    from rcm_sidecar.encoders.vae import latent_channels, load_vae

    link.activity("loading", 0)
    require_packages(_PACKAGES, "Sets of training data")
    device = device_of(start.device, start.share)
    spec = build(start.network.name, device="meta", **network_arguments(start.network.overrides)).spec
    size = PixelSize(start.frames, start.height, start.width)
    channels, *_ = latent_shape(spec, size)
    folder = open_model_folder(Path(start.encoders), spec.family)
    if latent_channels(folder.vae) != channels:
        message = f"{folder.vae} makes latents of {latent_channels(folder.vae)} channels; the network takes {channels}."
        raise WeightsError("E_WEIGHTS_MISMATCH", message, "Set model.path to the folder with the network's own VAE.")
    negative = find_negative(start.negative, spec)
    files = read_captions(Path(start.list), Path(start.folder))
    report, out, cache_dir = reporter(link), Path(start.out_dir), Path(start.cache_dir)
    check_frames(files[start.share :: start.shares], size)
    if start.share == 0:
        _require_space(out, len(files), latent_shape(spec, size), spec, link)
    report("checking weights", 0, 1)
    texts = open_set_texts(spec, folder, cache_dir, out / PARTS)
    content = _content(start, files, texts.cache.encoder, folder.vae, cache_dir)
    writer = open_set(out, len(files), content, start.share, start.shares)
    missing = writer.missing()
    encode_texts(texts, writer, [files[number].caption for number in missing], negative, device, link, start.share)
    if not missing:
        return built(0)
    report("loading the VAE", 0, len(missing))
    vae, enlarged = load_vae(folder.vae, device), 0
    for done, number in enumerate(missing):
        report("encoding files", done, len(missing))
        pixels, was_small = read_pixels(files[number], size)
        enlarged += was_small
        caption = files[number].caption
        writer.add(number, vae.encode(pixels)[0], texts.of(caption), caption)
    report("encoding files", len(missing), len(missing))
    if enlarged:
        link.log("warn", f"{enlarged} files are smaller than {size.width} x {size.height} and were enlarged.")
    if vae.tiled:
        link.log("warn", "The GPU's memory was short: files were encoded in tiles.")
    del vae
    free_memory()
    return built(len(missing))


def _require_space(out: Path, samples: int, latent: tuple[int, ...], spec: NetworkSpec, link: JobLink) -> None:
    """Say what a set takes, and refuse one that the disk cannot hold beside what is there of it."""
    total = samples * (_STORED_BYTES * (math.prod(latent) + spec.text_len * spec.text_dim) + _OVERHEAD_BYTES)
    there = sum(path.stat().st_size for pattern in ("*.tar", f"{PARTS}/*.part") for path in out.glob(pattern))
    free = free_bytes(out)
    room = "" if free is None else f", {free / 1e9:.3g} GB free"
    link.log("info", f"{samples} files to {out}: {total / 1e9:.3g} GB, {there / 1e9:.3g} GB of them there{room}.")
    require_space(out, max(0, total - there))


def _content(
    start: EncodeStart, files: list[CaptionedFile], encoder: str, vae: Path, cache_dir: Path
) -> dict[str, Any]:
    """All that decides what sample i is; of files name and size, for reading terabytes to know them takes hours."""
    known = [[str(file.path.name), file.path.stat().st_size, file.caption] for file in files]
    hashes = "".join(file_hash(file, cache_dir) for file in weights_files(vae))
    return {
        "made by": "data encode",
        "model": start.network.name,
        "VAE": hashlib.sha256(hashes.encode()).hexdigest(),
        "text encoder": encoder,
        "files": hashlib.sha256(json.dumps(known).encode()).hexdigest(),
        "negative": start.negative,
        "frames": start.frames,
        "height": start.height,
        "width": start.width,
    }
