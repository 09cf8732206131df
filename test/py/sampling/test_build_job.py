"""Sets of training data from a teacher and from files, on tiny models of both families in their real layouts."""

import io
import tarfile
from types import SimpleNamespace

import msgspec
import pytest
import torch
from encoders import tiny_models

from rcm_sidecar.build_job import run_build
from rcm_sidecar.checkpoints import load_network
from rcm_sidecar.data.shard_index import open_index
from rcm_sidecar.diffusion.samplers import sample_teacher
from rcm_sidecar.encode_job import run_encode
from rcm_sidecar.encoders.image_file import write_image
from rcm_sidecar.encoders.model_folder import open_model_folder
from rcm_sidecar.encoders.prompts import NEGATIVE_PROMPTS
from rcm_sidecar.encoders.text_encoder import load_text_encoder, padded
from rcm_sidecar.encoders.vae import from_bytes, load_vae
from rcm_sidecar.encoders.video_file import read_video, read_video_at, write_video
from rcm_sidecar.errors import ConfigError, HostError, WeightsError
from rcm_sidecar.evaluation.sampling import noise_sets
from rcm_sidecar.link import Cancel, JobCancelled, RecordingLink
from rcm_sidecar.networks import build
from rcm_sidecar.protocol import BuildStart, EncodeStart, SetSampler, WeightsNetwork

CPU = torch.device("cpu")
CAMEL = {"num_heads": "numHeads", "num_layers": "numLayers", "ffn_dim": "ffnDim", "text_dim": "textDim"}
CAMEL |= {"text_len": "textLen", "adaln_lora_dim": "adalnLoraDim"}
SAMPLER = SetSampler(steps=3, shift=3.0, guidance=5.0, sigma_max=5000.0)
WAN = SimpleNamespace(folder="wan_original", name="wan2.1-tiny", sizes=tiny_models.WAN_SIZES, frames=5, family="wan2.1")
COSMOS = SimpleNamespace(
    folder="cosmos_diffusers",
    name="cosmos-predict2-tiny",
    sizes=tiny_models.COSMOS_SIZES,
    frames=1,
    family="cosmos-predict2",
)


@pytest.fixture
def start_of(folders, tmp_path):
    def make(case=WAN, kind=BuildStart, **changes):
        fields = dict(
            network=WeightsNetwork(
                name=case.name, overrides={CAMEL.get(key, key): size for key, size in case.sizes.items()}
            ),
            encoders=str(folders[case.folder]),
            negative="default",
            frames=case.frames,
            height=32,
            width=48,
            device="cpu",
            share=0,
            shares=1,
            out_dir=str(tmp_path / "out"),
            cache_dir=str(tmp_path / "cache"),
        )
        if kind is BuildStart:
            listed = tmp_path / "prompts.json"
            listed.write_text('["a cat", "a mat"]')
            fields |= dict(source=str(folders[case.folder]), sampler=SAMPLER, samples=3, seed=7)
            fields |= dict(prompts_file=str(listed))
        return kind(**{**fields, **changes})

    return make


