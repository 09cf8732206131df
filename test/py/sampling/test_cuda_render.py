"""On a GPU: the same latents as on a CPU but for rounding, whole or block by block, and the same pictures."""

import pytest
import torch

from rcm_sidecar.encoders.image_file import read_image
from rcm_sidecar.encoders.model_folder import open_model_folder
from rcm_sidecar.encoders.text_encoder import load_text_encoder
from rcm_sidecar.encoders.vae import load_vae
from rcm_sidecar.link import RecordingLink
from rcm_sidecar.protocol import RenderStart
from rcm_sidecar.render_job import draw_latents, encode_texts, make_plan, run_render
from rcm_sidecar.sampling import drawing

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
# bfloat16 products against float32 ones, through two network calls.
NEAR = 0.05


def start(folder, device, tmp_path, **changes):
    size = dict(frames=5 if "wan" in folder.name else 1, height=32, width=48)
    fields = dict(source=str(folder), encoders=None, network=None, teacher=False, teacher_sampler=None, num=1, seed=3)
    paths = dict(out_dir=str(tmp_path / device), cache_dir=str(tmp_path / "cache"))
    return RenderStart(**{**fields, **size, **paths, "prompts": ("a cat",), "steps": 2, "device": device, **changes})


def latents_of(folder, device, tmp_path, **changes):
    plan = make_plan(start(folder, device, tmp_path, **changes))
    link = RecordingLink()
    (latent,), _ = draw_latents(plan, encode_texts(plan, tmp_path / "cache", link), link)
    return latent, link


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("name", ["wan_original", "cosmos_diffusers"])
@pytest.mark.parametrize("teacher", [False, True], ids=["student", "teacher"])
def test_latents_are_those_of_a_cpu(name, teacher, folders, tmp_path):
    on_gpu, _ = latents_of(folders[name], "cuda", tmp_path, teacher=teacher)
    on_cpu, _ = latents_of(folders[name], "cpu", tmp_path, teacher=teacher)
    assert on_gpu.device.type == "cpu" and relative(on_gpu, on_cpu) < NEAR


def test_short_memory_gives_the_same_latents(folders, tmp_path, monkeypatch):
    whole, _ = latents_of(folders["wan_original"], "cuda", tmp_path)
    failures = iter([True])
    draw = drawing.Drawer._draw

    def once_short(self, *arguments):
        if next(failures, False):
            raise torch.OutOfMemoryError("CUDA out of memory. Acted out.")
        return draw(self, *arguments)

    monkeypatch.setattr(drawing.Drawer, "_draw", once_short)
    streamed, link = latents_of(folders["wan_original"], "cuda", tmp_path)
    assert torch.equal(streamed, whole)
    assert "blocks stayed in main memory" in link.of_type("log")[0]["message"]


def test_encoders_are_those_of_a_cpu(folders):
    folder = open_model_folder(folders["wan_original"], "wan2.1")
    on_gpu, on_cpu = (
        load_text_encoder(folder, 512, device, torch.float32).encode("a cat").rows.float()
        for device in (CUDA, torch.device("cpu"))
    )
    assert relative(on_gpu, on_cpu) < NEAR
    latents = torch.randn(1, 16, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    on_gpu, on_cpu = (load_vae(folder.vae, device).decode(latents) for device in (CUDA, torch.device("cpu")))
    assert relative(on_gpu, on_cpu) < NEAR


def test_tiles_cover_the_whole_picture(folders):
    vae = load_vae(folders["wan_original"] / "Wan2.1_VAE.pth", CUDA)
    latents = torch.randn(1, 16, 1, 40, 64, generator=torch.Generator().manual_seed(0))
    whole = vae.decode(latents)
    vae._model.enable_tiling()
    tiled = vae.decode(latents)
    assert vae.tiled and tiled.shape == whole.shape and relative(tiled, whole) < 0.5


def test_the_whole_job(folders, tmp_path):
    link = RecordingLink()
    run_render(start(folders["cosmos_diffusers"], "cuda", tmp_path, teacher=True), link)
    (file,) = link.of_type("rendered")
    assert read_image(tmp_path / "cuda" / file.path.rsplit("/", 1)[1]).shape == (32, 48, 3)
    assert torch.cuda.memory_allocated() < 64 * 2**20
