"""Random weights at full size in the layout as downloaded, and a few samples of training data, to measure runs with.

    <python> scripts/full-size-weights.py --model wan2.1-t2v-1.3b --out /dev/shm/wan13 --samples 24

leaves `weights/` (safetensors in shards with their index, bf16) and `data/` (shards of latents and text embeddings, the
embedding of a negative prompt), for `--set model.path=... --set data.path=...`. No layer is zero, as none of a trained
network is. Latents are 81 frames at 480p for Wan2.1 and 1360 x 768 for Cosmos-Predict2 unless said otherwise. It uses a
GPU where there is one; the numbers are not the same on both. Needs the sidecar's packages and webdataset:
PYTHONPATH=py:kernels.
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

import torch
import webdataset
from torch import Tensor

from rcm_sidecar.checkpoints import save_network
from rcm_sidecar.networks import Network, build
from rcm_sidecar.networks.spec import NetworkSpec

PER_SHARD = 16
PIXELS = {"wan2.1": (81, 480, 832), "cosmos-predict2": (1, 768, 1360)}
ZERO_SCALE = 0.02
"""Standard deviation of what a fresh network has as zeros."""


def main() -> None:
    """Write both folders."""
    options = _options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    began = time.perf_counter()
    network = random_network(options.model, options.dtype, device, options.seed)
    made = time.perf_counter()
    save_network(network, options.out / "weights", dtype=options.dtype)
    written = time.perf_counter()
    pixels = [
        getattr(options, axis) or size
        for axis, size in zip(("frames", "height", "width"), PIXELS[network.spec.family], strict=True)
    ]
    write_data(options.out / "data", network.spec, pixels, options.samples, options.seed)
    count = sum(parameter.numel() for parameter in network.parameters())
    print(
        f"{options.model}: {count:,} parameters made in {made - began:.1f} s on {device}, written in "
        f"{written - made:.1f} s; {options.samples} samples in {time.perf_counter() - written:.1f} s: {options.out}"
    )


def random_network(name: str, dtype: torch.dtype, device: torch.device, seed: int) -> Network:
    """A network whose every parameter is random."""
    source = torch.Generator(device).manual_seed(seed)
    network = build(name, device=device, dtype=dtype, generator=source)
    with torch.no_grad():
        for parameter in network.parameters():
            if not bool(parameter.any()):
                parameter.normal_(std=ZERO_SCALE, generator=source)
    return network


def write_data(folder: Path, spec: NetworkSpec, pixels: list[int], samples: int, seed: int) -> None:
    """Shards of random latents and texts, and a negative, in the public layout."""
    frames, height, width = pixels
    stride = spec.vae_stride
    latent = (spec.in_dim, 1 + (frames - 1) // stride[0], height // stride[1], width // stride[2])
    source = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, samples, PER_SHARD):
        with webdataset.TarWriter(str(folder / f"shard_{first // PER_SHARD:06d}.tar"), encoder=False) as shard:
            for number in range(first, min(first + PER_SHARD, samples)):
                shard.write(
                    {
                        "__key__": f"{number:09d}",
                        "latent.pt": saved(torch.randn(latent, generator=source)),
                        "embed.pt": saved(random_text(spec, number, source)),
                        "prompt.txt": f"random sample {number}".encode(),
                    }
                )
    (folder / "negative.embed.pt").write_bytes(saved(random_text(spec, 126, source)))


def random_text(spec: NetworkSpec, tokens: int, source: torch.Generator) -> Tensor:
    """Rows of a text of some tokens, then zeros, as the encoders' states are stored."""
    text = torch.zeros(spec.text_len, spec.text_dim)
    used = min(spec.text_len, 1 + tokens)
    text[:used] = 0.2 * torch.randn(used, spec.text_dim, generator=source)
    return text


def saved(values: Tensor) -> bytes:
    """What torch.save writes of the values in bf16."""
    file = io.BytesIO()
    torch.save(values.bfloat16(), file)
    return file.getvalue()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a name of `rcm-bridge weights list`")
    parser.add_argument("--out", required=True, type=Path, help="folder; weights/ and data/ in it are written")
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument(
        "--dtype", type=lambda word: getattr(torch, word), default=torch.bfloat16, help="bfloat16, float32"
    )
    parser.add_argument("--seed", type=int, default=0)
    for axis in ("frames", "height", "width"):
        parser.add_argument(f"--{axis}", type=int, help="in pixels")
    return parser.parse_args()


if __name__ == "__main__":
    main()
