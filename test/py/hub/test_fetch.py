"""Fetching from a hub on loopback: what is chosen, resumed, checked, refused; and found again without the network."""

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path

import pytest
import torch
from networks.small_wan import small_network
from safetensors.torch import load_file, save_file

from rcm_sidecar.checkpoints import load_network, save_network
from rcm_sidecar.checkpoints.sources import locate
from rcm_sidecar.errors import SidecarError
from rcm_sidecar.hub.cache import HubLocator, cache_folder, cached_snapshot, parse_locator
from rcm_sidecar.hub.fetch import Hub, fetch, make_plan, missing_bytes
from rcm_sidecar.hub.selection import select
from rcm_sidecar.hub.transfer import Stopped

FIXTURE = Path(__file__).resolve().parents[2] / "fixtures" / "fake_hub.py"
_spec = importlib.util.spec_from_file_location("fake_hub", FIXTURE)
fake_hub = importlib.util.module_from_spec(_spec)
sys.modules["fake_hub"] = fake_hub
_spec.loader.exec_module(fake_hub)

WAN = HubLocator("Tiny-AI/Wan-Tiny")
BOTH = HubLocator("tiny/Both-Layouts")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """The original layout with its VAE and text encoder, and one that has both layouts."""
    root, net = tmp_path_factory.mktemp("hub"), small_network(torch.float32)
    save_network(net, root / "wan")
    save_network(net, root / "both" / "transformer", "diffusers", max_shard_bytes=20_000)
    torch.save({f"net.{k}": v for k, v in load_file(root / "wan" / WEIGHTS).items()}, root / "both" / "model.pt")
    save_file({"decoder": torch.zeros(999)}, root / "vae")
    vae = (root / "vae").read_bytes()
    return {
        WAN.repository: {**contents(root / "wan"), "Wan2.1_VAE.pth": vae, "google/umt5-xxl/spiece.model": b"x" * 2000},
        BOTH.repository: {**contents(root / "both"), "model_distilled.pt": b"y" * 5000, "vae/model.safetensors": vae},
    }


@pytest.fixture
def hub(repositories):
    cards = {
        WAN.repository: {"license": "apache-2.0"},
        BOTH.repository: {"license": "other", "license_name": "tiny-terms", "license_link": "http://127.0.0.1/terms"},
    }
    with fake_hub.serving(fake_hub.FakeHub(repositories, cards)) as running:
        yield running


