"""Networks are never whole on a process: built on the meta device, shared out, each part read from the files."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from distributed.spawn import run_on_ranks
from training import start_ranks

OFFICIAL = "official.safetensors"
LAYOUTS = ("diffusers", "comfyui.safetensors", "rcm.pth")


def equal(folder: Path, count: int, family: str, lora: bool, compute: str, *files: str) -> tuple[object, ...]:
    return ("starts_as_a_whole_one", str(folder), count, family, lora, compute, *files)


def test_parts_are_those_of_whole_networks_and_nothing_else_is_read(tmp_path: Path) -> None:
    start_ranks.write_weights(tmp_path)
    run_on_ranks(
        3,
        tmp_path,
        start_ranks,
        ("reading_the_whole_is_noticed", str(tmp_path)),
        equal(tmp_path, 1, "wan", False, "bf16", OFFICIAL),
        equal(tmp_path, 2, "cosmos", True, "fp32", "diffusers"),
        equal(tmp_path, 3, "cosmos", False, "bf16", "comfyui.safetensors"),
        equal(tmp_path, 3, "wan", False, "fp32", "rcm.pth"),
        equal(tmp_path, 3, "wan", True, "bf16", OFFICIAL, "adapter.safetensors"),
        ("fresh_weights_do_not_depend_on_the_processes", "wan"),
        ("leading_process_uses_them_as_if_whole", str(tmp_path), False),
    )


@pytest.mark.long
def test_every_combination(tmp_path: Path) -> None:
    start_ranks.write_weights(tmp_path)
    families = tuple(start_ranks.MODELS)
    layouts = itertools.product((1, 2, 3), families, (False, True), ("fp32", "bf16"), (OFFICIAL,))
    files = itertools.product((3,), families, (False,), ("bf16",), LAYOUTS)
    adapters = itertools.product((2, 3), families, (True,), ("bf16",), (OFFICIAL,), ("adapter.safetensors",))
    run_on_ranks(
        3,
        tmp_path,
        start_ranks,
        *(equal(tmp_path, *combination) for combination in (*layouts, *files, *adapters)),
        *(("fresh_weights_do_not_depend_on_the_processes", family) for family in families),
        ("leading_process_uses_them_as_if_whole", str(tmp_path), True),
    )
