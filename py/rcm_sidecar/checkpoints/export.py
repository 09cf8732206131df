"""Export folders: weights in a layout, sampler.json, the label table and a model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from rcm_sidecar.checkpoints.adapters import AdapterLayout, save_adapter
from rcm_sidecar.checkpoints.layouts import official_config, official_names
from rcm_sidecar.checkpoints.sampler_file import SAMPLER_FILE
from rcm_sidecar.checkpoints.save import save_network
from rcm_sidecar.config import Lora, RunConfig, config_document
from rcm_sidecar.data import LabelConditioner
from rcm_sidecar.data.digits import load_digits_data
from rcm_sidecar.data.label_conditioner import CONDITIONER_FILE
from rcm_sidecar.files import write_file, write_json, write_tensors
from rcm_sidecar.networks import Network
from rcm_sidecar.networks.inputs import Role
from rcm_sidecar.networks.lora import Whole

OFFICIAL_FILE = "model.safetensors"
DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"

Kind = Literal["student", "teacher"]


@dataclass(frozen=True)
class Product:
    """What is exported.

    Attributes:
        kind: Which sampler it needs.
        network: With the weights to write, perhaps sharded.
        adapter: LoRA role whose adapters are merged into them; None: they are what is written.
        conditioner: Its label table; None for a model that takes texts.
        latent_shape: [C,T,H,W] of its samples.
        config: Of the run that made it.
        step: Training step.
        run_id: Of that run.
        whole: Gives all of a parameter of the network.
    """

    kind: Kind
    network: Network
    adapter: Role | None
    conditioner: LabelConditioner | None
    latent_shape: tuple[int, int, int, int]
    config: RunConfig
    step: int
    run_id: str
    whole: Whole = lambda tensor: tensor


def export(product: Product, folder: Path, layout: Literal["official", "diffusers", "comfyui"]) -> Path:
    """Write an export folder; files of an earlier export of the same layout are replaced.

    Returns:
        The folder.

    Raises:
        HostError: E_DISK_FULL.
        WeightsError: E_WEIGHTS_WRITE, or E_WEIGHTS_LAYOUT for a layout the network cannot be written in.
    """
    network = product.network
    target = folder / OFFICIAL_FILE if layout == "official" else folder
    written = save_network(network, target, layout, adapter=product.adapter, whole=product.whole)
    if layout == "official":
        write_json(folder / "config.json", official_config(network))
    weights = DIFFUSERS_FILE if layout == "diffusers" else written.name
    if product.conditioner is not None:
        write_tensors(folder / CONDITIONER_FILE, {"table": product.conditioner.table})
    write_json(folder / SAMPLER_FILE, sampler_document(product, weights))
    write_file(folder / "README.md", model_card(product, layout).encode())
    return folder


def export_adapters(product: Product, folder: Path, teacher_key: str) -> Path:
    """Write the adapters of a LoRA alone, under the official and under ComfyUI's names, beside a card.

    Args:
        product: With an adapter.
        folder: Gets `official.safetensors`, `comfyui.safetensors` and README.md.
        teacher_key: Content hash of the weights the adapters belong to.

    Returns:
        The folder.

    Raises:
        HostError: E_DISK_FULL.
    """
    settings = product.config.student.lora
    assert product.adapter is not None and settings is not None  # they come together
    facts = {"base": _teacher_name(product.config), "base_hash": teacher_key, "run_id": product.run_id}
    layouts: tuple[AdapterLayout, ...] = ("official", "comfyui")
    for layout in layouts:
        file = folder / f"{layout}.safetensors"
        save_adapter(product.network, product.adapter, file, layout, metadata=facts, whole=product.whole)
    write_file(folder / "README.md", _adapter_card(product, settings, teacher_key).encode())
    return folder


def sampler_document(product: Product, weights: str) -> dict[str, Any]:
    """The content of sampler.json: all that sampling needs to know."""
    config = product.config
    model: Mapping[str, Any] = config_document(config)["model"]
    return {
        "schema": 1,
        "kind": product.kind,
        "network": {"name": config.model.name, "overrides": model["overrides"]},
        "weights": weights,
        "conditioner": None if product.conditioner is None else CONDITIONER_FILE,
        "latent": {"shape": list(product.latent_shape), **_pixel_scale(config)},
        "textEncoder": config.model.text_encoder,
        "encoders": config.model.path,
        "timeScale": product.network.spec.time_scale,
        "sampler": _sampler(product.kind, config),
        "step": product.step,
        "runId": product.run_id,
    }


def model_card(product: Product, layout: str) -> str:
    """README.md of an export folder."""
    config = product.config
    count = sum(parameter.numel() for parameter in official_names(product.network).values())
    if product.kind == "student":
        what = f"A few-step student, distilled with {config.method} from `{_teacher_name(config)}`."
        steps = ", ".join(str(number + 1) for number in range(len(config.student.sampler.times) + 1))
        how = f"It needs {steps} network calls a sample and no guidance."
        license_note = "The license of the teacher and of the training data applies to these weights."
    else:
        what = "A teacher, trained by flow matching."
        sampler = config.teacher.sampler
        how = f"Sample it with {sampler.kind}, {sampler.steps} steps, guidance {config.teacher.guidance:g}."
        license_note = "The license of the training data applies to these weights."
    if product.adapter is not None and config.student.lora is not None:
        what += f" Its LoRA of rank {config.student.lora.rank} is merged into the teacher's weights."
    lines = [
        f"# {config.name}",
        "",
        what,
        how,
        "",
        f"* Network: {config.model.name}, {count:,} parameters, layout {layout}, float32",
        f"* Training step: {product.step}",
        f"* Run: {product.run_id}",
        f"* Made with rcm-bridge and PyTorch {torch.__version__}",
        "",
        "`sampler.json` holds the sampler's settings. Draw samples with:",
        "",
        "```",
        "rcm-bridge sample <this folder> --num 10",
        "```",
        "",
        license_note,
    ]
    if config.data.kind == "digits":
        lines.append(
            "Training data: Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak, UCI), CC BY 4.0."
        )
    return "\n".join(lines) + "\n"


def _adapter_card(product: Product, settings: Lora, teacher_key: str) -> str:
    config = product.config
    lines = [
        f"# {config.name}, adapters",
        "",
        f"The LoRA of a few-step student, distilled with {config.method} from `{_teacher_name(config)}`.",
        "It works on those weights only. The other folders of this export hold the two merged, with sampler.json.",
        "",
        f"* Network: {config.model.name}; base (sha256 of its weight files): {teacher_key}",
        f"* Rank {settings.rank}, alpha {settings.alpha:g}, on {' and '.join(settings.targets)}; float32",
        f"* Training step: {product.step}",
        f"* Run: {product.run_id}",
        "",
        "`official.safetensors` names layers as the original weights do and is what `student.init` takes.",
        "`comfyui.safetensors` has the names that ComfyUI's LoRA loader looks for; it adds (alpha / rank) B A.",
        "",
        "The license of the teacher and of the training data applies to these weights.",
    ]
    return "\n".join(lines) + "\n"


def _teacher_name(config: RunConfig) -> str:
    locator = config.teacher_locator
    return locator if ":" in locator else Path(locator).name


def _pixel_scale(config: RunConfig) -> dict[str, float]:
    """How pixels were standardised; latents of a VAE are, by the VAE."""
    if config.data.kind != "digits":
        return {"mean": 0.0, "std": 1.0}
    data = load_digits_data()
    return {"mean": data.mean, "std": data.std}


def _sampler(kind: Kind, config: RunConfig) -> dict[str, Any]:
    if kind == "student":
        return {"sigmaMax": config.student.sampler.sigma_max, "times": list(config.student.sampler.times)}
    sampler = config.teacher.sampler
    return {
        "kind": sampler.kind,
        "steps": sampler.steps,
        "shift": sampler.shift,
        "guidance": config.teacher.guidance,
        "negative": config.teacher.negative,
    }
