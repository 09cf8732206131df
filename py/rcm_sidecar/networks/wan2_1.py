"""Wan2.1 text-to-video transformer, for student, teacher and critic, on Tensors or Duals.

Architecture, names and shapes: wan2.1.md sections 1-5. Code of its own, written from those facts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from rcm_sidecar.distributed.context_parallel import ContextGroup, TokenShare
from rcm_sidecar.distributed.tensors import fill_drawn
from rcm_sidecar.dual import DualOrTensor, ops, primal_of
from rcm_sidecar.errors import ConfigError
from rcm_sidecar.networks.blocks import KEPT, run_block, text_pair
from rcm_sidecar.networks.inputs import Checkpointing, Choice, Role, Target, check_adapter, check_inputs, check_sizes
from rcm_sidecar.networks.layers import (
    FeedForward,
    Gelu,
    LayerNorm,
    Linear,
    RmsNorm,
    Silu,
    WideLinear,
    heads_first,
    merge_heads,
    patchify,
    split_heads,
    token_axis,
    token_grid,
    unpatchify,
    widened,
)
from rcm_sidecar.networks.rotary import RotaryTables
from rcm_sidecar.networks.spec import NetworkSpec
from rcm_sidecar.networks.text_cache import TextCache


@dataclass(frozen=True, slots=True)
class WanConfig:
    """Sizes of one network; the defaults are those all releases share.

    Attributes:
        dim: Model width.
        ffn_dim: Hidden width of the feed-forward layers.
        num_heads: Attention heads; dim / num_heads must be even.
        num_layers: Blocks.
        in_dim: Latent channels in.
        out_dim: Latent channels out.
        text_dim: Width of the text states.
        freq_dim: Width of the time features, even.
        text_len: Rows of the text states of the released weights; the network takes any number.
        patch_size: Latent (frames, rows, columns) a token covers.
        eps: Of all norms.
    """

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_dim: int = 16
    out_dim: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    text_len: int = 512
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6

    def __post_init__(self) -> None:
        """Refuse sizes that fit no network."""
        check_sizes(self)
        if self.freq_dim % 2:
            raise ConfigError("E_NETWORK_SIZE", f"freq_dim must be even, not {self.freq_dim}")


PRESETS: Mapping[str, WanConfig] = {
    "wan2.1-t2v-1.3b": WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30),
    "wan2.1-t2v-14b": WanConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40),
    "wan2.1-tiny": WanConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=2, text_dim=64),
}

_480P = ((480, 832), (832, 480), (640, 640), (480, 640), (640, 480))
_720P = ((720, 1280), (1280, 720), (960, 960), (720, 960), (960, 720))
# Positions along each axis in the published tables, in the original code and in diffusers.
_POSITIONS = 1024
_PIXEL_SIZES: Mapping[str, tuple[tuple[int, int], ...]] = {
    "wan2.1-t2v-1.3b": _480P,
    "wan2.1-t2v-14b": _480P + _720P,
}


def make(name: str, config: WanConfig) -> Wan21:
    """The network of `config`, parameters allocated but not initialised."""
    kt, kh, kw = config.patch_size
    spec = NetworkSpec(
        name=name,
        family="wan2.1",
        time_scale=1000.0,
        in_dim=config.in_dim,
        out_dim=config.out_dim,
        patch=config.patch_size,
        text_len=config.text_len,
        text_dim=config.text_dim,
        negative="prompt",
        sampler_times=(1.5, 1.4, 1.0),
        teacher_shift=5.0,
        pixel_sizes=_PIXEL_SIZES.get(name, ()),
        max_latent=(_POSITIONS * kt, _POSITIONS * kh, _POSITIONS * kw),
    )
    return Wan21(config, spec)


class Attention(nn.Module):
    """Projections and qk-norm of one attention; the norm spans the full width, before the heads are split.

    Args:
        config: Sizes.
    """

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.q = Linear(config.dim, config.dim)
        self.k = Linear(config.dim, config.dim)
        self.v = Linear(config.dim, config.dim)
        self.o = Linear(config.dim, config.dim)
        self.norm_q = RmsNorm(config.dim, config.eps)
        self.norm_k = RmsNorm(config.dim, config.eps)


class SelfAttention(Attention):
    """Attention among the tokens, with rotary positions."""

    def forward(
        self,
        x: DualOrTensor,
        rotary: Tensor,
        adapter: Role | None,
        share: TokenShare | None,
    ) -> DualOrTensor:
        """[B, L, D] to [B, L, D]; `rotary` [L, d/2, 2]; with a `share`, L are this process's tokens."""
        q = self.norm_q.rotated(self.q(x, adapter), rotary, interleaved=True)
        k = self.norm_k.rotated(self.k(x, adapter), rotary, interleaved=True)
        v = split_heads(self.v(x, adapter), self.heads)
        out = ops.attention(heads_first(q), heads_first(k), heads_first(v), share=share)
        return cast(DualOrTensor, self.o(merge_heads(out), adapter))


