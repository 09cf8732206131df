"""Cosmos-Predict2 in the trainer: the default config with the other network, a teacher by `pretrain`, a student."""

from __future__ import annotations

import math

import torch
from training.tiny_run import run, start

from rcm_sidecar.checkpoints import load_network
from rcm_sidecar.networks import build
from rcm_sidecar.protocol import PretrainStart

SIZES = {"dim": 24, "numHeads": 2, "numLayers": 1, "textDim": 16, "inDim": 1, "outDim": 1}
# The default config's overrides for Wan are switched off, as a user does it.
MODEL = {"model.name": "cosmos-predict2-tiny", "model.overrides": {**SIZES, "ffnDim": None, "freqDim": None}}


def network():
    return build("cosmos-predict2-tiny", dim=24, num_heads=2, num_layers=1, text_dim=16, in_dim=1, out_dim=1)


def test_pretrain_and_distill(tmp_path):
    end, _ = run(start(tmp_path / "teacher", {**MODEL, "pretrain.steps": 30}, job=PretrainStart))
    assert end.state == "succeeded"
    teacher = tmp_path / "teacher" / "export" / "official"
    end, link = run(start(tmp_path / "student", {**MODEL, "teacher.weights": str(teacher)}))
    assert end.state == "succeeded"
    losses = [values["scm/loss"] for _, phase, values in link.metric_values() if phase == "student"]
    assert len(losses) > 3 and all(math.isfinite(loss) for loss in losses)
    nets = {folder: network() for folder in (teacher, *(tmp_path / "student" / export.path for export in end.exports))}
    for folder, net in nets.items():
        load_network(net, folder)
    original, official, diffusers = nets.values()
    for name, parameter in official.named_parameters():
        assert torch.equal(parameter, diffusers.get_parameter(name))
    assert any(not torch.equal(p, original.get_parameter(name)) for name, p in official.named_parameters())
