"""Model folders with tiny weights, made once."""

import pytest
from encoders import tiny_models


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    makers = (
        tiny_models.wan_original,
        tiny_models.wan_diffusers,
        tiny_models.cosmos_original,
        tiny_models.cosmos_diffusers,
    )
    return {make.__name__: make(root / make.__name__) for make in makers}
