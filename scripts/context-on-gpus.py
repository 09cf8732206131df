"""Processes that share the tokens of a sample, on this machine's GPUs: their numbers and times against one GPU's.

    torchrun --standalone --nproc-per-node 2 scripts/context-on-gpus.py [--frames 20] [--blocks 4] [--device cpu]

Blocks of Wan2.1 1.3B (12 heads) with random weights in bf16, asymmetric checkpointing, one sample: a dual forward and
its backward, first on every GPU alone, then together by Ulysses (where the GPUs divide the heads) and by ring. Rank 0
prints a JSON line a row. Ends with an error when together differs from alone by more than rounding explains.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("py", "kernels")]

from rcm_sidecar.distributed.mesh import build_mesh, parallel_sizes  # noqa: E402
from rcm_sidecar.dual import Dual  # noqa: E402
from rcm_sidecar.networks import build  # noqa: E402

# Two bf16 computations of these sizes with different orders of summation; a wrong tangent or gradient is off by 1.
LIMITS = {"velocity": 0.02, "tangent": 0.05, "gradient": 0.05}
REPEATS = 5


def main() -> None:
    """One process of torchrun."""
    options = _options()
    device = torch.device(options.device, int(os.environ["LOCAL_RANK"]) if options.device == "cuda" else None)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    size = dist.get_world_size()
    mesh = build_mesh(device.type, parallel_sizes(size, shard=1, context=size))
    net = _network(options.blocks, device)
    inputs = _inputs((options.frames, options.height, options.width), device)
    tokens = inputs[0][0][0, 0].numel() // 4
    alone = _measure(net, inputs, device)
    row = {"gpus": size, "tokens": tokens, "blocks": options.blocks}
    _print({**row, "kind": "alone", **alone["costs"]})
    failed = False
    for kind in ("ulysses", "ring"):
        if kind == "ulysses" and net.config.num_heads % size:
            continue
        net.context = mesh.context_group(kind, net.config.num_heads)
        together = _measure(net, inputs, device)
        errors = {name: _relative(together[name], alone[name]) for name in LIMITS}
        failed |= any(not error < LIMITS[name] for name, error in errors.items())
        _print({**row, "kind": kind, **together["costs"], "errors": errors})
    dist.barrier()
    dist.destroy_process_group()
    if failed:
        raise SystemExit("together differs from alone by more than rounding")


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=20, help="latent frames; 20 at 60 x 104 are 31,200 tokens")
    parser.add_argument("--height", type=int, default=60)
    parser.add_argument("--width", type=int, default=104)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    return parser.parse_args()


def _network(blocks: int, device: torch.device) -> Any:
    """Every parameter random, the same on all processes; the time path and the head stay float32."""
    generator = torch.Generator(device).manual_seed(0)
    net: Any = build("wan2.1-t2v-1.3b", device=device, num_layers=blocks, generator=generator)
    for name, parameter in net.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
        if not name.startswith(net.wide_parts):
            parameter.data = parameter.data.bfloat16()
    net.activation_checkpointing = "asymmetric"
    return net


def _inputs(latent: tuple[int, int, int], device: torch.device) -> tuple[Dual, Dual, Tensor]:
    generator = torch.Generator(device).manual_seed(1)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    time_and_tangent = Dual(torch.full((1,), 700.0, device=device), torch.full((1,), 10.0, device=device))
    return Dual(randn(1, 16, *latent), randn(1, 16, *latent)), time_and_tangent, randn(1, 512, 4096)


def _measure(net: Any, inputs: tuple[Dual, Dual, Tensor], device: torch.device) -> dict[str, Any]:
    """Results of one pass, gradients averaged over the processes; median seconds and peak memory of several."""
    seconds = []
    for repeat in range(REPEATS + 1):
        net.zero_grad(set_to_none=True)
        if repeat == 1 and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        _wait(device)
        began = time.perf_counter()
        velocity = net(*inputs)
        velocity.primal.square().mean().backward()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    gradients = [parameter.grad.float().flatten() for parameter in net.parameters()]
    for gradient in gradients:
        dist.all_reduce(gradient)
    costs = {"seconds": round(statistics.median(seconds[1:]), 5)}
    if device.type == "cuda":
        costs |= {"peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2), "card": torch.cuda.get_device_name()}
    return {
        "velocity": velocity.primal.detach(),
        "tangent": velocity.tangent,
        "gradient": torch.cat(gradients) / dist.get_world_size(),
        "costs": costs,
    }


def _wait(device: torch.device) -> None:
    """For all processes, and for what runs on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    dist.barrier()


def _relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def _print(row: dict[str, Any]) -> None:
    if dist.get_rank() == 0:
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
