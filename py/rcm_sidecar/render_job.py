"""The `render` job: pictures and videos of prompts. Text encoder, network and VAE are in memory one after another."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from rcm_sidecar.checkpoints.sampler_file import TeacherPart
from rcm_sidecar.checkpoints.sources import locate
from rcm_sidecar.counted_progress import reporter
from rcm_sidecar.dual.attention import choose_kernels
from rcm_sidecar.encoders.model_folder import ModelFolder, open_model_folder
from rcm_sidecar.encoders.prompts import negative_prompt
from rcm_sidecar.errors import HostError, WeightsError
from rcm_sidecar.hub import is_hub_locator
from rcm_sidecar.link import JobLink
from rcm_sidecar.packages import require_packages
from rcm_sidecar.protocol import EndBody, Rendered, RenderStart
from rcm_sidecar.sampling.drawing import Drawer, Sampler, choose_sampler
from rcm_sidecar.sampling.recipe import Recipe, find_recipe
from rcm_sidecar.sampling.sizes import PixelSize, latent_shape
from rcm_sidecar.short_memory import free_memory

_MEDIA = ("av", "diffusers", "ftfy", "transformers")
_SLUG_LETTERS = 40


@dataclass(frozen=True)
class Order:
    """One picture or video to draw."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Plan:
    """All that is decided before anything is loaded.

    Attributes:
        recipe: The weights and their sampler.
        sampler: With its steps.
        size: In pixels.
        shape: Of a latent, [C,T,H,W].
        encoders: Text encoder and VAE.
        negative: Prompt of the negative branch; None for zeros, or without one.
        guided: Whether there is a negative branch.
        device: Where everything computes.
        orders: What is drawn, in order.
    """

    recipe: Recipe
    sampler: Sampler
    size: PixelSize
    shape: tuple[int, int, int, int]
    encoders: ModelFolder
    negative: str | None
    guided: bool
    device: torch.device
    orders: tuple[Order, ...]


@dataclass(frozen=True)
class Texts:
    """Text states [L,D] by prompt, and those of the negative branch."""

    of: dict[str, Tensor]
    negative: Tensor | None


def run_render(start: RenderStart, link: JobLink) -> EndBody:
    """Draw every prompt with every seed; each file is announced as it is written.

    Raises:
        WeightsError: weights or encoders that are missing or do not fit.
        ConfigError: E_USAGE, a size or steps that the model does not take.
        HostError: E_PYTHON_PACKAGES, E_GPU, E_DISK_FULL.
        JobCancelled: files that are written stay.
    """
    link.activity("loading", 0)
    require_packages(_MEDIA, "Pictures of prompts")
    choose_kernels("auto")
    plan = make_plan(start)
    _check_vae(plan)  # needed last, and a pity to miss then
    texts = encode_texts(plan, Path(start.cache_dir), link)
    latents, seconds = draw_latents(plan, texts, link)
    _write_all(plan, latents, seconds, Path(start.out_dir), link)
    return EndBody(state="succeeded", step=0, student_updates=0, critic_updates=0, checkpoint=None, exports=())


def make_plan(start: RenderStart) -> Plan:
    """Decide everything and check that all parts are there; nothing is loaded."""
    device = _device(start.device)
    recipe = find_recipe(start)
    sampler = choose_sampler(recipe.sampler, start.steps)
    given = {name: getattr(start, name) for name in ("frames", "height", "width")}
    size = replace(recipe.size, **{name: value for name, value in given.items() if value is not None})
    shape = latent_shape(recipe.spec, size)
    settings = sampler.settings
    guided = isinstance(settings, TeacherPart) and settings.guidance != 1
    return Plan(
        recipe=recipe,
        sampler=sampler,
        size=size,
        shape=shape,
        encoders=open_model_folder(_encoders_place(start, recipe), recipe.spec.family),
        negative=negative_prompt(settings.negative, recipe.spec.family)
        if isinstance(settings, TeacherPart) and guided
        else None,
        guided=guided,
        device=device,
        orders=tuple(Order(prompt, start.seed + index) for prompt in start.prompts for index in range(start.num)),
    )


def _check_vae(plan: Plan) -> None:
    from rcm_sidecar.encoders.vae import latent_channels

    channels, wanted = latent_channels(plan.encoders.vae), plan.recipe.spec.in_dim
    if channels != wanted:
        message = f"{plan.encoders.vae} has latents of {channels} channels; the network takes {wanted}."
        hint = "Use the VAE published with the network: --encoders."
        raise WeightsError("E_WEIGHTS_MISMATCH", message, hint)


