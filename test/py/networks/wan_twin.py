"""Wan2.1 from its formulas (wan2.1.md section 2), in plain torch; and the golden filler of section 16.1. For tests.

Shares nothing with rcm_sidecar.networks: a table of weights goes in, so torch.func.jvp and autograd apply directly.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

GOLDEN_TIME = 777.25
GOLDEN_TIME_TANGENT = 123.0


def filler(shape, stream):
    """Deterministic values of unit variance, float64."""
    count = math.prod(shape)
    h = np.arange(count, dtype=np.uint64) + np.uint64(7919 * stream + 1)
    mask = np.uint64(0xFFFFFFFF)
    h = (h * np.uint64(2654435761)) & mask
    h ^= h >> np.uint64(16)
    h = (h * np.uint64(2246822519)) & mask
    h ^= h >> np.uint64(13)
    h = (h * np.uint64(3266489917)) & mask
    h ^= h >> np.uint64(16)
    return torch.from_numpy((2 * h.astype(np.float64) / 2**32 - 1) * math.sqrt(3)).reshape(shape)


def fill(net):
    """Give every parameter its golden value: no layer stays at zero."""
    for stream, (name, parameter) in enumerate(sorted(net.named_parameters())):
        value = filler(tuple(parameter.shape), stream)
        if name.endswith("modulation"):
            value = 0.1 * value
        elif name.endswith(".bias"):
            value = 0.02 * value
        elif parameter.dim() == 1:
            value = 1 + 0.2 * value
        else:
            value = value / math.sqrt(math.prod(parameter.shape[1:]))
        parameter.data.copy_(value)
    return net


def golden_inputs(dtype=torch.float32):
    """x, t, text, tx, tt of section 16.1."""
    x, tx = filler((1, 16, 3, 8, 12), 1000), filler((1, 16, 3, 8, 12), 1002)
    text = filler((1, 512, 64), 1001)
    text[:, 100:] = 0
    t, tt = torch.tensor([GOLDEN_TIME]), torch.tensor([GOLDEN_TIME_TANGENT])
    return tuple(a.to(dtype) for a in (x, t, text, tx, tt))


def velocity(weights, config, x, t, text):
    """The network of section 2 as a function of its weights (official names)."""
    batch, _, frames, height, width = x.shape
    patch = config.patch_size
    rows, columns = height // patch[1], width // patch[2]
    tokens = F.conv3d(x, weights["patch_embedding.weight"], weights["patch_embedding.bias"], stride=patch)
    tokens = tokens.flatten(2).transpose(1, 2)
    half = config.freq_dim // 2
    angles = t[:, None] * 10000.0 ** (-torch.arange(half, dtype=t.dtype) / half)
    e = _linear(weights, "time_embedding.0", torch.cat([torch.cos(angles), torch.sin(angles)], dim=1))
    e = _linear(weights, "time_embedding.2", e * torch.sigmoid(e))
    e0 = _linear(weights, "time_projection.1", e * torch.sigmoid(e)).reshape(batch, 6, config.dim)
    states = _linear(weights, "text_embedding.2", _gelu(_linear(weights, "text_embedding.0", text)))
    turns = _turns((frames // patch[0], rows, columns), config.dim // config.num_heads, x.dtype)
    for index in range(config.num_layers):
        tokens = _block(weights, f"blocks.{index}.", config, tokens, e0, states, turns)
    shift, scale = (weights["head.modulation"] + e[:, None]).chunk(2, dim=1)
    out = _linear(weights, "head.head", _norm(tokens, config.eps) * (1 + scale) + shift)
    out = out.reshape(batch, frames // patch[0], rows, columns, *patch, config.out_dim)
    return torch.einsum("bfhwpqrc->bcfphqwr", out).reshape(batch, config.out_dim, frames, height, width)


def _block(weights, prefix, config, x, e0, states, turns):
    m = (weights[prefix + "modulation"] + e0).chunk(6, dim=1)
    z = _norm(x, config.eps) * (1 + m[1]) + m[0]
    x = x + _attention(weights, prefix + "self_attn.", config, z, z, turns) * m[2]
    z = _norm(x, config.eps) * weights[prefix + "norm3.weight"] + weights[prefix + "norm3.bias"]
    x = x + _attention(weights, prefix + "cross_attn.", config, z, states, None)
    z = _norm(x, config.eps) * (1 + m[4]) + m[3]
    return x + _linear(weights, prefix + "ffn.2", _gelu(_linear(weights, prefix + "ffn.0", z))) * m[5]


def _attention(weights, prefix, config, x, source, turns):
    heads = config.num_heads
    q = _rms(_linear(weights, prefix + "q", x), weights[prefix + "norm_q.weight"], config.eps)
    k = _rms(_linear(weights, prefix + "k", source), weights[prefix + "norm_k.weight"], config.eps)
    v = _linear(weights, prefix + "v", source)
    q, k, v = (a.reshape(*a.shape[:2], heads, -1).transpose(1, 2) for a in (q, k, v))
    if turns is not None:
        q, k = _rotate(q, turns), _rotate(k, turns)
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1])
    out = torch.einsum("bhij,bhjd->bhid", scores.softmax(dim=-1), v)
    return _linear(weights, prefix + "o", out.transpose(1, 2).flatten(2))


def _turns(grid, head_dim, dtype):
    side = 2 * (head_dim // 6)
    places = torch.cartesian_prod(*(torch.arange(n, dtype=dtype) for n in grid)).reshape(-1, 3)
    parts = []
    for axis, width in enumerate((head_dim - 2 * side, side, side)):
        parts.append(places[:, axis : axis + 1] * 10000.0 ** (-torch.arange(0, width, 2, dtype=dtype) / width))
    return torch.cat(parts, dim=1)


def _rotate(x, turns):
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = torch.cos(turns), torch.sin(turns)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def _linear(weights, name, x):
    return x @ weights[name + ".weight"].T + weights[name + ".bias"]


def _norm(x, eps):
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(dim=-1, keepdim=True) + eps)


def _rms(x, weight, eps):
    return x / torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps) * weight


def _gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