def samples_of(folder):
    """Key -> (latent, text, prompt)."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as shard:
            for member in shard:
                key, _, kind = member.name.partition(".")
                content = shard.extractfile(member).read()
                value = content.decode() if kind == "prompt.txt" else torch.load(io.BytesIO(content), weights_only=True)
                found.setdefault(int(key), {})[kind] = value
    return found


@pytest.mark.parametrize("case", [WAN, COSMOS], ids=lambda case: case.family)
def test_samples_are_those_of_the_teacher(case, folders, start_of, tmp_path):
    start = start_of(case)
    end = run_build(start, RecordingLink())
    assert (end.state, end.step) == ("succeeded", 3)
    folder = folders[case.folder]
    net = build(case.name, device="cpu", **case.sizes)
    load_network(net, folder)
    encoder = load_text_encoder(open_model_folder(folder, case.family), 512, CPU)

    def states(prompt):
        return padded(encoder.encode(prompt).rows, 512)

    prompt = NEGATIVE_PROMPTS[case.family]
    negative = torch.zeros(512, tiny_models.WIDTH) if prompt is None else states(prompt)
    for number, sample in samples_of(tmp_path / "out").items():
        text = states(("a cat", "a mat")[number % 2])
        assert sample["prompt.txt"] == ("a cat", "a mat")[number % 2]
        assert torch.equal(sample["embed.pt"], text)
        (noise,) = noise_sets(1, 1, (16, 1 + case.frames // 4, 4, 6), 7 + number)
        expected = sample_teacher(
            net,
            noise,
            steps=3,
            shift=3.0,
            guidance=5.0,
            text=text.float()[None],
            negative=negative.float()[None],
            time_scale=net.spec.time_scale,
            sigma_max=5000.0,
        )
        assert torch.equal(sample["latent.pt"], expected[0].bfloat16())
    stored = tmp_path / "out" / "negative.embed.pt"
    assert stored.exists() == (prompt is not None)
    if prompt is not None:
        assert torch.equal(torch.load(stored, weights_only=True), negative)


class StoppingLink(RecordingLink):
    """Cancels the job after some network calls."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def progress(self, progress):
        self.calls -= progress.phase == "sampling"
        if self.calls < 0:
            self.requests.cancel(Cancel(checkpoint=False))


def test_stopped_again_and_again_it_makes_each_sample_once(start_of, tmp_path):
    uninterrupted = start_of(out_dir=str(tmp_path / "whole"))
    run_build(uninterrupted, RecordingLink())
    start = start_of()
    for _ in range(2):
        with pytest.raises(JobCancelled):
            run_build(start, StoppingLink(7))  # a sample is 6 calls
    assert [run_build(start, RecordingLink()).step for _ in range(2)] == [1, 0]
    whole, cut = tmp_path / "whole", tmp_path / "out"
    for name in ("shard_000000.tar", "set.json", "negative.embed.pt"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()


def test_two_processes_share_the_samples(start_of, tmp_path):
    run_build(start_of(out_dir=str(tmp_path / "whole")), RecordingLink())
    steps = [run_build(start_of(share=share, shares=2), RecordingLink()).step for share in (1, 0)]
    assert steps == [1, 2]
    whole, parts = samples_of(tmp_path / "whole"), samples_of(tmp_path / "out")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[number]["latent.pt"], parts[number]["latent.pt"]) for number in whole)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 8}, "begun with seed 7, not 8"),
        ({"sampler": msgspec.structs.replace(SAMPLER, steps=4)}, "begun with steps 3, not 4"),
        ({"samples": 4}, "begun with samples 3, not 4"),
    ],
)
def test_another_set_does_not_mix_with_it(start_of, changes, words):
    run_build(start_of(), RecordingLink())
    with pytest.raises(ConfigError, match=words):
        run_build(start_of(**changes), RecordingLink())


def test_other_prompts_do_not_mix_with_it(start_of, tmp_path):
    run_build(start_of(), RecordingLink())
    (tmp_path / "others.json").write_text('["a cat"]')
    with pytest.raises(ConfigError, match="begun with prompts"):
        run_build(start_of(prompts_file=str(tmp_path / "others.json")), RecordingLink())


def test_an_encoder_of_another_model_is_refused(start_of, folders):
    with pytest.raises(WeightsError, match="lacks the text encoder"):
        run_build(start_of(encoders=str(folders["wan_original"] / "google")), RecordingLink())


@pytest.fixture
def footage(tmp_path):
    """Two videos of 8 and 3 frames at 16 a second, a picture lying on its side, and a list of the first."""
    folder = tmp_path / "footage"
    folder.mkdir()
    noise = torch.rand(8, 6, 8, 3, generator=torch.Generator().manual_seed(1))
    frames = torch.nn.functional.interpolate(noise.movedim(-1, 1), (80, 120), mode="bilinear").movedim(1, -1)
    frames = (255 * frames).to(torch.uint8)
    write_video(folder / "long.mp4", frames)
    write_video(folder / "half.mp4", frames, 8)
    write_video(folder / "short.mp4", frames[:3])
    write_image(folder / "picture.png", frames[0])
    (folder / "list.csv").write_text('file,caption\nlong.mp4,"a cat, moving"\nhalf.mp4,a mat\n')
    return folder


