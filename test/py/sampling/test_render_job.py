"""Pictures and videos of prompts by the job, against the same steps without it, on tiny models of both families."""

import shutil
from dataclasses import dataclass

import pytest
import torch
from diffusers import AutoencoderKLWan
from encoders import tiny_models

from rcm_sidecar.checkpoints import load_network
from rcm_sidecar.diffusion.samplers import sample_student, sample_teacher, student_times
from rcm_sidecar.encoders import text_encoder
from rcm_sidecar.encoders.image_file import read_image
from rcm_sidecar.encoders.model_folder import open_model_folder
from rcm_sidecar.encoders.prompts import NEGATIVE_PROMPTS
from rcm_sidecar.encoders.text_encoder import load_text_encoder, padded
from rcm_sidecar.encoders.vae import load_vae, to_bytes
from rcm_sidecar.encoders.video_file import read_video, write_video
from rcm_sidecar.errors import ConfigError, SidecarError, WeightsError
from rcm_sidecar.evaluation.sampling import noise_sets
from rcm_sidecar.link import Cancel, JobCancelled, RecordingLink
from rcm_sidecar.networks import build
from rcm_sidecar.protocol import RenderSampler, RenderStart, WeightsNetwork
from rcm_sidecar.render_job import Texts, draw_latents, encode_texts, make_plan, run_render

CPU = torch.device("cpu")
WAN = ("wan2.1-tiny", tiny_models.WAN_SIZES)
COSMOS = ("cosmos-predict2-tiny", tiny_models.COSMOS_SIZES)


@dataclass(frozen=True)
class Case:
    folder: str
    network: tuple
    family: str
    frames: int
    shape: tuple
    time_scale: float
    times: tuple


CASES = [
    Case("wan_original", WAN, "wan2.1", 5, (16, 2, 4, 6), 1000.0, (1.5, 1.4, 1.0)),
    Case("wan_diffusers", WAN, "wan2.1", 5, (16, 2, 4, 6), 1000.0, (1.5, 1.4, 1.0)),
    Case("cosmos_original", COSMOS, "cosmos-predict2", 1, (16, 1, 4, 6), 1.0, (1.3, 1.0, 0.6)),
    Case("cosmos_diffusers", COSMOS, "cosmos-predict2", 1, (16, 1, 4, 6), 1.0, (1.3, 1.0, 0.6)),
]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.folder)


@pytest.fixture
def start_of(folders, tmp_path):
    def make(case, **changes):
        fields = dict(
            source=str(folders[case.folder]),
            encoders=None,
            network=None,
            teacher=False,
            teacher_sampler=None,
            prompts=("a cat",),
            num=1,
            seed=3,
            steps=2,
            frames=case.frames,
            height=32,
            width=48,
            device="cpu",
            out_dir=str(tmp_path / "out"),
            cache_dir=str(tmp_path / "cache"),
        )
        return RenderStart(**{**fields, **changes})

    return make


def states(folder, case, prompt):
    encoder = load_text_encoder(open_model_folder(folder, case.family), 512, CPU)
    return padded(encoder.encode(prompt).rows, 512).float()[None]


def loaded(folder, case):
    network = build(case.network[0], **case.network[1])
    load_network(network, folder)
    return network.requires_grad_(False)


@cases
def test_a_student_is_sampled_as_without_the_job(case, folders, start_of, tmp_path):
    folder = folders[case.folder]
    times = student_times(2, 80.0, case.times)
    first, second = noise_sets(2, 1, case.shape, 4)
    network, text = loaded(folder, case), states(folder, case, "a cat")
    expected = sample_student(network, first, times, [second], text=text, time_scale=case.time_scale)

    link = RecordingLink()
    start = start_of(case, num=2)
    plan = make_plan(start)
    latents, seconds = draw_latents(plan, encode_texts(plan, tmp_path / "cache", link), link)
    assert torch.equal(latents[1], expected) and not torch.equal(latents[0], expected)
    assert expected.std() > 0.1 and all(value > 0 for value in seconds)

    run_render(start, link)
    files = link.of_type("rendered")
    assert [(file.seed, file.prompt, file.steps, file.frames) for file in files] == [
        (3, "a cat", 2, case.frames),
        (4, "a cat", 2, case.frames),
    ]
    frames = to_bytes(load_vae(plan.encoders.vae, CPU).decode(expected))[0]
    if case.frames == 1:
        assert files[1].path.endswith("a-cat-seed4-2steps.png")
        assert torch.equal(read_image(tmp_path / "out" / "a-cat-seed4-2steps.png"), frames[0])
    else:
        assert files[1].path.endswith("a-cat-seed4-2steps.mp4")
        write_video(tmp_path / "expected.mp4", frames)
        drawn = read_video(tmp_path / "out" / "a-cat-seed4-2steps.mp4")
        assert drawn.shape == (5, 32, 48, 3) and torch.equal(drawn, read_video(tmp_path / "expected.mp4"))


