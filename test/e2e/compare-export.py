"""Largest difference of the velocity of two exports of one run, over the largest velocity: ours, and that of diffusers.

<python> compare-export.py RUN_DIR NETWORK OVERRIDES_JSON
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import torch
from diffusers.models.transformers import transformer_cosmos

from rcm_sidecar.checkpoints import load_network
from rcm_sidecar.networks import build

# It resizes the padding mask, all zeros here, with torchvision, whose builds are tied to torch's.
transformer_cosmos.transforms = SimpleNamespace(
    functional=SimpleNamespace(resize=lambda mask, size, interpolation: torch.zeros(*mask.shape[:2], *size)),
    InterpolationMode=SimpleNamespace(NEAREST="nearest"),
)

run, name, overrides = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
net = build(name, **overrides)
load_network(net, run / "export" / "official")
is_wan = name.startswith("wan")
kind = diffusers.WanTransformer3DModel if is_wan else diffusers.CosmosTransformer3DModel
other = kind.from_pretrained(run / "export" / "diffusers", torch_dtype=torch.float32)
source = torch.Generator().manual_seed(0)
x = torch.randn(1, 16, 2 if is_wan else 1, 4, 6, generator=source)
text = torch.randn(1, 512, 16, generator=source)
time = torch.tensor([500.0 if is_wan else 0.5])
with torch.no_grad():
    ours = net.float()(x, time, text)
    if is_wan:
        theirs = other(x, time, text).sample
    else:
        theirs = other(x, time, text, fps=16, padding_mask=torch.zeros(1, 1, 4, 6)).sample
print(float((ours - theirs).abs().max() / ours.abs().max()))
