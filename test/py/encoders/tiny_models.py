"""Whole models with tiny random weights, in the folder layouts of the releases: what `weights fetch` would bring.

As a program, `python -m encoders.tiny_models FOLDER NAME...` makes those of some names below a folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from rcm_sidecar.checkpoints import save_network
from rcm_sidecar.networks import build

WIDTH = 16
LETTERS = "abcdefghijklmnopqrstuvwxyz'.-\""
WAN_SIZES = {"dim": 24, "num_heads": 2, "num_layers": 1, "ffn_dim": 16, "text_dim": WIDTH, "text_len": 512}
COSMOS_SIZES = {"dim": 32, "num_heads": 2, "num_layers": 1, "adaln_lora_dim": 8, "text_dim": WIDTH}


def tokenizer():
    """Every letter is a token; a whole word is where it is known. Ids 0 and 1 are padding and the end, as in T5."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -4.0) for letter in LETTERS] + [("▁cat", -3.0), ("▁mat", -3.5)]
    made = Tokenizer(models.Unigram(pieces, unk_id=2))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return made


def umt5(seed=0):
    torch.manual_seed(seed)
    sizes = dict(d_model=WIDTH, d_kv=4, d_ff=24, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu")
    return _randomised(UMT5EncoderModel(UMT5Config(vocab_size=tokenizer().get_vocab_size(), **sizes)))


def t5(seed=0):
    torch.manual_seed(seed)
    sizes = dict(d_model=WIDTH, d_kv=8, d_ff=24, num_layers=2, num_heads=4, feed_forward_proj="relu")
    return _randomised(T5EncoderModel(T5Config(vocab_size=tokenizer().get_vocab_size(), **sizes)))


def vae(seed=0):
    torch.manual_seed(seed)
    return AutoencoderKLWan(base_dim=4).eval()


def network(name, sizes, seed=0):
    net = build(name, generator=torch.Generator().manual_seed(seed), **sizes)
    source = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():  # a fresh one answers zero
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=source))
    return net


def native_umt5_keys(model):
    """State dict of `models_t5_umt5-xxl-enc-bf16.pth`: wan2.1.md section 7.2, written out."""
    state = model.state_dict()
    native = {"token_embedding.weight": state["shared.weight"], "norm.weight": state["encoder.final_layer_norm.weight"]}
    for index in range(model.config.num_layers):
        attention, forward = (f"encoder.block.{index}.layer.{part}" for part in (0, 1))
        native |= {
            f"blocks.{index}.norm1.weight": state[f"{attention}.layer_norm.weight"],
            f"blocks.{index}.norm2.weight": state[f"{forward}.layer_norm.weight"],
            f"blocks.{index}.ffn.gate.0.weight": state[f"{forward}.DenseReluDense.wi_0.weight"],
            f"blocks.{index}.ffn.fc1.weight": state[f"{forward}.DenseReluDense.wi_1.weight"],
            f"blocks.{index}.ffn.fc2.weight": state[f"{forward}.DenseReluDense.wo.weight"],
            f"blocks.{index}.pos_embedding.embedding.weight": state[
                f"{attention}.SelfAttention.relative_attention_bias.weight"
            ],
        }
        for part in "qkvo":
            native[f"blocks.{index}.attn.{part}.weight"] = state[f"{attention}.SelfAttention.{part}.weight"]
    return {key: value.bfloat16() for key, value in native.items()}


def native_vae_keys(model):
    """State dict of `Wan2.1_VAE.pth`: wan2.1.md section 6.5, written from the original's side."""
    state, native = model.state_dict(), {}
    residual = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
    residual["conv_shortcut"] = "shortcut"
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] in ("quant_conv", "post_quant_conv"):
            native[key.replace("post_quant_conv", "conv2").replace("quant_conv", "conv1")] = value
            continue
        side, place, rest = parts[0], parts[1], parts[2:]
        if place in ("conv_in", "norm_out", "conv_out"):
            names = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}
            native[".".join([side, names[place], *rest])] = value
        elif place == "mid_block":
            index = {"resnets": {"0": "0", "1": "2"}, "attentions": {"0": "1"}}[rest[0]][rest[1]]
            native[".".join([side, "middle", index, residual.get(rest[2], rest[2]), *rest[3:]])] = value
        elif place == "down_blocks":
            native[".".join([side, "downsamples", rest[0], residual.get(rest[1], rest[1]), *rest[2:]])] = value
        else:
            index = str(4 * int(rest[0]) + (3 if rest[1] == "upsamplers" else int(rest[2])))
            native[".".join([side, "upsamples", index, residual.get(rest[3], rest[3]), *rest[4:]])] = value
    return native


