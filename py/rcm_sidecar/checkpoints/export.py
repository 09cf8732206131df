"""Export folders: weights in a layout, sampler.json, the label table and a model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from rcm_sidecar.checkpoints.layouts import official_config
from rcm_sidecar.checkpoints.sampler_file import SAMPLER_FILE
from rcm_sidecar.checkpoints.save import save_network
from rcm_sidecar.config import RunConfig, config_document
from rcm_sidecar.data import LabelConditioner
from rcm_sidecar.data.digits import load_digits_data
from rcm_sidecar.data.label_conditioner import CONDITIONER_FILE
from rcm_sidecar.files import write_file, write_json, write_tensors
from rcm_sidecar.networks import Network

OFFICIAL_FILE = "model.safetensors"
DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"

Kind = Literal["student", "teacher"]


@dataclass(frozen=True)
class Product:
    """What is exported.

    Attributes:
        kind: Which sampler it needs.
        network: With the weights to write.
        conditioner: Its label table.
        config: Of the run that made it.
        step: Training step.
        run_id: Of that run.
    """

    kind: Kind
    network: Network
    conditioner: LabelConditioner
    config: RunConfig
    step: int
    run_id: str


def export(product: Product, folder: Path, layout: Literal["official", "diffusers", "comfyui"]) -> Path:
    """Write an export folder; files of an earlier export of the same layout are replaced.

    Returns:
        The folder.

    Raises:
        HostError: E_DISK_FULL.
        WeightsError: E_WEIGHTS_WRITE, or E_WEIGHTS_LAYOUT for a layout the network cannot be written in.
    """
    network = product.network
    if layout == "official":
        weights = save_network(network, folder / OFFICIAL_FILE, "official").name
        write_json(folder / "config.json", official_config(network))
    elif layout == "diffusers":
        save_network(network, folder, "diffusers")
        weights = DIFFUSERS_FILE
    else:
        weights = save_network(network, folder, "comfyui").name
    write_tensors(folder / CONDITIONER_FILE, {"table": product.conditioner.table})
    write_json(folder / SAMPLER_FILE, sampler_document(product, weights))
    write_file(folder / "README.md", model_card(product, layout).encode())
    return folder


def sampler_document(product: Product, weights: str) -> dict[str, Any]:
    """The content of sampler.json: all that sampling needs to know."""
    config, data = product.config, load_digits_data()
    model: Mapping[str, Any] = config_document(config)["model"]
    return {
        "schema": 1,
        "kind": product.kind,
        "network": {"name": config.model.name, "overrides": model["overrides"]},
        "weights": weights,
        "conditioner": CONDITIONER_FILE,
        "latent": {"shape": list(data.train_images.shape[1:]), "mean": data.mean, "std": data.std},
        "textEncoder": config.model.text_encoder,
        "timeScale": product.network.spec.time_scale,
        "sampler": _sampler(product.kind, config),
        "step": product.step,
        "runId": product.run_id,
    }


def model_card(product: Product, layout: str) -> str:
    """README.md of an export folder."""
    config = product.config
    count = sum(parameter.numel() for parameter in product.network.parameters())
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


def _teacher_name(config: RunConfig) -> str:
    locator = config.teacher_locator
    return locator if ":" in locator else Path(locator).name


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