@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=lambda case: case.folder)
def test_a_teacher_has_guidance_and_the_negative_of_its_model(case, folders, start_of, tmp_path):
    folder = folders[case.folder]
    network, text = loaded(folder, case), states(folder, case, "a cat")
    prompt = NEGATIVE_PROMPTS[case.family]
    negative = torch.zeros_like(text) if prompt is None else states(folder, case, prompt)
    settings = dict(steps=3, guidance=5.0, text=text, negative=negative, time_scale=case.time_scale)
    noise = noise_sets(1, 1, case.shape, 3)[0]
    expected = sample_teacher(network, noise, shift=network.spec.teacher_shift, kind="unipc", **settings)

    link = RecordingLink()
    plan = make_plan(start_of(case, teacher=True, steps=3))
    texts = encode_texts(plan, tmp_path / "cache", link)
    latents, _ = draw_latents(plan, texts, link)
    assert torch.equal(latents[0], expected)
    assert plan.sampler.calls == 6
    sampling = [body for body in link.of_type("progress") if body.phase == "sampling"]
    assert [(body.step, body.steps) for body in sampling] == [(done, 6) for done in range(6)]
    other, _ = draw_latents(plan, Texts(texts.of, texts.negative + 1), link)
    assert not torch.equal(other[0], expected)

    given = RenderSampler(kind="euler", steps=2, shift=3.0, guidance=1.0, negative="default")
    of_run = WeightsNetwork(name=case.network[0], overrides=camel(case.network[1]))
    plan = make_plan(start_of(case, teacher=True, steps=None, teacher_sampler=given, network=of_run))
    texts = encode_texts(plan, tmp_path / "cache", link)
    assert texts.negative is None
    settings = dict(steps=2, guidance=1.0, text=text, negative=None, time_scale=case.time_scale)
    expected = sample_teacher(network, noise, shift=3.0, kind="euler", **settings)
    assert torch.equal(draw_latents(plan, texts, link)[0][0], expected)


def camel(sizes):
    def renamed(key):
        first, *rest = key.split("_")
        return first + "".join(word.capitalize() for word in rest)

    return {renamed(key): value for key, value in sizes.items()}


def test_the_encoder_is_not_loaded_for_known_prompts(start_of, monkeypatch):
    first, again = RecordingLink(), RecordingLink()
    run_render(start_of(CASES[0], prompts=("a cat", "a mat")), first)
    monkeypatch.setattr(text_encoder, "load_text_encoder", lambda *_: pytest.fail("the encoder was loaded"))
    run_render(start_of(CASES[0], prompts=("a mat",)), again)
    assert len(first.of_type("rendered")) == 2 and len(again.of_type("rendered")) == 1
    # A name that is taken stays what it is.
    assert again.of_type("rendered")[0].path.endswith("a-mat-seed3-2steps-2.mp4")


