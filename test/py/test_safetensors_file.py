"""Our safetensors writer against the library's."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rcm_sidecar.safetensors_file import DTYPES, LazyTensor, in_memory, read_header, write_safetensors

shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
tables = st.dictionaries(st.text(max_size=6), st.tuples(st.sampled_from(list(DTYPES.values())), shapes), max_size=8)


def filled(dtype, shape):
    return torch.arange(math.prod(shape)).reshape(shape).to(dtype)


@given(tables)
@settings(deadline=None, max_examples=40, derandomize=True)
def test_bytes_are_those_of_the_library(tmp_path_factory, table):
    folder = tmp_path_factory.getbasetemp()
    tensors = {name: filled(dtype, shape) for name, (dtype, shape) in table.items() if name != "__metadata__"}
    save_file(tensors, folder / "theirs", metadata={"format": "pt"})
    lazy = {name: in_memory(tensor) for name, tensor in tensors.items()}
    write_safetensors(folder / "ours", lazy, {"format": "pt"})
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()


def test_several_metadata_keys_and_no_metadata(tmp_path):
    facts = {"b": "é", "a": '{"x": 1}'}
    write_safetensors(tmp_path / "w", {"w": in_memory(torch.ones(2))}, facts)
    with safe_open(tmp_path / "w", framework="pt") as content:
        assert content.metadata() == facts
    write_safetensors(tmp_path / "w", {"w": in_memory(torch.ones(2))}, {})
    assert list(read_header(tmp_path / "w")[1]) == ["w"]


def test_zeros_become_holes_and_read_as_zeros(tmp_path):
    tensors = {"a": torch.zeros(2**20), "b": torch.ones(3), "z": torch.zeros(2**21)}
    file = tmp_path / "w"
    write_safetensors(file, {name: in_memory(tensor) for name, tensor in tensors.items()}, {})
    assert file.stat().st_size > 12 * 2**20
    assert file.stat().st_blocks * 512 < 2**20
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(file).items())


def test_minus_zero_is_no_hole(tmp_path):
    write_safetensors(tmp_path / "w", {"w": in_memory(torch.full((2**20,), -0.0))}, {})
    assert torch.signbit(load_file(tmp_path / "w")["w"]).all()


def test_one_tensor_at_a_time_in_the_order_of_the_file(tmp_path):
    alive, most, order = [], [], []

    def lazy(name):
        def load():
            order.append(name)
            tensor = torch.ones(3)
            alive.append(torch.utils.weak.WeakTensorKeyDictionary())
            alive[-1][tensor] = name
            most.append(sum(len(table) for table in alive))
            return tensor

        return LazyTensor((3,), torch.float32, load)

    sizes = []
    write_safetensors(tmp_path / "w", {name: lazy(name) for name in "dacb"}, {}, sizes.append)
    assert (order, max(most), sizes) == (["a", "b", "c", "d"], 1, [12] * 4)


def test_a_tensor_that_is_not_what_was_declared(tmp_path):
    with pytest.raises(ValueError, match="w is"):
        write_safetensors(tmp_path / "w", {"w": LazyTensor((2,), torch.float32, lambda: torch.ones(3))}, {})
