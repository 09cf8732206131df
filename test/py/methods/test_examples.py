"""The examples in docstrings are true."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["methods.rcm", "diffusion.samplers", "training.schedule", "training.ema"])
def test_examples(name):
    result = doctest.testmod(importlib.import_module(f"rcm_sidecar.{name}"))
    assert result.attempted > 0 and result.failed == 0
