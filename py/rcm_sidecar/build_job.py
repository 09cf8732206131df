"""The `build` job: a set of training data that a teacher samples from prompts (rcm-method section 9)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch

from rcm_sidecar.checkpoints.reading import weights_files
from rcm_sidecar.checkpoints.sampler_file import TeacherPart
from rcm_sidecar.counted_progress import reporter
from rcm_sidecar.data.set_writer import PARTS, SetWriter, open_set
from rcm_sidecar.distributed.device import device_of
from rcm_sidecar.dual.attention import choose_kernels
from rcm_sidecar.encoders.embedding_cache import file_hash
from rcm_sidecar.encoders.model_folder import open_model_folder
from rcm_sidecar.errors import TrainingError
from rcm_sidecar.evaluation.sampling import network_calls
from rcm_sidecar.link import JobLink
from rcm_sidecar.networks.spec import NetworkSpec
from rcm_sidecar.packages import require_packages
from rcm_sidecar.protocol import BuildStart, EndBody
from rcm_sidecar.sampling.drawing import Drawer, Sampler
from rcm_sidecar.sampling.recipe import Recipe, fitting_spec, network_arguments
from rcm_sidecar.sampling.sizes import PixelSize, latent_shape
from rcm_sidecar.set_texts import Negative, SetTexts, find_negative, open_set_texts
from rcm_sidecar.short_memory import free_memory

_PACKAGES = ("ftfy", "transformers", "webdataset")


def run_build(start: BuildStart, link: JobLink) -> EndBody:
    """Make this process's share of the samples that are missing.

    Raises:
        ConfigError: E_USAGE, the folder holds another set, or sizes that the network does not take.
        WeightsError: weights or encoders that are missing or do not fit.
        HostError: E_PYTHON_PACKAGES, E_GPU, E_DISK_FULL.
        TrainingError: E_NON_FINITE, the teacher gives NaN or infinity.
        JobCancelled: samples that are made stay.
    """
    link.activity("loading", 0)
    require_packages(_PACKAGES, "Sets of training data")
    choose_kernels("auto")
    device = device_of(start.device, start.share)
    recipe = _recipe(start)
    latent_shape(recipe.spec, recipe.size)  # refuses sizes before anything is written
    folder = open_model_folder(Path(start.encoders), recipe.spec.family)
    negative = find_negative(start.negative, recipe.spec)
    out, cache_dir = Path(start.out_dir), Path(start.cache_dir)
    reporter(link)("checking weights", 0, 1)
    texts = open_set_texts(recipe.spec, folder, cache_dir, out / PARTS)
    prompts = msgspec.json.decode(Path(start.prompts_file).read_bytes(), type=list[str])
    content = _content(start, prompts, texts.cache.encoder, cache_dir)
    writer = open_set(out, start.samples, content, start.share, start.shares)
    orders = {number: prompts[number % len(prompts)] for number in writer.missing()}
    encode_texts(texts, writer, list(orders.values()), negative, device, link, start.share)
    if orders:
        _draw(start, recipe, texts, negative, writer, orders, device, link)
    return built(len(orders))


def built(samples: int) -> EndBody:
    """The end of a job that made so many samples of a set."""
    return EndBody(state="succeeded", step=samples, student_updates=0, critic_updates=0, checkpoint=None, exports=())


def encode_texts(
    texts: SetTexts,
    writer: SetWriter,
    prompts: list[str],
    negative: Negative,
    device: torch.device,
    link: JobLink,
    share: int,
) -> None:
    """Have the states of prompts and of the negative one in the cache; the first process stores the negative."""
    leads = share == 0
    if negative.prompt is not None and (leads or prompts):
        prompts = [*prompts, negative.prompt]
    texts.encode(prompts, device, reporter(link), link)
    if leads and (negative.prompt is not None or negative.stored is not None):
        writer.add_negative(negative.states(texts))


def _recipe(start: BuildStart) -> Recipe:
    overrides = network_arguments(start.network.overrides)
    weights = Path(start.source)
    spec: NetworkSpec = fitting_spec(weights, start.network.name, overrides)
    settings = TeacherPart(
        kind="euler",
        steps=start.sampler.steps,
        shift=start.sampler.shift,
        guidance=start.sampler.guidance,
        negative=start.negative,
    )
    return Recipe(spec, overrides, weights, settings, PixelSize(start.frames, start.height, start.width), None)


def _content(start: BuildStart, prompts: list[str], encoder: str, cache_dir: Path) -> dict[str, Any]:
    """All that decides what sample i is."""
    return {
        "made by": "data build",
        "model": start.network.name,
        "teacher": hashlib.sha256(
            "".join(file_hash(file, cache_dir) for file in weights_files(Path(start.source))).encode()
        ).hexdigest(),
        "text encoder": encoder,
        "prompts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        "seed": start.seed,
        "negative": start.negative,
        "steps": start.sampler.steps,
        "shift": start.sampler.shift,
        "guidance": start.sampler.guidance,
        "sigma max": start.sampler.sigma_max,
        "frames": start.frames,
        "height": start.height,
        "width": start.width,
    }


def _draw(
    start: BuildStart,
    recipe: Recipe,
    texts: SetTexts,
    negative: Negative,
    writer: SetWriter,
    orders: Mapping[int, str],
    device: torch.device,
    link: JobLink,
) -> None:
    report = reporter(link)
    calls = network_calls("teacher", start.sampler.steps, start.sampler.guidance)
    report("loading the network", 0, len(orders) * calls)
    drawer, done = Drawer(recipe, device), 0
    sampler = Sampler(recipe.sampler, start.sampler.steps, calls, start.sampler.sigma_max)
    shape = latent_shape(recipe.spec, recipe.size)
    against = negative.states(texts) if start.sampler.guidance != 1 else None
    link.activity("sampling", 0)

    def called() -> None:
        nonlocal done
        report("sampling", done, len(orders) * calls)
        done += 1

    for index, (number, prompt) in enumerate(orders.items()):
        done = index * calls
        text = texts.of(prompt)
        latent = drawer.draw(sampler, shape, start.seed + number, text, against, called)[0]
        if not bool(torch.isfinite(latent).all()):
            message = f"The teacher gives NaN or infinity for sample {number} ({prompt[:40]!r})."
            raise TrainingError("E_NON_FINITE", message, "Check the weights: rcm-bridge weights verify.")
        writer.add(number, latent, text, prompt)
    if drawer.streamed:
        link.log("warn", "The network does not fit the GPU: its blocks stayed in main memory, which is slower.")
    report("sampling", len(orders) * calls, len(orders) * calls)
    del drawer
    free_memory()
