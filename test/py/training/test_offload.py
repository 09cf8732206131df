"""Moments and averages that rest in main memory: the same bits in steps, in the state and after a resume."""

from __future__ import annotations

import pytest
import torch
from training.tiny_run import comparable, run, start

from rcm_sidecar.training import offload
from rcm_sidecar.training.ema import Ema, power_decay
from rcm_sidecar.training.optimizer import AdamW

SHAPES = {"a": (3, 4), "b": (5,), "long": (41,), "none": (0, 3), "c": (7,), "d": (2, 2, 2), "e": (6,), "f": (1,)}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def named(device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(device).requires_grad_() for name, shape in SHAPES.items()}


def train(parameters, optimizer, averages, steps):
    for step in steps:
        for name, value in named(optimizer_device(parameters), 100 + step).items():
            parameters[name].grad = value.detach()
        optimizer.step(0.1 / (1 + step))
        averages.update(parameters)


def optimizer_device(parameters):
    return parameters["a"].device


def make(parameters, betas, offloaded):
    optimizer = AdamW(parameters, betas=betas, epsilon=1e-8, weight_decay=0.1, offload=offloaded)
    return optimizer, Ema(parameters, power_decay(0.1), offloaded)


@pytest.fixture(params=[1, 20, 1 << 24], ids=["each alone", "several buckets", "one bucket"])
def bucket(request, monkeypatch):
    monkeypatch.setattr(offload, "BUCKET_ELEMENTS", request.param)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("betas", [(0.0, 0.99), (0.9, 0.99)])
def test_the_same_bits_as_without(betas, device, bucket):
    results = []
    for offloaded in (False, True):
        parameters = named(device)
        optimizer, averages = make(parameters, betas, offloaded)
        train(parameters, optimizer, averages, range(4))
        state = {name: value.detach().clone() for name, value in optimizer.state_dict().items()}
        kept = {name: value.clone() for name, value in averages.weights.items()}
        if offloaded:
            assert {value.device.type for value in (*state.values(), *kept.values())} == {"cpu"}
        again = named(device, seed=1)
        resumed, resumed_averages = make(again, betas, offloaded)
        resumed.load_state_dict(state)
        resumed_averages.load(kept, averages.updates)
        for name, value in parameters.items():
            again[name].data.copy_(value)
        train(parameters, optimizer, averages, range(4, 6))
        train(again, resumed, resumed_averages, range(4, 6))
        assert all(torch.equal(again[name], value) for name, value in parameters.items())
        results.append([parameters, optimizer.state_dict(), averages.weights])
    for without, rested in zip(*results, strict=True):
        assert without.keys() == rested.keys()
        assert all(torch.equal(rested[name].cpu(), value.cpu()) for name, value in without.items())
    assert (results[0][0]["a"] - named(device)["a"]).norm() > 0.1


def test_buckets_cover_all_rows_once(bucket):
    sizes = [3, 9, 0, 20, 1, 21, 5, 6, 9]
    chosen = list(offload._buckets(sizes))
    assert [index for one in chosen for index in range(len(sizes))[one]] == list(range(len(sizes)))
    assert all(sum(sizes[one]) <= offload.BUCKET_ELEMENTS or one.stop - one.start == 1 for one in chosen)


def test_a_run_on_a_cpu_is_the_same_run(tiny_teacher, tmp_path):
    runs = []
    for value in ("none", "optimizer"):
        settings = {"teacher.weights": str(tiny_teacher), "schedule.steps": 3, "compute.offload": value}
        end, link = run(start(tmp_path / value, settings))
        assert end.state == "succeeded"
        runs.append(comparable(link))
    assert runs[0] == runs[1]


@pytest.mark.gpu
def test_less_of_the_gpu_is_taken():
    """48 million elements: moments and averages of 192 MB each, of which three buckets of 64 MB visit."""
    taken = {}
    for offloaded in (False, True):
        parameters = {str(index): torch.zeros(1 << 22, device="cuda", requires_grad=True) for index in range(12)}
        before = torch.cuda.memory_allocated()
        optimizer, averages = make(parameters, (0.9, 0.99), offloaded)
        for value in parameters.values():
            value.grad = torch.ones_like(value)
        optimizer.step(0.1)
        averages.update(parameters)
        optimizer.zero_grad()
        torch.cuda.synchronize()
        taken[offloaded] = torch.cuda.memory_allocated() - before
        del optimizer, averages, parameters
    assert taken[False] >= 3 * 12 * (1 << 24)
    assert taken[True] <= 2 * offload.SLOTS * 4 * offload.BUCKET_ELEMENTS + (1 << 20) < taken[False]
