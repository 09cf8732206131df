"""Pixels to latents and back, by AutoencoderKLWan of diffusers: the VAE of Wan2.1 and of Cosmos-Predict2."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcm_sidecar.checkpoints.reading import open_weights
from rcm_sidecar.encoders.filling import check, fill
from rcm_sidecar.encoders.original_keys import vae_key
from rcm_sidecar.errors import WeightsError
from rcm_sidecar.safetensors_file import LazyTensor
from rcm_sidecar.short_memory import again_if_short

_FIRST_CONV = "encoder.conv_in.weight"
_LAST_CONV = "post_quant_conv.weight"


class Vae:
    """A loaded VAE. Latents are normalised by channel, as the networks see them (wan2.1.md section 6.1).

    Encoding gives the mean of the posterior, without noise. One sample is coded at a time. When a GPU's memory does not
    suffice, the picture is cut into overlapping tiles from then on; that changes it a little near their edges.

    Attributes:
        tiled: Whether memory was short.

    Args:
        model: An AutoencoderKLWan, frozen.
        device: Where it computes.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        self._model, self._device = model, device
        self._mean = _by_channel(model.config.latents_mean, device)
        self._std = _by_channel(model.config.latents_std, device)

    @property
    def tiled(self) -> bool:  # noqa: D102
        return bool(self._model.use_tiling)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Latents [B,C,T,h,w] float32 on the CPU.

        Args:
            pixels: [B,3,F,H,W] in [-1,1]; F is 4 T - 3, H and W are multiples of 8.

        Raises:
            ValueError: other sizes.
            HostError: E_GPU, memory does not suffice even for tiles.
        """
        _, _, frames, height, width = pixels.shape
        if frames % 4 != 1 or height % 8 or width % 8:
            raise ValueError(f"no latents of {frames} frames of {height} x {width}: frames 4n+1, sides multiples of 8")
        return torch.cat([self._coded(self._encode, sample) for sample in pixels.split(1)])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [B,3,F,H,W] float32 in [-1,1] on the CPU.

        Args:
            latents: [B,C,T,h,w], normalised.

        Raises:
            HostError: E_GPU, memory does not suffice even for tiles.
        """
        return torch.cat([self._coded(self._decode, sample) for sample in latents.split(1)])

    def _coded(self, code: Any, sample: Tensor) -> Tensor:
        coded: Tensor = again_if_short(
            lambda: code(sample.to(self._device)),
            self._model.enable_tiling,
            "decoding in tiles" if code == self._decode else "encoding in tiles",
            exhausted=self.tiled,
        )
        return coded.float().cpu()

    def _encode(self, pixels: Tensor) -> Tensor:
        posterior = self._model.encode(pixels.to(self._model.dtype)).latent_dist
        normalised: Tensor = (posterior.mode().float() - self._mean) / self._std
        return normalised

    def _decode(self, latents: Tensor) -> Tensor:
        plain = latents.float() * self._std + self._mean
        pixels: Tensor = self._model.decode(plain.to(self._model.dtype)).sample
        return pixels.float().clamp(-1, 1)


def load_vae(path: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> Vae:
    """Load a VAE.

    Args:
        path: A .pth file in the original layout, or a folder with config.json.
        device: Where it computes.
        dtype: Of the weights; the published pipelines of Wan use float32.

    Raises:
        WeightsError: E_WEIGHTS_MISMATCH, E_WEIGHTS_UNREADABLE or what opening finds.
    """
    model, tensors = _on_meta(path)
    fill(model, tensors, path, device, dtype)
    return Vae(model.eval(), device)


def latent_channels(path: Path) -> int:
    """Channels of the latents of a VAE, which is known to be whole then; only headers are read.

    Raises:
        WeightsError: as `load_vae`.
    """
    model, tensors = _on_meta(path)
    check(model, tensors, path)
    return int(model.config.z_dim)


def to_bytes(pixels: Tensor) -> Tensor:
    """u8 [..., F,H,W,3] of pixels [..., 3,F,H,W] in [-1,1], rounded to the nearest."""
    return pixels.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).movedim(-4, -1)


def from_bytes(pixels: Tensor) -> Tensor:
    """Pixels float32 [..., 3,F,H,W] in [-1,1] of u8 [..., F,H,W,3]; the inverse of `to_bytes`."""
    return pixels.movedim(-1, -4).float().div(127.5).sub(1)


def _on_meta(path: Path) -> tuple[Any, dict[str, LazyTensor]]:
    import diffusers

    kind: Any = diffusers.AutoencoderKLWan
    tensors, settings = _open(path)
    try:
        with torch.device("meta"):
            return kind.from_config(settings), tensors
    except (TypeError, ValueError) as error:
        message = f"{path} describes no VAE that diffusers can make: {error}"
        raise WeightsError("E_WEIGHTS_MISMATCH", message, "Use the VAE published with the network.") from error


def _open(path: Path) -> tuple[dict[str, LazyTensor], Mapping[str, Any]]:
    if path.is_file():
        tensors = {vae_key(key): tensor for key, tensor in open_weights(path).items()}
        if _FIRST_CONV not in tensors or _LAST_CONV not in tensors:
            message = f"{path} holds no Wan VAE: {_FIRST_CONV} or {_LAST_CONV} is missing."
            raise WeightsError("E_WEIGHTS_MISMATCH", message, "Use the VAE published with the network.")
        # Everything else is the same in all published ones, and the default of diffusers.
        return tensors, {"base_dim": tensors[_FIRST_CONV].shape[0], "z_dim": tensors[_LAST_CONV].shape[0]}
    try:
        settings = json.loads((path / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        message = f"{path / 'config.json'} cannot be read: {error}"
        raise WeightsError("E_WEIGHTS_UNREADABLE", message, "Fetch it again.") from error
    if not isinstance(settings, dict) or settings.get("_class_name") != "AutoencoderKLWan":
        message = f"{path} holds no AutoencoderKLWan."
        raise WeightsError("E_WEIGHTS_MISMATCH", message, "Use the VAE published with the network.")
    return open_weights(path), settings


def _by_channel(values: Any, device: torch.device) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float32, device=device).view(1, -1, 1, 1, 1)
