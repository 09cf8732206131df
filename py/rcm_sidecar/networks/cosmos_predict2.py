"""Cosmos-Predict2 text-to-image transformer, for student, teacher and critic, on Tensors or Duals.

Architecture, names and shapes: cosmos-predict2.md sections 1-4. Code of its own, written from those facts.
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
from rcm_sidecar.networks.rotary import RotaryTables, axis_widths
from rcm_sidecar.networks.spec import NetworkSpec
from rcm_sidecar.networks.text_cache import TextCache

# Longest side in positions: 128 latent frames, 240 latent rows and columns.
_MAX_LATENT = (128, 240, 240)
_ROTARY_BASE = 10000.0


@dataclass(frozen=True, slots=True)
class CosmosConfig:
    """Sizes of one network; the defaults are those all releases share.

    Attributes:
        dim: Model width.
        num_heads: Attention heads; dim / num_heads must be even.
        num_layers: Blocks.
        in_dim: Latent channels in; the padding mask is one more.
        out_dim: Latent channels out.
        text_dim: Width of the text states.
        mlp_ratio: Hidden width of the feed-forward layers over dim.
        adaln_lora_dim: Width of the modulation's bottleneck.
        text_len: Rows of the text states of the released weights; the network takes any number.
        patch_size: Latent (frames, rows, columns) a token covers; one frame.
        rope_ratios: Extrapolation of the rotary positions along (frames, rows, columns).
        eps: Of all norms.
    """

    dim: int
    num_heads: int
    num_layers: int
    in_dim: int = 16
    out_dim: int = 16
    text_dim: int = 1024
    mlp_ratio: float = 4.0
    adaln_lora_dim: int = 256
    text_len: int = 512
    patch_size: tuple[int, int, int] = (1, 2, 2)
    rope_ratios: tuple[float, float, float] = (1.0, 4.0, 4.0)
    eps: float = 1e-6

    @property
    def ffn_dim(self) -> int:
        """Hidden width of the feed-forward layers."""
        return round(self.dim * self.mlp_ratio)

    @property
    def rotary_bases(self) -> tuple[float, float, float]:
        """Base of the frequencies along (frames, rows, columns): 10000 ratio^(d/(d-2)), d the axis' share of a head."""
        bases = [
            _ROTARY_BASE * ratio ** (width / (width - 2)) if width > 2 else _ROTARY_BASE
            for ratio, width in zip(self.rope_ratios, axis_widths(self.dim // self.num_heads), strict=True)
        ]
        return bases[0], bases[1], bases[2]

    def __post_init__(self) -> None:
        """Refuse sizes that fit no network."""
        check_sizes(self)
        if self.patch_size[0] != 1:
            raise ConfigError("E_NETWORK_SIZE", f"a patch covers one frame, not {self.patch_size[0]}")
        if self.ffn_dim < 1:
            raise ConfigError("E_NETWORK_SIZE", f"mlp_ratio {self.mlp_ratio} leaves no feed-forward layer")


PRESETS: Mapping[str, CosmosConfig] = {
    "cosmos-predict2-t2i-0.6b": CosmosConfig(dim=1280, num_heads=20, num_layers=20),
    "cosmos-predict2-t2i-2b": CosmosConfig(dim=2048, num_heads=16, num_layers=28),
    "cosmos-predict2-t2i-14b": CosmosConfig(dim=5120, num_heads=40, num_layers=36),
    "cosmos-predict2-tiny": CosmosConfig(dim=128, num_heads=2, num_layers=2),
}

# (height, width) of the bucket the releases were trained with (section 9).
_PIXEL_SIZES = ((1024, 1024), (880, 1168), (1168, 880), (768, 1360), (1360, 768))


def make(name: str, config: CosmosConfig) -> CosmosPredict2:
    """The network of `config`, parameters allocated but not initialised."""
    spec = NetworkSpec(
        name=name,
        family="cosmos-predict2",
        time_scale=1.0,
        in_dim=config.in_dim,
        out_dim=config.out_dim,
        patch=config.patch_size,
        text_len=config.text_len,
        text_dim=config.text_dim,
        negative="zeros",
        sampler_times=(1.3, 1.0, 0.6),
        teacher_shift=1.0,
        pixel_sizes=() if name == "cosmos-predict2-tiny" else _PIXEL_SIZES,
        max_latent=_MAX_LATENT,
    )
    return CosmosPredict2(config, spec)


class PatchEmbedding(nn.Module):
    """Patches to tokens. The last columns of the weight belong to the padding mask, which is zero for images.

    Args:
        config: Sizes.
    """

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        cells = math.prod(config.patch_size)
        self.used = config.in_dim * cells
        self.proj = nn.Sequential(nn.Identity(), Linear(self.used + cells, config.dim, bias=False))

    def forward(self, patches: DualOrTensor) -> DualOrTensor:
        """[B, L, C kt kh kw] to [B, L, D]."""
        # A product with the mask's columns would add exact zeros, to the value and to the tangent.
        return ops.linear(patches, cast(Tensor, self.proj[1].weight)[:, : self.used])


class TimeMlp(nn.Module):
    """Time features [B, D] to the part [B, 3 D] of the modulation that all blocks share.

    Args:
        dim: Model width.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear_1 = WideLinear(dim, dim, bias=False)
        self.activation = Silu()
        self.linear_2 = WideLinear(dim, 3 * dim, bias=False)

    def forward(self, features: DualOrTensor) -> DualOrTensor:
        """[B, D] to [B, 3 D]."""
        return cast(DualOrTensor, self.linear_2(self.activation(self.linear_1(features))))


def _modulation(config: CosmosConfig, parts: int) -> nn.Sequential:
    """Bottleneck from the condition [B, D] to [B, parts D], under the layer names of the official network.

    No activation in between. The official SiLU in front is applied once for all blocks, hence the identity.
    """
    return nn.Sequential(
        nn.Identity(),
        WideLinear(config.dim, config.adaln_lora_dim, bias=False),
        WideLinear(config.adaln_lora_dim, parts * config.dim, bias=False),
    )


def _rows(own: DualOrTensor, shared: DualOrTensor, parts: int) -> tuple[DualOrTensor, ...]:
    """A layer's own modulation plus the shared part, both [B, parts D], as `parts` tensors [B, 1, D]."""
    both = ops.linear_map(lambda a: a.unflatten(-1, (parts, -1)), ops.add(own, shared))
    return ops.unbind(token_axis(both), 1)


class Attention(nn.Module):
    """Projections and qk-norm of one attention; the norm spans one head, after the heads are split.

    Args:
        config: Sizes.
        source_dim: Width of what keys and values are made of.
    """

    def __init__(self, config: CosmosConfig, source_dim: int) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.q_proj = Linear(config.dim, config.dim, bias=False)
        self.k_proj = Linear(source_dim, config.dim, bias=False)
        self.v_proj = Linear(source_dim, config.dim, bias=False)
        self.output_proj = Linear(config.dim, config.dim, bias=False)
        self.q_norm = RmsNorm(config.dim // config.num_heads, config.eps)
        self.k_norm = RmsNorm(config.dim // config.num_heads, config.eps)

    def queries(self, x: DualOrTensor, adapter: Role | None) -> DualOrTensor:
        """[B, L, D] to normalised [B, L, H, d]."""
        return cast(DualOrTensor, self.q_norm(split_heads(self.q_proj(x, adapter), self.heads)))

    def keys(self, source: DualOrTensor, adapter: Role | None) -> DualOrTensor:
        """[B, L, source_dim] to normalised [B, L, H, d]."""
        return cast(DualOrTensor, self.k_norm(split_heads(self.k_proj(source, adapter), self.heads)))

    def values(self, source: DualOrTensor, adapter: Role | None) -> DualOrTensor:
        """[B, L, source_dim] to [B, L, H, d]."""
        return split_heads(self.v_proj(source, adapter), self.heads)


class SelfAttention(Attention):
    """Attention among the tokens, with rotary positions (half-split pairs)."""

    def forward(
        self,
        x: DualOrTensor,
        rotary: Tensor,
        adapter: Role | None,
        share: TokenShare | None,
    ) -> DualOrTensor:
        """[B, L, D] to [B, L, D]; `rotary` [L, d/2, 2]; with a `share`, L are this process's tokens."""
        q = self.q_norm.rotated(self.q_proj(x, adapter), rotary, interleaved=False)
        k = self.k_norm.rotated(self.k_proj(x, adapter), rotary, interleaved=False)
        v = self.values(x, adapter)
        out = ops.attention(heads_first(q), heads_first(k), heads_first(v), share=share)
        return cast(DualOrTensor, self.output_proj(merge_heads(out), adapter))


class CrossAttention(Attention):
    """Attention from the tokens to the text; every text row takes part, zero padding too (key 0, value 0)."""

    def keys_values(self, text: Tensor, adapter: Role | None) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, Lt, d] of the text [B, Lt, text_dim]; they carry no tangent."""
        k, v = heads_first(self.keys(text, adapter)), heads_first(self.values(text, adapter))
        return cast(Tensor, k), cast(Tensor, v)

    def forward(self, x: DualOrTensor, text: tuple[Tensor, Tensor], adapter: Role | None) -> DualOrTensor:
        """[B, L, D] to [B, L, D]; `text` from `keys_values`."""
        out = ops.attention(heads_first(self.queries(x, adapter)), *text)
        return cast(DualOrTensor, self.output_proj(merge_heads(out), adapter))


class Mlp(nn.Module):
    """Linear, exact GELU, linear.

    Args:
        config: Sizes.
    """

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        self.layer1 = Linear(config.dim, config.ffn_dim, bias=False)
        self.activation = Gelu("none")
        self.layer2 = Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: DualOrTensor, adapter: Role | None) -> DualOrTensor:
        """[B, L, D] to [B, L, D]."""
        return cast(DualOrTensor, self.layer2(self.activation(self.layer1(x, adapter)), adapter))


class Block(nn.Module):
    """One transformer block (cosmos-predict2.md 3.4): self-attention, cross-attention, MLP, each modulated and gated.

    Args:
        config: Sizes.
        index: Its place, the key of the text cache.
    """

    def __init__(self, config: CosmosConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.norm = LayerNorm(config.dim, config.eps)
        self.self_attn = SelfAttention(config, config.dim)
        self.cross_attn = CrossAttention(config, config.text_dim)
        self.mlp = Mlp(config)
        self.adaln_modulation_self_attn = _modulation(config, 3)
        self.adaln_modulation_cross_attn = _modulation(config, 3)
        self.adaln_modulation_mlp = _modulation(config, 3)

    def forward(
        self,
        x: DualOrTensor,
        condition: DualOrTensor,
        shared: DualOrTensor,
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
            condition: Activated time features [B, D].
            shared: The modulation's part that all blocks share [B, 3 D].
            text: Text states [B, Lt, text_dim].
            rotary: [L, d/2, 2].
            adapter: LoRA role; the recomputation gets the one of this call.
            kv_cache: Text keys and values of earlier passes, in no-grad passes only.
            checkpointing: How activations are kept for backward.
            share: How the tokens are shared by several processes; `x` and `rotary` are this one's.

        Returns:
            [B, L, D] in the dtype of `x`.
        """

        def body(
            x: DualOrTensor,
            condition: DualOrTensor,
            shared: DualOrTensor,
            text: Tensor,
        ) -> DualOrTensor:
            return self._body(x, condition, shared, text, rotary, adapter, kv_cache, share)

        return run_block(body, x, condition, shared, text, checkpointing=checkpointing)

    def _body(
        self,
        x: DualOrTensor,
        condition: DualOrTensor,
        shared: DualOrTensor,
        text: Tensor,
        rotary: Tensor,
        adapter: Role | None,
        kv_cache: TextCache | None,
        share: TokenShare | None,
    ) -> DualOrTensor:
        shift, scale, gate = _rows(self.adaln_modulation_self_attn(condition), shared, 3)
        attended = self.self_attn(self.norm(x, (shift, scale)), rotary, adapter, share)

        pair = text_pair(kv_cache, self.index, lambda: self.cross_attn.keys_values(text, adapter))
        shift, scale, next_gate = _rows(self.adaln_modulation_cross_attn(condition), shared, 3)
        x, normed = self.norm.after(x, attended, gate, (shift, scale))
        attended = self.cross_attn(normed, pair, adapter)
        shift, scale, mlp_gate = _rows(self.adaln_modulation_mlp(condition), shared, 3)
        x, normed = self.norm.after(x, attended, next_gate, (shift, scale))
        return ops.gate(x, self.mlp(normed, adapter), mlp_gate)


class FinalLayer(nn.Module):
    """Final norm, modulation (shift first, then scale) and projection to patches.

    Args:
        config: Sizes.
    """

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        self.norm = LayerNorm(config.dim, config.eps)
        self.linear = WideLinear(config.dim, math.prod(config.patch_size) * config.out_dim, bias=False)
        self.adaln_modulation = _modulation(config, 2)

    def forward(self, x: DualOrTensor, condition: DualOrTensor, shared: DualOrTensor) -> DualOrTensor:
        """Tokens [B, L, D], condition [B, D], shared [B, 3 D] to patches [B, L, kh kw C], at least float32."""
        part = ops.linear_map(lambda a: a[:, : 2 * a.shape[-1] // 3], shared)
        shift, scale = _rows(self.adaln_modulation(condition), part, 2)
        return cast(DualOrTensor, self.linear(self.norm(widened(x), (shift, scale))))


class CosmosPredict2(nn.Module):
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
    wide_parts = ("t_embedder", "t_embedding_norm", "final_layer")
    lora_targets: Mapping[Target, tuple[str, ...]] = {
        "attention": tuple(f"{part}_attn.{layer}_proj" for part in ("self", "cross") for layer in (*"qkv", "output")),
        "ffn": ("mlp.layer1", "mlp.layer2"),
    }

    def __init__(self, config: CosmosConfig, spec: NetworkSpec) -> None:
        super().__init__()
        self.config = config
        self.spec = spec
        self.adapters: tuple[Role, ...] = ()
        self.context: ContextGroup | None = None
        self.x_embedder = PatchEmbedding(config)
        self.t_embedder = nn.Sequential(nn.Identity(), TimeMlp(config.dim))
        self.t_embedding_norm = RmsNorm(config.dim, config.eps)
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.num_layers))
        self.final_layer = FinalLayer(config)
        self._rotary = RotaryTables(config.dim // config.num_heads, config.rotary_bases)

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
            x: Latent [B, C, T, H, W], T = 1 for images, Tensor or Dual.
            t: Rectified-flow time [B] in 0..1, float32 or float64, Tensor or Dual.
            text: Text states [B, L, text_dim], any L, zero rows after the text's end. No tangent.
            adapter: LoRA role; None means the base weights.
            kv_cache: Text keys and values to fill and reuse, in no-grad passes only.

        Returns:
            [B, out_dim, T, H, W], at least float32: a Tensor, or a Dual when `x` or `t` is one.

        Raises:
            ValueError: Shapes that do not fit, or sides beyond the last rotary position.
            TypeError: Time in half precision (it would make the derivative wrong).
            ConfigError: E_ADAPTER_UNKNOWN, an adapter this network does not have.
        """
        check_inputs(self.spec, x, t, text)
        check_adapter(adapter, self.adapters)
        if kv_cache is not None:
            kv_cache.bind(text, adapter)
        patch = self.config.patch_size
        grid = token_grid(primal_of(x), self.config.patch_size)
        share = None if self.context is None else self.context.share(math.prod(grid))
        patches = ops.linear_map(lambda a: patchify(a, patch), x)
        tokens = self.x_embedder(patches if share is None else share.split(patches))
        tokens = widened(tokens) if self.residual == "fp32" else tokens
        features = ops.sinusoid(t, self.config.dim)
        shared = self.t_embedder(features)
        condition = ops.silu(self.t_embedding_norm(features))
        value = primal_of(tokens)
        rotary = self._rotary.get(grid, value.dtype, value.device)
        rotary = rotary if share is None else share.own_rows(rotary)
        for block in self.blocks:
            tokens = block(
                tokens, condition, shared, text, rotary, adapter, kv_cache, self.activation_checkpointing, share
            )
        patches = self.final_layer(tokens, condition, shared)
        patches = patches if share is None else share.gather(patches)
        return ops.linear_map(lambda a: unpatchify(a, grid, patch), patches)

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Fresh weights (cosmos-predict2.md 3.9): modulations start at the shared part alone, norms as identity."""
        for name, parameter in self.named_parameters():
            fill_drawn(parameter, partial(_initialise, name, generator=generator), generator)


def _initialise(name: str, weight: Tensor, generator: torch.Generator | None) -> None:
    if weight.dim() == 1:
        nn.init.ones_(weight)
    elif "adaln_modulation" in name and name.endswith(".2.weight"):
        nn.init.zeros_(weight)
    else:
        std = weight.shape[1] ** -0.5
        nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std, generator=generator)