def encode_texts(plan: Plan, cache_dir: Path, link: JobLink) -> Texts:
    """Text states of all prompts, from the cache or the text encoder, which is freed again.

    Raises:
        WeightsError: E_WEIGHTS_MISMATCH, also for an encoder whose states the network does not take.
    """
    from rcm_sidecar.encoders.embedding_cache import encode_prompts, open_embedding_cache
    from rcm_sidecar.encoders.text_encoder import load_text_encoder, padded

    spec, report = plan.recipe.spec, reporter(link)
    prompts = [order.prompt for order in plan.orders]
    if plan.negative is not None:
        prompts.append(plan.negative)
    report("reading the text encoder", 0, 1)
    cache = open_embedding_cache(plan.encoders, spec.text_len, cache_dir)
    encoded = encode_prompts(
        prompts,
        cache,
        lambda: load_text_encoder(plan.encoders, spec.text_len, plan.device),
        lambda done, total: report("encoding prompts", done, total),
    )
    for prompt, states in encoded.items():
        if states.rows.shape[1] != spec.text_dim:
            message = f"{plan.encoders.text_encoder} gives {states.rows.shape[1]} numbers a token; the network takes "
            hint = "Use the text encoder published with the network: --encoders."
            raise WeightsError("E_WEIGHTS_MISMATCH", f"{message}{spec.text_dim}.", hint)
        if states.truncated:
            link.log("warn", f"The prompt {_shortened(prompt)} is longer than {spec.text_len} tokens: the rest is cut.")
    texts = {prompt: padded(states.rows, spec.text_len) for prompt, states in encoded.items()}
    zeros = torch.zeros(spec.text_len, spec.text_dim) if plan.guided else None
    return Texts(texts, zeros if plan.negative is None else texts[plan.negative])


def draw_latents(plan: Plan, texts: Texts, link: JobLink) -> tuple[list[Tensor], list[float]]:
    """Latents [1,C,T,H,W] of all orders and the seconds each took; the network is freed again."""
    report = reporter(link)
    total = len(plan.orders) * plan.sampler.calls
    report("loading the network", 0, total)
    drawer, latents, seconds, done = Drawer(plan.recipe, plan.device), [], [], 0

    def called() -> None:
        nonlocal done
        report("sampling", done, total)
        done += 1

    link.activity("sampling", 0)
    for index, order in enumerate(plan.orders):
        began, done = time.monotonic(), index * plan.sampler.calls
        text = texts.of[order.prompt]
        latents.append(drawer.draw(plan.sampler, plan.shape, order.seed, text, texts.negative, called))
        seconds.append(time.monotonic() - began)
    if drawer.streamed:
        link.log("warn", "The network does not fit the GPU: its blocks stayed in main memory, which is slower.")
    del drawer
    if plan.device.type == "cuda":
        free_memory()
    return latents, seconds


def _write_all(plan: Plan, latents: list[Tensor], seconds: list[float], out: Path, link: JobLink) -> None:
    from rcm_sidecar.encoders.image_file import write_image
    from rcm_sidecar.encoders.vae import load_vae, to_bytes
    from rcm_sidecar.encoders.video_file import write_video

    report = reporter(link)
    report("decoding", 0, len(latents))
    vae = load_vae(plan.encoders.vae, plan.device)
    for done, (order, latent) in enumerate(zip(plan.orders, latents, strict=True)):
        report("decoding", done, len(latents))
        began = time.monotonic()
        pixels = to_bytes(vae.decode(latent))[0]
        is_picture = len(pixels) == 1
        path = _free_path(out, _file_name(plan, order), ".png" if is_picture else ".mp4")
        if is_picture:
            write_image(path, pixels[0])
        else:
            write_video(path, pixels)
        link.rendered(
            Rendered(
                path=str(path),
                prompt=order.prompt,
                seed=order.seed,
                steps=plan.sampler.steps,
                frames=plan.size.frames,
                height=plan.size.height,
                width=plan.size.width,
                seconds=seconds[done] + time.monotonic() - began,
            )
        )
    if vae.tiled:
        link.log("warn", "The GPU's memory was short: pictures were decoded in tiles, which may show at their edges.")


def _encoders_place(start: RenderStart, recipe: Recipe) -> Path:
    """What the caller names; else where they were when the weights were exported, or beside the weights."""
    if start.encoders is not None:
        return locate(start.encoders)
    named = recipe.encoders
    is_there = named is not None and (is_hub_locator(named) or Path(named).exists())
    return locate(named) if named is not None and is_there else recipe.weights


def _file_name(plan: Plan, order: Order) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", order.prompt.lower())[:_SLUG_LETTERS].strip("-") or "prompt"
    steps = f"{plan.sampler.steps}step{'' if plan.sampler.steps == 1 else 's'}"
    kind = "-teacher" if isinstance(plan.sampler.settings, TeacherPart) else ""
    return f"{slug}-seed{order.seed}-{steps}{kind}"


def _free_path(folder: Path, name: str, ending: str) -> Path:
    """A name that is not taken: what somebody drew before stays."""
    path, number = folder / f"{name}{ending}", 1
    while path.exists():
        number += 1
        path = folder / f"{name}-{number}{ending}"
    return path


def _device(name: str) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        hint = "Use --device cpu, or install torch with CUDA."
        raise HostError("E_GPU", "torch finds no GPU on this machine.", hint)
    return torch.device("cuda", torch.cuda.current_device())


def _shortened(prompt: str) -> str:
    return repr(prompt if len(prompt) <= _SLUG_LETTERS else f"{prompt[:_SLUG_LETTERS]}...")
