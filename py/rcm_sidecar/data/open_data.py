"""The training data of a config."""

from __future__ import annotations

from pathlib import Path

import torch

from rcm_sidecar.config import Model, RunConfig
from rcm_sidecar.data.digits import load_digits_data
from rcm_sidecar.data.latent_shards import LatentShards, Reading, SampleShape
from rcm_sidecar.data.shard_index import open_index
from rcm_sidecar.data.training_data import TensorData, TrainingData
from rcm_sidecar.errors import ConfigError
from rcm_sidecar.networks import build
from rcm_sidecar.networks.spec import NetworkSpec

_DIGITS_HOLD_OUT = 0.2


def open_training_data(config: RunConfig, cache_dir: Path | None = None) -> TrainingData:
    """The data set of `config.data`.

    Args:
        config: Of the run.
        cache_dir: Where the index of shards is kept between runs.

    Raises:
        ConfigError: E_CONFIG_NOT_YET for a kind or split that does not exist yet, E_CONFIG_VALUE without a path.
        DataError: the data are missing, damaged or of another model.
    """
    match config.data.kind:
        case "digits":
            return _digits(config)
        case "latentShards":
            return _shards(config, cache_dir)
        case kind:
            message = f"data.kind {kind} is not there yet."
            raise ConfigError("E_CONFIG_NOT_YET", message, "Use data.kind: digits or latentShards.")


def sample_shape(config: RunConfig, spec: NetworkSpec) -> SampleShape:
    """Sizes of latents and texts that a config's network takes."""
    return SampleShape(
        latent=latent_shape(config.model, spec),
        crop_frames=config.data.crop_frames,
        text_rows=spec.text_len,
        text_width=spec.text_dim,
    )


def latent_shape(model: Model, spec: NetworkSpec) -> tuple[int, int, int, int]:
    """[C,T,H,W] of what the VAE makes of `model.frames`, `height` and `width`; TypeScript checks that they divide."""
    frames, rows, columns = spec.vae_stride
    return spec.in_dim, 1 + (model.frames - 1) // frames, model.height // rows, model.width // columns


def _digits(config: RunConfig) -> TensorData:
    if config.data.hold_out != _DIGITS_HOLD_OUT:
        raise ConfigError("E_CONFIG_NOT_YET", "The digits ship with a fixed split.", "Use data.holdOut: 0.2.")
    data = load_digits_data()
    return TensorData(data.train_images, data.train_labels)


def _shards(config: RunConfig, cache_dir: Path | None) -> LatentShards:
    settings = config.data
    if settings.path is None:
        raise ConfigError("E_CONFIG_VALUE", "data.kind latentShards needs data.path.", "Set it to the folder.")
    spec = build(config.model.name, device="meta", **config.model.overrides.arguments()).spec
    index = open_index(Path(settings.path), cache_dir, settings.workers)
    reading = Reading(
        workers=settings.workers,
        ahead=settings.shuffle_buffer,
        stride=config.schedule.batch_size,
        max_bad=settings.max_bad_samples,
        pinned=config.compute.device != "cpu" and torch.cuda.is_available(),
    )
    return LatentShards(index, sample_shape(config, spec), reading)
