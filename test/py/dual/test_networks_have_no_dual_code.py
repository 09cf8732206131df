"""Networks are ordinary code: what a Dual is, only dual/ knows."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import rcm_sidecar.networks

FILES = sorted(Path(rcm_sidecar.networks.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_network_asks_whether_something_is_a_dual(file):
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        names = (
            {name.id for name in ast.walk(node) if isinstance(name, ast.Name)} if isinstance(node, ast.Call) else set()
        )
        assert not ({"isinstance", "Dual"} <= names), f"{file.name}:{node.lineno}"
        assert "Dual" not in names, f"{file.name}:{node.lineno} builds a Dual"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_network_uses_torch_func_or_autocast(file):
    source = file.read_text("utf-8")
    assert "torch.func" not in source
    assert "autocast" not in source
