"""For all tests: a slow moment of a shared machine is no failure, so hypothesis sets no time limit on an example."""

import gc
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("rcm", deadline=None)
settings.load_profile("rcm")

MISSING_ON_GPU_MACHINES = frozenset(
    ("PIL", "av", "diffusers", "ftfy", "huggingface_hub", "scipy", "tokenizers", "transformers", "webdataset")
)
"""What `-m gpu` can do without: such a machine may have torch, what the sidecar itself needs and pytest, no network."""


class GpuModule(pytest.Module):
    """A test file that is skipped, with the reason, where a package it imports is not on this GPU machine."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        try:
            return super().collect()
        except self.CollectError as error:
            missing = error.__cause__
            if isinstance(missing, ModuleNotFoundError) and missing.name in MISSING_ON_GPU_MACHINES:
                pytest.skip(f"{missing.name} is not installed", allow_module_level=True)
            raise


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Everywhere else a missing package is a failure: .dev/ is incomplete."""
    if parent.config.option.markexpr != "gpu":
        return None
    module: pytest.Module = GpuModule.from_parent(parent, path=module_path)
    return module


@pytest.fixture(scope="session")
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders with tiny weights, by the name of their maker, made once."""
    if request.config.option.markexpr == "gpu":
        for package in ("diffusers", "transformers"):
            pytest.importorskip(package)
    from encoders import tiny_models

    gc.freeze()  # collecting garbage, as is done after each encoder, would visit all of diffusers and transformers
    root = tmp_path_factory.mktemp("models")
    return {name: make(root / name) for name, make in tiny_models.MAKERS.items()}
