"""How the tensors of a network are named in each layout, and the config files beside them.

Facts: wan2.1.md section 4, cosmos-predict2.md section 4.

Keys are mapped by whole-key tables, never by chains of substring replacements: the diffusers layout calls Wan's norm3
norm2, so chains need a detour to be right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

from torch import nn

from rcm_sidecar.errors import WeightsError
from rcm_sidecar.networks import Network
from rcm_sidecar.networks.cosmos_predict2 import CosmosConfig
from rcm_sidecar.networks.lora import is_adapter

Family: TypeAlias = Literal["wan2.1", "cosmos-predict2"]
Layout: TypeAlias = Literal["official", "diffusers", "comfyui"]
LAYOUTS: tuple[Layout, ...] = ("official", "diffusers", "comfyui")
COMFYUI_PREFIX = "model.diffusion_model."

_WRAPPERS = {"_checkpoint_wrapped_module", "_orig_mod"}
_CONTAINERS = ("module.", COMFYUI_PREFIX)
_ROLES = ("net_ema.", "net.")
_OTHER_ROLES = ("net_fake_score.",)

# Position tables, counters and quantisation state in the official Cosmos files; none is a weight.
_NO_WEIGHTS = re.compile(r"(^|\.)(pos_embedder\.|accum_\w+$|_extra_state$)")

_COSMOS_GLOBAL = {
    "x_embedder.proj.1": "patch_embed.proj",
    "t_embedder.1.linear_1": "time_embed.t_embedder.linear_1",
    "t_embedder.1.linear_2": "time_embed.t_embedder.linear_2",
    "t_embedding_norm": "time_embed.norm",
    "final_layer.linear": "proj_out",
    "final_layer.adaln_modulation.1": "norm_out.linear_1",
    "final_layer.adaln_modulation.2": "norm_out.linear_2",
}
_COSMOS_ATTENTION = {
    "q_proj": "to_q",
    "k_proj": "to_k",
    "v_proj": "to_v",
    "output_proj": "to_out.0",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}
_COSMOS_BLOCK = {
    "mlp.layer1": "ff.net.0.proj",
    "mlp.layer2": "ff.net.2",
    **{
        f"adaln_modulation_{part}.{layer}": f"norm{number}.linear_{layer}"
        for number, part in enumerate(("self_attn", "cross_attn", "mlp"), start=1)
        for layer in (1, 2)
    },
    **{f"self_attn.{ours}": f"attn1.{theirs}" for ours, theirs in _COSMOS_ATTENTION.items()},
    **{f"cross_attn.{ours}": f"attn2.{theirs}" for ours, theirs in _COSMOS_ATTENTION.items()},
}

_WAN_GLOBAL = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.modulation": "scale_shift_table",
    "head.head": "proj_out",
}
_WAN_ATTENTION = {
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "o": "to_out.0",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
}
_WAN_BLOCK = {
    "modulation": "scale_shift_table",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    **{f"self_attn.{ours}": f"attn1.{theirs}" for ours, theirs in _WAN_ATTENTION.items()},
    **{f"cross_attn.{ours}": f"attn2.{theirs}" for ours, theirs in _WAN_ATTENTION.items()},
}


@dataclass(frozen=True, slots=True)
class _Names:
    """Tables from one layout to the other, and how the list of blocks is called in both."""

    whole: Mapping[str, str]
    block: Mapping[str, str]
    blocks: tuple[str, str]

    def reversed(self) -> _Names:
        """From the other layout to the one."""
        whole, block = ({theirs: ours for ours, theirs in table.items()} for table in (self.whole, self.block))
        return _Names(whole, block, (self.blocks[1], self.blocks[0]))


_TO_DIFFUSERS: Mapping[Family, _Names] = {
    "wan2.1": _Names(_WAN_GLOBAL, _WAN_BLOCK, ("blocks", "blocks")),
    "cosmos-predict2": _Names(_COSMOS_GLOBAL, _COSMOS_BLOCK, ("blocks", "transformer_blocks")),
}
# Beginnings of keys that only one family has, in the official or the diffusers layout.
_FAMILY_SIGNS: Mapping[Family, tuple[str, ...]] = {
    "wan2.1": ("time_projection.", "text_embedding.", "condition_embedder."),
    "cosmos-predict2": ("x_embedder.", "t_embedder.", "transformer_blocks."),
}


def diffusers_names(net: Network) -> dict[str, str]:
    """The diffusers key of every parameter of `net`, by official name."""
    renames = {name: _renamed(name, _TO_DIFFUSERS[net.spec.family]) for name in official_names(net)}
    return {name: _known(theirs, name) for name, theirs in renames.items()}


def family_of(names: Iterable[str]) -> Family | None:
    """Which family names without prefixes belong to, in either layout; None for another kind of network."""
    names = list(names)
    for family, signs in _FAMILY_SIGNS.items():
        if any(name.startswith(signs) for name in names):
            return family
    return None


def official_name(name: str, family: Family) -> str:
    """The official name of a diffusers key; what the table does not know stays as it is."""
    return _renamed(name, _TO_DIFFUSERS[family].reversed()) or name


def official_names(net: Network) -> dict[str, nn.Parameter]:
    """The parameters of `net` by official name, without adapters and the names of wrappers around its modules."""
    named = ((plain_name(name), parameter) for name, parameter in net.named_parameters())
    return {name: parameter for name, parameter in named if not is_adapter(name)}


def plain_name(name: str) -> str:
    """`name` without the path components that compile and checkpoint wrappers add."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def strip_prefixes(keys: Iterable[str]) -> tuple[dict[str, str], str]:
    """Names as the network knows them, by key of the file, and the prefix that was removed.

    What is no weight (position tables, counters, quantisation state) is left out. Of several roles in one file exactly
    one is taken: `net_ema.` if present, else `net.`; the others are left out.

    Raises:
        WeightsError: E_WEIGHTS_LAYOUT when two keys become the same name.
    """
    names = {key: plain_name(key) for key in keys if not _NO_WEIGHTS.search(key)}
    removed = ""
    while container := next((c for c in _CONTAINERS if names and all(n.startswith(c) for n in names.values())), None):
        names = {key: name[len(container) :] for key, name in names.items()}
        removed += container
    role = next((r for r in _ROLES if any(n.startswith(r) for n in names.values())), None)
    if role is not None:
        others = tuple(r for r in (*_ROLES, *_OTHER_ROLES) if r != role)
        names = {key: name.removeprefix(role) for key, name in names.items() if not name.startswith(others)}
        removed += role
    if len(set(names.values())) != len(names):
        raise WeightsError(
            "E_WEIGHTS_LAYOUT", "the weights hold two tensors of the same name once prefixes are removed"
        )
    return names, removed