def encode(start_of, footage, listing="list.csv", case=WAN, **changes):
    changes = {"folder": str(footage), "list": str(footage / listing), **changes}
    return run_encode(start_of(case, EncodeStart, **changes), RecordingLink())


def test_videos_become_latents_of_their_first_frames(start_of, footage, folders, tmp_path):
    assert encode(start_of, footage).step == 2
    samples = samples_of(tmp_path / "out")
    assert [sample["prompt.txt"] for sample in samples.values()] == ["a cat, moving", "a mat"]
    vae = load_vae(open_model_folder(folders["wan_original"], "wan2.1").vae, CPU)
    frames = from_bytes(read_video(footage / "long.mp4", 5)).transpose(0, 1)
    small = torch.nn.functional.interpolate(frames, (32, 48), mode="bicubic", antialias=True).clamp(-1, 1)
    assert torch.equal(samples[0]["latent.pt"], vae.encode(small.transpose(0, 1)[None])[0].bfloat16())
    assert samples[1]["latent.pt"].shape == (16, 2, 4, 6)
    assert len(open_index(tmp_path / "out", None).samples) == 2
    assert encode(start_of, footage).step == 0


def test_frames_are_those_shown_at_16_a_second(footage):
    own = read_video(footage / "half.mp4")
    assert torch.equal(read_video_at(footage / "half.mp4", 5, 16), own[[0, 0, 1, 1, 2]])
    assert torch.equal(read_video_at(footage / "long.mp4", 9, 8), read_video(footage / "long.mp4")[::2])
    assert len(read_video_at(footage / "short.mp4", 9, 16)) == 3


def test_pictures_are_one_frame_and_cut_in_the_middle(start_of, footage, folders, tmp_path):
    (footage / "list.jsonl").write_text('{"file": "picture.png", "caption": "a cat"}\n\n')
    encode(start_of, footage, "list.jsonl", COSMOS, height=32, width=32)
    vae = load_vae(open_model_folder(folders["cosmos_diffusers"], "cosmos-predict2").vae, CPU)
    frames = from_bytes(read_video(footage / "long.mp4", 1)).transpose(0, 1)
    assert vae.encode(frames.new_zeros(1, 3, 1, 32, 32)).shape[1:] == (16, 1, 4, 4)
    assert samples_of(tmp_path / "out")[0]["latent.pt"].shape == (16, 1, 4, 4)


BAD_LISTS = [
    ("list.csv", "file,caption\nlong.mp4,a cat\nnone.mp4,a mat\n", r"line 3 names none\.mp4, which is not in"),
    ("list.csv", "file,caption\nshort.mp4,a cat\n", "has 3 frames at 16 a second; a sample has 5"),
    ("list.csv", "file,caption\npicture.png,a cat\n", "has 1 frame; a sample has 5"),
    ("list.csv", "file,caption\nlong.mp4,\n", "Line 2 of .* lacks a file or a caption"),
    ("list.csv", "name,text\nlong.mp4,a cat\n", "has no column file and no column caption"),
    ("list.csv", "file,caption\n", "lists no files"),
    ("list.jsonl", '{"file": "long.mp4"\n', "Line 1 of .* is no JSON"),
]


@pytest.mark.parametrize(("name", "content", "words"), BAD_LISTS)
def test_lists_and_files_that_cannot_be_used_are_named_before_anything_is_written(
    start_of, footage, tmp_path, name, content, words
):
    (footage / name).write_text(content)
    with pytest.raises(ConfigError, match=words) as refused:
        encode(start_of, footage, name)
    assert refused.value.hint
    assert not (tmp_path / "out").exists()


def test_what_the_disk_cannot_hold_is_refused_before_anything_is_written(start_of, footage, tmp_path, monkeypatch):
    monkeypatch.setattr("rcm_sidecar.files.free_bytes", lambda path: 1000)
    with pytest.raises(HostError, match=r"1e-06 GB are free") as refused:
        encode(start_of, footage)
    assert refused.value.code == "E_DISK_FULL"
    assert not (tmp_path / "out").exists()