def wan_original(folder: Path) -> Path:
    folder.mkdir(parents=True)
    save_network(network("wan2.1-tiny", WAN_SIZES), folder)
    torch.save(native_umt5_keys(umt5()), folder / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save(native_vae_keys(vae()), folder / "Wan2.1_VAE.pth")
    (folder / "google" / "umt5-xxl").mkdir(parents=True)
    tokenizer().save(str(folder / "google" / "umt5-xxl" / "tokenizer.json"))
    return folder


def wan_diffusers(folder: Path) -> Path:
    return _pipeline(folder, network("wan2.1-tiny", WAN_SIZES), umt5())


def cosmos_diffusers(folder: Path) -> Path:
    return _pipeline(folder, network("cosmos-predict2-tiny", COSMOS_SIZES), t5())


def cosmos_original(folder: Path) -> Path:
    """model.pt and the VAE as tokenizer/tokenizer.pth; the text encoder is that of the pipeline beside them."""
    _pipeline(folder, network("cosmos-predict2-tiny", COSMOS_SIZES), t5(), parts=("text_encoder", "tokenizer"))
    save_network(network("cosmos-predict2-tiny", COSMOS_SIZES), folder / "model.pt")
    torch.save(native_vae_keys(vae()), folder / "tokenizer" / "tokenizer.pth")
    return folder


def export_folder(folder: Path, name: str, sizes, sampler, *, encoders: Path | None, latent) -> Path:
    """What a run leaves of a student or teacher that reads prompts."""
    folder.mkdir(parents=True)
    save_network(network(name, sizes), folder / "model.safetensors")
    camel = {"num_heads": "numHeads", "num_layers": "numLayers", "ffn_dim": "ffnDim", "text_dim": "textDim"}
    camel |= {"text_len": "textLen", "adaln_lora_dim": "adalnLoraDim"}
    document = {
        "schema": 1,
        "kind": "teacher" if "guidance" in sampler else "student",
        "network": {"name": name, "overrides": {camel.get(key, key): value for key, value in sizes.items()}},
        "weights": "model.safetensors",
        "conditioner": None,
        "latent": {"shape": list(latent), "mean": 0.0, "std": 1.0},
        "textEncoder": "auto",
        "encoders": None if encoders is None else str(encoders),
        "timeScale": 1000.0 if name.startswith("wan") else 1.0,
        "sampler": sampler,
        "step": 10,
        "runId": "test",
    }
    (folder / "sampler.json").write_text(json.dumps(document))
    return folder


def _pipeline(folder, net, encoder, parts=("transformer", "text_encoder", "tokenizer", "vae")):
    folder.mkdir(parents=True)
    if "transformer" in parts:
        save_network(net, folder / "transformer", "diffusers")
    encoder.bfloat16().save_pretrained(folder / "text_encoder")
    (folder / "tokenizer").mkdir()
    tokenizer().save(str(folder / "tokenizer" / "tokenizer.json"))
    if "vae" in parts:
        vae().save_pretrained(folder / "vae")
    return folder


def _randomised(model):
    """Larger weights than fresh ones, so that every part has a say in the states; norms away from one."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(1 + 0.3 * torch.randn_like(parameter) if parameter.dim() == 1 else parameter * 1.5)
    return model.eval()


MAKERS = {make.__name__: make for make in (wan_original, wan_diffusers, cosmos_original, cosmos_diffusers)}


if __name__ == "__main__":
    for name in sys.argv[2:]:
        MAKERS[name](Path(sys.argv[1]) / name)
