"""The umT5 encoder of the original Wan2.1 code as formulas (wan2.1.md section 7.1), on its own keys. For tests only."""

from __future__ import annotations

import math

import torch

EPS = 1e-6


def encode(weights, ids, mask, heads):
    """States [L, D] of token ids [L] under a mask [L], in float32."""
    x = weights["token_embedding.weight"][ids]
    layers = len({key.split(".")[1] for key in weights if key.startswith("blocks.")})
    for index in range(layers):
        block = {key.split(".", 2)[2]: value for key, value in weights.items() if key.startswith(f"blocks.{index}.")}
        x = x + _attention(block, _rms(x, block["norm1.weight"]), mask, heads)
        h = _rms(x, block["norm2.weight"])
        gate = torch.nn.functional.gelu(h @ block["ffn.gate.0.weight"].T, approximate="tanh")
        x = x + (h @ block["ffn.fc1.weight"].T * gate) @ block["ffn.fc2.weight"].T
    return _rms(x, weights["norm.weight"])


def _rms(x, weight):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight


def _attention(block, h, mask, heads):
    length = len(h)
    q, k, v = (
        (h @ block[f"attn.{part}.weight"].T).unflatten(-1, (heads, -1)).transpose(0, 1) for part in ("q", "k", "v")
    )
    places = torch.arange(length)
    buckets = torch.tensor([[_bucket(int(key - query)) for key in places] for query in places])
    bias = block["pos_embedding.embedding.weight"][buckets].permute(2, 0, 1)
    scores = q @ k.transpose(1, 2) + bias  # not divided by the root of the head's width
    scores = scores.masked_fill(mask[None, None, :] == 0, torch.finfo(scores.dtype).min)
    out = torch.softmax(scores, -1) @ v
    return out.transpose(0, 1).flatten(1) @ block["attn.o.weight"].T


def _bucket(relative):
    near = abs(relative)
    far = min(15, 8 + math.floor(math.log(max(near, 1) / 8) / math.log(16) * 8))
    return 16 * (relative > 0) + (near if near < 8 else far)