class CrossAttention(Attention):
    """Attention from the tokens to the text; every text row takes part, zero padding too."""

    def keys_values(self, text: Tensor, adapter: Role | None) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, Lt, d] of the embedded text [B, Lt, D]; they carry no tangent."""
        k = heads_first(split_heads(self.norm_k(self.k(text, adapter)), self.heads))
        v = heads_first(split_heads(self.v(text, adapter), self.heads))
        return cast(Tensor, k), cast(Tensor, v)

    def forward(self, x: DualOrTensor, text: tuple[Tensor, Tensor], adapter: Role | None) -> DualOrTensor:
        """[B, L, D] to [B, L, D]; `text` from `keys_values`."""
        q = split_heads(self.norm_q(self.q(x, adapter)), self.heads)
        out = ops.attention(heads_first(q), *text)
        return cast(DualOrTensor, self.o(merge_heads(out), adapter))


class Block(nn.Module):
    """One transformer block (wan2.1.md 2.4); execution order norm1, norm3, norm2.

    Args:
        config: Sizes.
        index: Its place, the key of the text cache.
    """

    def __init__(self, config: WanConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.norm1 = LayerNorm(config.dim, config.eps)
        self.self_attn = SelfAttention(config)
        self.norm3 = LayerNorm(config.dim, config.eps, affine=True)
        self.cross_attn = CrossAttention(config)
        self.norm2 = LayerNorm(config.dim, config.eps)
        self.ffn = FeedForward(config.dim, config.ffn_dim, "tanh")
        self.modulation = nn.Parameter(torch.empty(1, 6, config.dim))

    def forward(
        self,
        x: DualOrTensor,
        e: DualOrTensor,
        text: Tensor,
        rotary: Tensor,
        adapter: Role | None = None,
        kv_cache: TextCache | None = None,
        checkpointing: Checkpointing = "none",
        share: TokenShare | None = None,
    ) -> DualOrTensor:
        """One block.

        Args:
            x: Tokens [B, L, D].
            e: Time modulation [B, 6, D].
            text: Embedded text [B, Lt, D].
            rotary: [L, d/2, 2].
            adapter: LoRA role; the recomputation gets the one of this call.
            kv_cache: Text keys and values of earlier passes, in no-grad passes only.
            checkpointing: How activations are kept for backward.
            share: How the tokens are shared by several processes; `x` and `rotary` are this one's.

        Returns:
            [B, L, D] in the dtype of `x`.
        """

        def body(x: DualOrTensor, e: DualOrTensor, text: Tensor) -> DualOrTensor:
            return self._body(x, e, text, rotary, adapter, kv_cache, share)

        return run_block(body, x, e, text, checkpointing=checkpointing)

    def _body(
        self,
        x: DualOrTensor,
        e: DualOrTensor,
        text: Tensor,
        rotary: Tensor,
        adapter: Role | None,
        kv_cache: TextCache | None,
        share: TokenShare | None,
    ) -> DualOrTensor:
        rows = ops.unbind(token_axis(ops.add(e, self.modulation)), 1)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = rows
        attended = self.self_attn(self.norm1(x, (shift, scale)), rotary, adapter, share)
        x, normed = self.norm3.after(x, attended, gate)

        pair = text_pair(kv_cache, self.index, lambda: self.cross_attn.keys_values(text, adapter))
        attended = self.cross_attn(normed, pair, adapter)
        x, normed = self.norm2.after(x, attended, modulation=(ffn_shift, ffn_scale))
        return ops.gate(x, self.ffn(normed, adapter), ffn_gate)


class Head(nn.Module):
    """Final norm, modulation by the time embedding (shift first, then scale) and projection to patches.

    Args:
        config: Sizes.
    """

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.norm = LayerNorm(config.dim, config.eps)
        self.head = WideLinear(config.dim, math.prod(config.patch_size) * config.out_dim)
        self.modulation = nn.Parameter(torch.empty(1, 2, config.dim))

    def forward(self, x: DualOrTensor, e: DualOrTensor) -> DualOrTensor:
        """Tokens [B, L, D] and time embedding [B, D] to patches [B, L, kt kh kw C], at least float32."""
        both = ops.add(ops.linear_map(lambda a: a.unsqueeze(1), e), self.modulation)
        shift, scale = ops.unbind(token_axis(both), 1)
        return cast(DualOrTensor, self.head(self.norm(widened(x), (shift, scale))))


class Wan21(nn.Module):
    """The transformer: `velocity = net(x, t, text)`.

    Attributes:
        config: Sizes.
        spec: Facts for trainers and samplers.
        activation_checkpointing: "none"; "block" keeps a block's inputs only; "asymmetric" keeps attention's results as
            well, "selective" those of attention and of products. What is not kept is computed again, the primal only.
        residual: Dtype of the residual stream under half-precision weights; with float32 weights it is float32.
        adapters: LoRA roles attached by `lora.attach`.
        context: The processes that share every sample's tokens, None for one; set before sharding.
        wide_parts: The time path and the head, whose weights stay float32 when the others are stored in half precision.
        lora_targets: The linear layers of a block by LoRA target.

    Args:
        config: Sizes.
        spec: Facts.
    """

    activation_checkpointing = Choice("none", *KEPT)
    residual = Choice("bf16", "fp32")
    wide_parts = ("time_embedding", "time_projection", "head")
    lora_targets: Mapping[Target, tuple[str, ...]] = {
        "attention": tuple(f"{part}_attn.{layer}" for part in ("self", "cross") for layer in "qkvo"),
        "ffn": ("ffn.0", "ffn.2"),
    }

    def __init__(self, config: WanConfig, spec: NetworkSpec) -> None:
        super().__init__()
        self.config = config
        self.spec = spec
        self.adapters: tuple[Role, ...] = ()
        self.context: ContextGroup | None = None
        dim = config.dim
        self.patch_embedding = nn.Conv3d(config.in_dim, dim, config.patch_size, stride=config.patch_size)
        self.text_embedding = nn.Sequential(Linear(config.text_dim, dim), Gelu("tanh"), Linear(dim, dim))
        self.time_embedding = nn.Sequential(WideLinear(config.freq_dim, dim), Silu(), WideLinear(dim, dim))
        self.time_projection = nn.Sequential(Silu(), WideLinear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.num_layers))
        self.head = Head(config)
        self._rotary = RotaryTables(dim // config.num_heads)

    def forward(
        self,
        x: DualOrTensor,
        t: DualOrTensor,
        text: Tensor,
        adapter: Role | None = None,
        kv_cache: TextCache | None = None,
    ) -> Any:
        """Rectified-flow velocity, and with Duals its directional derivative.

        Args:
            x: Latent [B, C, T, H, W], Tensor or Dual.
            t: Time [B] in 0..1000, float32 or float64, Tensor or Dual.
            text: Text states [B, L, text_dim], any L, zero rows after the text's end. No tangent.
            adapter: LoRA role; None means the base weights.
            kv_cache: Text keys and values to fill and reuse, in no-grad passes only.

        Returns:
            [B, out_dim, T, H, W], at least float32: a Tensor, or a Dual when `x` or `t` is one.

        Raises:
            ValueError: Shapes that do not fit, or sides beyond the last rotary position.
            TypeError: Time in half precision (it would make the derivative wrong by half).
            ConfigError: E_ADAPTER_UNKNOWN, an adapter this network does not have.
        """
        check_inputs(self.spec, x, t, text)
        check_adapter(adapter, self.adapters)
        if kv_cache is not None:
            kv_cache.bind(text, adapter)
        grid = token_grid(primal_of(x), self.config.patch_size)
        share = None if self.context is None else self.context.share(math.prod(grid))
        tokens = self._embed_patches(x, share)
        time = self.time_embedding(ops.sinusoid(t, self.config.freq_dim))
        modulation = ops.linear_map(lambda a: a.unflatten(-1, (6, -1)), self.time_projection(time))
        states = text if kv_cache is not None and kv_cache.filled else self.text_embedding(text)
        value = primal_of(tokens)
        rotary = self._rotary.get(grid, value.dtype, value.device)
        rotary = rotary if share is None else share.own_rows(rotary)
        for block in self.blocks:
            tokens = block(tokens, modulation, states, rotary, adapter, kv_cache, self.activation_checkpointing, share)
        patches = self.head(tokens, time)
        patches = patches if share is None else share.gather(patches)
        return ops.linear_map(lambda a: unpatchify(a, grid, self.config.patch_size), patches)

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Fresh weights (wan2.1.md 2.6): the head is zero, so the output is; norms start as identity."""
        for name, parameter in self.named_parameters():
            fill_drawn(parameter, partial(_initialise, name, dim=self.config.dim, generator=generator), generator)

    def _embed_patches(self, x: DualOrTensor, share: TokenShare | None = None) -> DualOrTensor:
        patches = ops.linear_map(lambda a: patchify(a, self.config.patch_size), x)
        patches = patches if share is None else share.split(patches)
        tokens = ops.linear(patches, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)
        return widened(tokens) if self.residual == "fp32" else tokens


def _initialise(name: str, weight: Tensor, dim: int, generator: torch.Generator | None) -> None:
    if name.endswith("modulation"):
        nn.init.normal_(weight, std=dim**-0.5, generator=generator)
    elif name.startswith("head.head") or name.endswith(".bias"):
        nn.init.zeros_(weight)
    elif weight.dim() == 1:
        nn.init.ones_(weight)
    elif name.startswith(("text_embedding", "time_embedding")):
        nn.init.normal_(weight, std=0.02, generator=generator)
    else:
        nn.init.xavier_uniform_(weight.flatten(1), generator=generator)
