"""Keys of the original text encoder and VAE files, as the transformers and diffusers classes name them.

Facts: wan2.1.md sections 6.5 and 7.2; cosmos-predict2.md section 8.4 (its VAE is Wan's).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_UMT5_WHOLE: Mapping[str, str] = {
    "token_embedding.weight": "shared.weight",
    "norm.weight": "encoder.final_layer_norm.weight",
}
_UMT5_LAYER: Mapping[str, str] = {
    "norm1": "layer.0.layer_norm",
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
_UMT5_KEY = re.compile(r"blocks\.(\d+)\.(.+)\.weight")

_VAE_WHOLE: Mapping[str, str] = {"conv1": "quant_conv", "conv2": "post_quant_conv"}
_VAE_ENDS: Mapping[str, str] = {"conv1": "conv_in", "head.0": "norm_out", "head.2": "conv_out"}
_VAE_MIDDLE: Mapping[str, str] = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_VAE_RESIDUAL: Mapping[str, str] = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
_VAE_KEY = re.compile(r"(encoder|decoder)\.(middle|downsamples|upsamples)\.(\d+)\.(.+)")
# Blocks of the decoder's flat list in one group: three residual ones, then what doubles the size.
_VAE_GROUP = 4


def umt5_key(key: str) -> str:
    """The key of UMT5EncoderModel; an unknown one stays as it is, for the comparison to name it.

    >>> umt5_key("blocks.3.attn.q.weight")
    'encoder.block.3.layer.0.SelfAttention.q.weight'
    """
    match = _UMT5_KEY.fullmatch(key)
    if match is None or match[2] not in _UMT5_LAYER:
        return _UMT5_WHOLE.get(key, key)
    return f"encoder.block.{match[1]}.{_UMT5_LAYER[match[2]]}.weight"


def vae_key(key: str) -> str:
    """The key of AutoencoderKLWan; an unknown one stays as it is, for the comparison to name it.

    >>> vae_key("decoder.upsamples.4.shortcut.weight")
    'decoder.up_blocks.1.resnets.0.conv_shortcut.weight'
    """
    match = _VAE_KEY.fullmatch(key)
    if match is None:
        stem, _, leaf = key.rpartition(".")
        side, _, rest = stem.partition(".")
        renamed = f"{side}.{_VAE_ENDS[rest]}" if rest in _VAE_ENDS else _VAE_WHOLE.get(stem, stem)
        return f"{renamed}.{leaf}"
    side, part, index, rest = match.groups()
    if part == "middle":
        block = f"mid_block.{_VAE_MIDDLE.get(index, index)}"
    elif part == "downsamples":
        block = f"down_blocks.{index}"
    else:
        group, place = divmod(int(index), _VAE_GROUP)
        block = f"up_blocks.{group}." + ("upsamplers.0" if place == _VAE_GROUP - 1 else f"resnets.{place}")
    stem, _, leaf = rest.rpartition(".")
    return f"{side}.{block}.{_VAE_RESIDUAL.get(stem, stem)}.{leaf}"
