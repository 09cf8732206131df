"""Layers on Duals that several networks share. Parameter names are those of torch's own layers."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from rcm_sidecar.dual import DualOrTensor, ops
from rcm_sidecar.dual.number import wide_dtype, widen
from rcm_sidecar.networks.inputs import Role

Modulation: TypeAlias = tuple[DualOrTensor, DualOrTensor]
"""(shift, scale), each [B, 1, D]."""


class Linear(nn.Linear):
    """`nn.Linear` for Tensors and Duals, in the weight's dtype."""

    def forward(self, x: Any, adapter: Role | None = None) -> Any:
        """[..., in] to [..., out]; no adapter is attached here, so every role gets the same (see `lora.py`)."""
        return ops.linear(x, self.weight, self.bias)


class FeedForward(nn.Sequential):
    """Linear, GELU, Linear; in torch's own Sequential a role cannot reach the linear layers.

    Args:
        dim: Width.
        hidden: Width in between.
        approximate: Form of the GELU.
    """

    def __init__(self, dim: int, hidden: int, approximate: Literal["none", "tanh"]) -> None:
        super().__init__(Linear(dim, hidden), Gelu(approximate), Linear(hidden, dim))

    def forward(self, x: DualOrTensor, adapter: Role | None = None) -> DualOrTensor:
        """[..., D] to [..., D]."""
        into, activation, out = self
        return cast(DualOrTensor, out(activation(into(x, adapter)), adapter))


class WideLinear(nn.Linear):
    """A linear layer of the time path or the head: at least float32, whatever dtype its weights are stored in."""

    def forward(self, x: Any) -> Any:
        """[..., in] to [..., out]."""
        return ops.linear(x, widen(self.weight), None if self.bias is None else widen(self.bias))


class LayerNorm(nn.Module):
    """LayerNorm over the last axis.

    Args:
        dim: Width.
        eps: Added to the variance.
        affine: Whether it has a weight and a bias.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, dim: int, eps: float, affine: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.register_parameter("weight", nn.Parameter(torch.ones(dim)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(dim)) if affine else None)

    def forward(self, x: DualOrTensor, modulation: Modulation | None = None) -> DualOrTensor:
        """[..., D] to [..., D]; with `modulation` (shift, scale), x is [B, L, D] and there is no affine part."""
        if modulation is None:
            return ops.layer_norm(x, self.weight, self.bias, self.eps)
        return ops.norm_modulate(x, *modulation, self.eps)

    def after(
        self, x: DualOrTensor, y: DualOrTensor, gate: DualOrTensor | None = None, modulation: Modulation | None = None
    ) -> tuple[DualOrTensor, DualOrTensor]:
        """The residual x + y gate [B, L, D] (x + y without a gate), and this norm of it."""
        return ops.residual_norm(x, y, gate, weight=self.weight, bias=self.bias, modulation=modulation, eps=self.eps)


class RmsNorm(nn.Module):
    """RMSNorm over the last axis with a weight.

    Args:
        dim: Width.
        eps: Added to the mean square.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: DualOrTensor) -> DualOrTensor:
        """[..., D] to [..., D]."""
        return ops.rms_norm(x, self.weight, self.eps)

    def rotated(self, x: DualOrTensor, rotary: Tensor, *, interleaved: bool) -> DualOrTensor:
        """[B, L, H d] to normalised and rotated heads [B, L, H, d]; `rotary` [L, d/2, 2], the weight [H d] or [d]."""
        return ops.rms_norm_rope(x, self.weight, rotary, interleaved=interleaved, eps=self.eps)


class Gelu(nn.Module):
    """GELU, tanh or erf form.

    Args:
        approximate: "tanh" (Wan) or "none" (Cosmos).
    """

    def __init__(self, approximate: Literal["none", "tanh"]) -> None:
        super().__init__()
        self.approximate: Literal["none", "tanh"] = approximate

    def forward(self, x: DualOrTensor) -> DualOrTensor:
        """Elementwise."""
        return ops.gelu(x, self.approximate)


class Silu(nn.Module):
    """SiLU."""

    def forward(self, x: DualOrTensor) -> DualOrTensor:
        """Elementwise."""
        return ops.silu(x)


def split_heads(x: DualOrTensor, heads: int) -> DualOrTensor:
    """[B, L, H d] to [B, L, H, d]."""
    return ops.linear_map(lambda a: a.unflatten(-1, (heads, -1)), x)


def heads_first(x: DualOrTensor) -> DualOrTensor:
    """[B, L, H, d] to [B, H, L, d]."""
    return ops.linear_map(lambda a: a.transpose(1, 2), x)


def merge_heads(x: DualOrTensor) -> DualOrTensor:
    """[B, H, L, d] to [B, L, H d]."""
    return ops.linear_map(lambda a: a.transpose(1, 2).flatten(2), x)


def widened(x: DualOrTensor) -> DualOrTensor:
    """`x` in at least float32."""
    return ops.linear_map(lambda a: a.to(wide_dtype(a.dtype)), x)


def token_axis(x: DualOrTensor) -> DualOrTensor:
    """[..., D] to [..., 1, D], so that it broadcasts over the tokens."""
    return ops.linear_map(lambda a: a.unsqueeze(-2), x)


def patchify(x: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """[B, C, T, H, W] to tokens [B, L, C kt kh kw], channel slowest; tokens row-major over (frame, row, column)."""
    batch, channels, frames, rows, columns = x.shape
    kt, kh, kw = patch
    grid = x.reshape(batch, channels, frames // kt, kt, rows // kh, kh, columns // kw, kw)
    return grid.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)


def token_grid(x: Tensor, patch: tuple[int, int, int]) -> tuple[int, int, int]:
    """Tokens along (frames, rows, columns) of a latent [B, C, T, H, W]."""
    kt, kh, kw = patch
    return x.shape[2] // kt, x.shape[3] // kh, x.shape[4] // kw


def unpatchify(tokens: Tensor, grid: tuple[int, int, int], patch: tuple[int, int, int]) -> Tensor:
    """Tokens [B, L, kt kh kw C], channel fastest (not the order of `patchify`), to [B, C, T, H, W]."""
    (frames, rows, columns), (kt, kh, kw) = grid, patch
    cells = tokens.reshape(tokens.shape[0], frames, rows, columns, kt, kh, kw, -1)
    ordered = cells.permute(0, 7, 1, 4, 2, 5, 3, 6)
    return ordered.reshape(tokens.shape[0], -1, frames * kt, rows * kh, columns * kw)