@pytest.mark.parametrize("sampler", [{"sigmaMax": 80.0, "times": [1.4]}, None], ids=["student", "teacher"])
def test_an_export_says_how_it_is_sampled(sampler, folders, start_of, tmp_path):
    teacher = {"kind": "euler", "steps": 2, "shift": 2.0, "guidance": 3.0, "negative": "text:dull"}
    folder = tiny_models.export_folder(
        tmp_path / "export",
        *WAN,
        sampler or teacher,
        encoders=folders["wan_diffusers"],
        latent=(16, 2, 4, 4),
    )
    start = start_of(CASES[0], source=str(folder), steps=None, frames=None, height=None, width=None)
    plan = make_plan(start)
    assert (plan.size.frames, plan.size.height, plan.size.width) == (5, 32, 32)
    assert plan.sampler.steps == 2 and plan.encoders.vae == folders["wan_diffusers"] / "vae"
    assert plan.negative == (None if sampler else "dull")
    link = RecordingLink()
    run_render(start, link)
    (file,) = link.of_type("rendered")
    assert ("teacher" in file.path) == (sampler is None)
    moved = (folder / "sampler.json").read_text().replace("wan_diffusers", "gone")
    (folder / "sampler.json").write_text(moved)
    with pytest.raises(WeightsError, match="export lacks the text encoder") as caught:
        make_plan(start)
    assert "--encoders" in caught.value.hint
    with pytest.raises(ConfigError, match="cannot take 4 steps") if sampler else pytest.raises(WeightsError):
        make_plan(start_of(CASES[0], source=str(folder), steps=4, encoders=str(tmp_path)))


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"frames": 6}, "E_USAGE", "--frames 6 is not 4n+1, as this network needs it. Use 5 or 9."),
        ({"height": 40}, "E_USAGE", "--height 40 is not a multiple of 16, as this network needs it. Use 32 or 48."),
        ({"width": 8}, "E_USAGE", "--width 8 is not a multiple of 16, as this network needs it. Use 16."),
        ({"width": 8208}, "E_USAGE", None),
        ({"source": "/nowhere"}, "E_WEIGHTS_NOT_FOUND", "There are no weights at /nowhere. Check the path."),
        ({"encoders": "/nowhere"}, "E_WEIGHTS_NOT_FOUND", "There are no weights at /nowhere. Check the path."),
        ({"device": "cuda"}, "E_GPU", None),
        ({"steps": 5}, "E_USAGE", None),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_loaded(changes, code, words, start_of, tmp_path):
    if code == "E_GPU" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    case = CASES[3] if "width" in changes and changes["width"] > 100 else CASES[0]
    with pytest.raises(SidecarError) as caught:
        run_render(start_of(case, **changes), RecordingLink())
    assert caught.value.code == code
    if words is not None:
        assert f"{caught.value.message} {caught.value.hint}" == words
    assert not (tmp_path / "out").exists()


def test_weights_of_labels_are_refused(start_of):
    from rcm_sidecar.data.digits import ASSETS

    with pytest.raises(ConfigError, match="takes labels, not prompts"):
        run_render(start_of(CASES[0], source=str(ASSETS / "teacher")), RecordingLink())


def test_states_of_another_width_are_refused(folders, start_of, tmp_path):
    sizes = {**tiny_models.WAN_SIZES, "text_dim": 12}
    folder = tiny_models.export_folder(
        tmp_path / "export", "wan2.1-tiny", sizes, {"sigmaMax": 80.0, "times": []}, encoders=None, latent=(16, 1, 4, 4)
    )
    start = start_of(CASES[0], source=str(folder), encoders=str(folders["wan_original"]), steps=1)
    with pytest.raises(WeightsError, match="gives 16 numbers a token; the network takes 12") as caught:
        run_render(start, RecordingLink())
    assert caught.value.code == "E_WEIGHTS_MISMATCH"


@pytest.mark.parametrize("change", ["cut", "incomplete", "other"])
def test_a_vae_that_cannot_be_used_is_found_before_anything_is_sampled(change, folders, start_of, tmp_path):
    folder = shutil.copytree(folders["wan_original"], tmp_path / "model")
    file, link = folder / "Wan2.1_VAE.pth", RecordingLink()
    weights = torch.load(file)
    if change == "cut":
        file.write_bytes(file.read_bytes()[:60_000])
    elif change == "incomplete":
        torch.save({key: value for key, value in weights.items() if "middle.1.proj" not in key}, file)
    else:
        torch.save(tiny_models.native_vae_keys(AutoencoderKLWan(base_dim=4, z_dim=8)), file)
    with pytest.raises(WeightsError) as caught:
        run_render(start_of(CASES[0], source=str(folder)), link)
    assert caught.value.code == ("E_WEIGHTS_UNREADABLE" if change == "cut" else "E_WEIGHTS_MISMATCH")
    assert "Wan2.1_VAE.pth" in caught.value.message and link.of_type("progress") == []


def test_a_cancel_between_network_calls_writes_nothing(start_of, tmp_path):
    def cancel(record):
        if record.type == "progress" and record.body.phase == "sampling" and record.body.step == 1:
            link.requests.cancel(Cancel(checkpoint=False))

    link = RecordingLink(cancel)
    with pytest.raises(JobCancelled):
        run_render(start_of(CASES[0], steps=4), link)
    assert not (tmp_path / "out").exists()
    assert [body.step for body in link.of_type("progress") if body.phase == "sampling"] == [0, 1]


def test_a_long_prompt_is_cut_with_a_word(start_of):
    link = RecordingLink()
    run_render(start_of(CASES[3], prompts=("abc " * 200,), steps=1), link)
    (log,) = link.of_type("log")
    assert log["level"] == "warn" and "longer than 512 tokens: the rest is cut" in log["message"]
