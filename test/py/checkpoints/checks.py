"""What tests of weight files share."""

from __future__ import annotations

import pytest
import torch

from rcm_sidecar.checkpoints import load_network
from rcm_sidecar.errors import WeightsError


def state(net):
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


def assert_same(a, b):
    first, second = state(a), state(b)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def refused(net, path, code, *words):
    """Loading fails with `code`, says `words`, and leaves the network as it was."""
    before = state(net)
    with pytest.raises(WeightsError) as caught:
        load_network(net, path)
    error = caught.value
    assert error.code == code, error.message
    for word in words:
        assert word in f"{error.message}\n{error.hint}", f"{error.message}\n{error.hint}"
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(net).items())
    return error


def files_of(folder):
    """Everything below a folder, by path relative to it, with its bytes."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
