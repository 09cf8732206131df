from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from training.tiny_run import COSMOS, make_teacher


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export folder of a teacher that the pretrain job made."""
    return make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def cosmos_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of the other family."""
    return make_teacher(tmp_path_factory.mktemp("cosmos-teacher"), COSMOS)


@pytest.fixture(autouse=True)
def restore_torch_settings() -> Iterator[None]:
    """Jobs set threads and flags of the process; other tests must not see them."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
