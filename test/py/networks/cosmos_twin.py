"""Cosmos-Predict2 from its formulas (cosmos-predict2.md section 3) in plain torch; the golden inputs of section 14.

Shares nothing with rcm_sidecar.networks: a table of weights goes in, so torch.func.jvp and autograd apply directly.
The padding mask is a real channel of zeros here. For tests only.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from networks.wan_twin import filler


def fill(net):
    """Give every parameter its golden value: no layer stays at zero."""
    for stream, (_, parameter) in enumerate(sorted(net.named_parameters())):
        value = filler(tuple(parameter.shape), stream)
        value = 1 + 0.2 * value if parameter.dim() == 1 else value / math.sqrt(parameter.shape[1])
        parameter.data.copy_(value)
    return net


def golden_inputs(dtype=torch.float64):
    """x, t, text, tx, tt of section 14."""
    x, tx = filler((2, 16, 1, 12, 20), 1000), filler((2, 16, 1, 12, 20), 1002)
    text = filler((2, 512, 1024), 1001)
    text[:, 100:] = 0
    t, tt = torch.tensor([0.31, 0.97], dtype=torch.float64), torch.tensor([0.5, -0.25], dtype=torch.float64)
    return tuple(a.to(dtype) for a in (x, t, text, tx, tt))


def velocity(weights, config, x, t, text):
    """The network of section 3 as a function of its weights (official names)."""
    batch, _, frames, height, width = x.shape
    _, ph, pw = config.patch_size
    rows, columns = height // ph, width // pw
    masked = torch.cat([x, torch.zeros_like(x[:, :1])], dim=1)
    cells = masked.reshape(batch, -1, frames, rows, ph, columns, pw)
    patches = torch.einsum("bcfimjn->bfijcmn", cells).reshape(batch, frames * rows * columns, -1)
    tokens = patches @ weights["x_embedder.proj.1.weight"].T
    features = _features(t, config.dim)
    hidden = features @ weights["t_embedder.1.linear_1.weight"].T
    shared = (hidden * torch.sigmoid(hidden)) @ weights["t_embedder.1.linear_2.weight"].T
    condition = _rms(features, weights["t_embedding_norm.weight"], config.eps)
    turns = _turns((frames, rows, columns), config, x.dtype)
    for index in range(config.num_layers):
        tokens = _block(weights, f"blocks.{index}.", config, tokens, condition, shared, text, turns)
    rows_of_final = _modulation(weights, "final_layer.adaln_modulation.", condition) + shared[:, : 2 * config.dim]
    shift, scale = rows_of_final[:, None].chunk(2, dim=-1)
    out = (_norm(tokens, config.eps) * (1 + scale) + shift) @ weights["final_layer.linear.weight"].T
    out = out.reshape(batch, frames, rows, columns, ph, pw, config.out_dim)
    return torch.einsum("bfijmnc->bcfimjn", out).reshape(batch, config.out_dim, frames, height, width)


def _block(weights, prefix, config, x, condition, shared, text, turns):
    for part in ("self_attn", "cross_attn", "mlp"):
        rows = _modulation(weights, f"{prefix}adaln_modulation_{part}.", condition) + shared
        shift, scale, gate = rows[:, None].chunk(3, dim=-1)
        z = _norm(x, config.eps) * (1 + scale) + shift
        if part == "mlp":
            y = F.gelu(z @ weights[prefix + "mlp.layer1.weight"].T) @ weights[prefix + "mlp.layer2.weight"].T
        elif part == "self_attn":
            y = _attention(weights, prefix + "self_attn.", config, z, z, turns)
        else:
            y = _attention(weights, prefix + "cross_attn.", config, z, text, None)
        x = x + gate * y
    return x


def _modulation(weights, prefix, condition):
    activated = condition * torch.sigmoid(condition)
    return activated @ weights[prefix + "1.weight"].T @ weights[prefix + "2.weight"].T


def _attention(weights, prefix, config, x, source, turns):
    heads = config.num_heads

    def project(name, a):
        return (a @ weights[f"{prefix}{name}_proj.weight"].T).reshape(*a.shape[:2], heads, -1).transpose(1, 2)

    q = _rms(project("q", x), weights[prefix + "q_norm.weight"], config.eps)
    k = _rms(project("k", source), weights[prefix + "k_norm.weight"], config.eps)
    v = project("v", source)
    if turns is not None:
        q, k = _rotate(q, turns), _rotate(k, turns)
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1])
    out = torch.einsum("bhij,bhjd->bhid", scores.softmax(dim=-1), v)
    return out.transpose(1, 2).flatten(2) @ weights[prefix + "output_proj.weight"].T


def _features(t, dim):
    half = dim // 2
    angles = t[:, None] * torch.exp(-math.log(10000.0) * torch.arange(half, dtype=t.dtype) / half)
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)


def _turns(grid, config, dtype):
    head_dim = config.dim // config.num_heads
    side = 2 * (head_dim // 6)
    places = torch.cartesian_prod(*(torch.arange(n, dtype=dtype) for n in grid)).reshape(-1, 3)
    parts = []
    for axis, (width, ratio) in enumerate(zip((head_dim - 2 * side, side, side), (1.0, 4.0, 4.0), strict=True)):
        theta = 10000.0 * ratio ** (width / (width - 2))
        parts.append(places[:, axis : axis + 1] * theta ** (-torch.arange(0, width, 2, dtype=dtype) / width))
    return torch.cat(parts, dim=1)


def _rotate(x, turns):
    first, second = x.chunk(2, dim=-1)
    cos, sin = torch.cos(turns), torch.sin(turns)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _norm(x, eps):
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(dim=-1, keepdim=True) + eps)


def _rms(x, weight, eps):
    return x / torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps) * weight
