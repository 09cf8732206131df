"""Model folders with tiny weights, made once."""

import gc

import pytest
from encoders import tiny_models


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    gc.freeze()  # collecting garbage, as is done after each encoder, would visit all of diffusers and transformers
    root = tmp_path_factory.mktemp("models")
    return {name: make(root / name) for name, make in tiny_models.MAKERS.items()}