@pytest.fixture
def place(hub, tmp_path, monkeypatch):
    """The hub's address and an empty cache, for calls and for locators."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("rcm_sidecar.hub.transfer._WAIT_SECONDS", 0.01)
    return Hub(endpoint=hub.url, cache=tmp_path / "cache")


def bring(place, locator=WAN, **how):
    """Plan and fetch; returns the folder, the hashes and what was reported."""
    plan, said = make_plan(locator, hub=place, **how), []
    hashes = fetch(plan, lambda *report: said.append(report), threading.Event(), place)
    return plan.target, hashes, said


def refused(code, *words):
    """The error that the block raises has this code and says these words."""

    class Refused:
        def __enter__(self):
            return self

        def __exit__(self, _, error, __):
            assert isinstance(error, SidecarError), error
            assert error.code == code, error.message
            for word in words:
                assert word in f"{error.message} {error.hint}", f"{error.message} {error.hint}"
            return True

    return Refused()


def test_a_plan_says_what_where_and_on_which_terms(hub, place):
    plan = make_plan(WAN, hub=place)
    assert [file.name for file in plan.files] == ["config.json", WEIGHTS]
    assert plan.size == missing_bytes(plan) == sum(len(hub.repositories[WAN.repository][f.name]) for f in plan.files)
    assert (plan.license, plan.commit, plan.gated) == ("apache-2.0", fake_hub.COMMIT, False)
    assert plan.target == place.cache / "models--Tiny-AI--Wan-Tiny" / "snapshots" / fake_hub.COMMIT
    assert make_plan(BOTH, hub=place).license == "tiny-terms http://127.0.0.1/terms"
    assert not hub.contents() and not place.cache.exists()


def test_fetched_weights_load_by_their_locator_without_the_network(hub, place, repositories):
    folder, hashes, said = bring(place)
    assert contents(folder).keys() == {"config.json", WEIGHTS}
    assert hashes.keys() == {WEIGHTS}
    assert said[-1][0] == "fetching" and said[-1][1] == said[-1][2]
    hub.faults.status = 500
    assert locate(str(WAN)) == cached_snapshot(f"{WAN}@{fake_hub.COMMIT}") == folder
    net = small_network(torch.float32, seed=5)
    load_network(net, locate(str(WAN)))
    wanted = small_network(torch.float32)
    assert all(torch.equal(p, wanted.get_parameter(name)) for name, p in net.named_parameters())


def test_huggingface_hub_finds_what_was_fetched_and_the_other_way_round(hub, place):
    from huggingface_hub import snapshot_download

    folder, *_ = bring(place)
    theirs = snapshot_download(WAN.repository, cache_dir=place.cache, local_files_only=True, allow_patterns=[WEIGHTS])
    assert Path(theirs) == folder
    snapshot_download(BOTH.repository, cache_dir=place.cache, endpoint=hub.url, allow_patterns=["model.pt"])
    before = len(hub.contents())
    plan = make_plan(BOTH, hub=place)
    assert missing_bytes(plan) == 0
    bring(place, BOTH)
    assert len(hub.contents()) == before
    assert locate(str(BOTH)) == plan.target


def test_a_second_fetch_brings_nothing_and_checks_again(hub, place):
    folder, hashes, _ = bring(place)
    before = len(hub.contents())
    assert missing_bytes(make_plan(WAN, hub=place)) == 0
    again, same, said = bring(place)
    assert (again, same, len(hub.contents())) == (folder, hashes, before)
    assert said[-1][0] == "checking"


def test_layouts_files_and_encoders(hub, place):
    folder, *_ = bring(place, BOTH)
    assert contents(folder).keys() == {"model.pt"}
    folder, *_ = bring(place, BOTH, layout="diffusers")
    assert len([name for name in contents(folder) if name.startswith("transformer/")]) > 3
    assert load_network(small_network(torch.float32), locate(str(BOTH))).layout == "diffusers"
    folder, *_ = bring(place, BOTH, files=["model_distilled.pt"], encoders=True)
    assert {"model_distilled.pt", "vae/model.safetensors"} <= contents(folder).keys()


@pytest.mark.parametrize(
    ("names", "how", "wanted"),
    [
        (["a-00001-of-2.safetensors", "README.md"], {}, ["a-00001-of-2.safetensors"]),
        (["model.pt", "model_distilled.pt"], {}, ["model.pt"]),
        (["Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "x.pth"], {}, ["x.pth"]),
        (["x.pth", "Wan2.1_VAE.pth", "google/a/b.json"], {"encoders": True}, None),
        (["transformer/config.json", "transformer/a.safetensors", "vae/b.safetensors", "model_index.json"], {}, None),
    ],
)
def test_the_files_of_a_network_by_name(names, how, wanted):
    chosen = select(names, None, **how)
    expected = wanted or [name for name in names if not name.startswith("vae/")]
    assert chosen == sorted(expected)


@pytest.mark.parametrize(
    ("names", "how", "words"),
    [
        (["README.md"], {}, ("no weights",)),
        (["a.pth", "b.pth"], {}, ("several", "--file", "a.pth, b.pth")),
        (["a.pth"], {"files": ["c.pth"]}, ("no file c.pth", "a.pth")),
        (["model.pt"], {"layout": "diffusers"}, ("diffusers layout", "model.pt")),
    ],
)
def test_no_choice_names_what_there_is(names, how, words):
    with refused("E_HUB_NOT_FOUND", *words):
        select(names, how.pop("layout", None), **how)


def test_a_broken_connection_goes_on_by_byte(hub, place):
    hub.faults.cut_after, hub.faults.cut_times = 3_000, 2
    bring(place)
    ranges = [asked for method, path, asked in hub.requests if method == "GET" and path.endswith(WEIGHTS)]
    assert ranges == [None, "bytes=3000-", "bytes=6000-"]


def test_an_interrupted_fetch_goes_on_in_the_next_one(hub, place):
    plan = make_plan(WAN, hub=place)
    hub.faults.cut_after, hub.faults.cut_times = 0, 5
    with refused("E_HUB_UNREACHABLE", "goes on where it stopped"):
        bring(place)
    [large] = [file for file in plan.files if file.sha256]
    partial = place.cache / "models--Tiny-AI--Wan-Tiny" / "blobs" / f"{large.sha256}.rcm-bridge.incomplete"
    assert partial.read_bytes() == b""
    partial.write_bytes(hub.repositories[WAN.repository][WEIGHTS][:5_000])
    assert not plan.target.exists()
    with refused("E_WEIGHTS_NOT_FOUND", "rcm-bridge weights fetch hf:Tiny-AI/Wan-Tiny"):
        locate(str(WAN))
    assert missing_bytes(make_plan(WAN, hub=place)) == plan.size - 5_000
    hub.requests.clear()
    bring(place)
    asked = [asked for method, path, asked in hub.requests if method == "GET" and path.endswith(WEIGHTS)]
    assert asked == ["bytes=5000-"]
    assert not partial.exists()


def test_a_stop_ends_it(hub, place):
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        fetch(make_plan(WAN, hub=place), lambda *_: None, stop, place)
    assert not make_plan(WAN, hub=place).target.exists()


def test_a_server_without_ranges_is_asked_for_the_whole(hub, place):
    hub.faults.cut_after, hub.faults.cut_times, hub.faults.ignores_ranges = 3_000, 1, True
    folder, hashes, said = bring(place)
    assert contents(folder)[WEIGHTS] == hub.repositories[WAN.repository][WEIGHTS]
    assert said[-1][1] == said[-1][2]


def test_spoilt_bytes_never_get_a_place(hub, place):
    hub.faults.spoilt.append(WEIGHTS)
    with refused("E_HUB_HASH", WEIGHTS, "another sha256"):
        bring(place)
    assert not (place.cache / "models--Tiny-AI--Wan-Tiny" / "snapshots").exists()
    hub.faults.spoilt.clear()
    bring(place)


def test_a_file_spoilt_on_this_disk_is_removed_and_fetched_again(hub, place):
    folder, *_ = bring(place)
    blob = (folder / WEIGHTS).resolve()
    blob.write_bytes(bytes(len(blob.read_bytes())))
    with refused("E_HUB_HASH", WEIGHTS):
        bring(place)
    assert contents(bring(place)[0])[WEIGHTS] == hub.repositories[WAN.repository][WEIGHTS]


@pytest.mark.parametrize(
    ("locator", "code", "words"),
    [
        (HubLocator("nobody/nothing"), "E_HUB_NOT_FOUND", ("no model nobody/nothing", "HF_TOKEN")),
        (HubLocator(WAN.repository, "v9"), "E_HUB_NOT_FOUND", ("no revision v9", "main")),
    ],
)
def test_what_is_not_there(hub, place, locator, code, words):
    with refused(code, *words):
        make_plan(locator, hub=place)


def test_gated_unreachable_offline_and_full(hub, place, monkeypatch):
    hub.faults.gated.append(WAN.repository)
    assert make_plan(WAN, hub=place).gated
    with refused("E_HUB_ACCESS", "gated", "HF_TOKEN"):
        bring(place)
    hub.faults.gated.clear()
    plan = make_plan(WAN, hub=place)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1_000}))
    with refused("E_DISK_FULL", "GB free", "HF_HOME"):
        missing_bytes(plan)
    with refused("E_HUB_UNREACHABLE", "HTTPS_PROXY"):
        make_plan(WAN, hub=Hub("http://127.0.0.1:9", place.cache))
    hub.faults.status = 403
    with refused("E_HUB_ACCESS", WAN.repository):
        make_plan(WAN, hub=place)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    from huggingface_hub.utils import close_session

    close_session()  # offline is built into the session
    with refused("E_OFFLINE", "HF_HUB_OFFLINE"):
        make_plan(WAN, hub=place)
    monkeypatch.undo()
    close_session()


@pytest.mark.parametrize("text", ["hf:", "hf:a", "hf:a/b/c", "hf:a/b@", "hf:../b", "hf:a/b@../../x", "hf:a/b@x/../y"])
def test_odd_locators_are_refused(text):
    with refused("E_WEIGHTS_NOT_FOUND", "hf:OWNER/NAME@REVISION"):
        parse_locator(text)


def test_locators_and_the_cache_by_its_variables():
    assert parse_locator("hf:Wan-AI/Wan2.1-T2V-1.3B") == HubLocator("Wan-AI/Wan2.1-T2V-1.3B", "main")
    assert parse_locator("hf:a/b@refs/pr/1").revision == "refs/pr/1"
    assert str(parse_locator("hf:a/b@v1")) == "hf:a/b@v1"
    assert cache_folder({"HF_HUB_CACHE": "/x", "HF_HOME": "/y"}) == Path("/x")
    assert cache_folder({"HF_HOME": "/y"}) == Path("/y/hub")
    assert cache_folder({"XDG_CACHE_HOME": "/z"}) == Path("/z/huggingface/hub")
    assert cache_folder({}) == Path.home() / ".cache/huggingface/hub"


def test_the_cache_is_where_huggingface_hub_says(monkeypatch):
    from huggingface_hub import constants

    assert cache_folder({"HF_HOME": constants.HF_HOME}) == Path(constants.HF_HOME) / "hub"