def detect_layout(names: Iterable[str], prefix: str) -> Layout:
    """The layout of a set of names without prefixes."""
    if any(name.startswith(("condition_embedder.", "transformer_blocks.")) for name in names):
        return "diffusers"
    return "comfyui" if COMFYUI_PREFIX in prefix else "official"


def official_config(net: Network) -> dict[str, Any]:
    """The config.json of the official layout."""
    config = net.config
    if isinstance(config, CosmosConfig):
        return {"_class_name": "MiniTrainDIT", **_json_fields(config)}
    return {"_class_name": "WanModel", "model_type": "t2v", **_json_fields(config)}


def diffusers_config(net: Network) -> dict[str, Any]:
    """The config.json of the diffusers layout."""
    config = net.config
    shared = {
        "attention_head_dim": config.dim // config.num_heads,
        "in_channels": config.in_dim,
        "num_attention_heads": config.num_heads,
        "num_layers": config.num_layers,
        "out_channels": config.out_dim,
        "patch_size": list(config.patch_size),
    }
    if isinstance(config, CosmosConfig):
        return shared | {
            "_class_name": "CosmosTransformer3DModel",
            "adaln_lora_dim": config.adaln_lora_dim,
            "concat_padding_mask": True,
            "extra_pos_embed_type": None,
            "max_size": list(net.spec.max_latent or ()),
            "mlp_ratio": config.mlp_ratio,
            "rope_scale": list(config.rope_ratios),
            "text_embed_dim": config.text_dim,
        }
    return shared | {
        "_class_name": "WanTransformer3DModel",
        "added_kv_proj_dim": None,
        "cross_attn_norm": True,
        "eps": config.eps,
        "ffn_dim": config.ffn_dim,
        "freq_dim": config.freq_dim,
        "qk_norm": "rms_norm_across_heads",
        "text_dim": config.text_dim,
    }


def _json_fields(config: Any) -> dict[str, Any]:
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _known(renamed: str | None, name: str) -> str:
    if renamed is None:
        raise KeyError(name)  # a parameter that was added to a network and not to its table
    return renamed


def _renamed(name: str, names: _Names) -> str | None:
    """`name` in the other layout, or None when the tables do not know it."""
    if not name.startswith(f"{names.blocks[0]}."):
        return _mapped(name, names.whole)
    _, index, rest = [*name.split(".", 2), ""][:3]
    mapped = _mapped(rest, names.block)
    return None if mapped is None else f"{names.blocks[1]}.{index}.{mapped}"


def _mapped(name: str, table: Mapping[str, str]) -> str | None:
    """`name` through the table, whole or up to its last component (`weight`, `bias`)."""
    if name in table:
        return table[name]
    stem, _, leaf = name.rpartition(".")
    return f"{table[stem]}.{leaf}" if stem in table else None
