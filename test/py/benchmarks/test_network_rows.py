"""Every row of `make bench-network` can be asked for by name and runs; a row that fails leaves the others alone."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import torch
from network_bench import passes

BENCH = Path(__file__).resolve().parents[3] / "scripts" / "bench-network.py"


def run_bench(monkeypatch, out, *arguments):
    monkeypatch.setattr(sys, "argv", ["bench-network", "--cpu", "--repeats", "1", "--out", str(out), *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    runpy.run_path(str(BENCH), run_name="__main__")
    return json.loads(out.read_text())["rows"]


def test_every_row_runs(monkeypatch, tmp_path):
    rows = run_bench(monkeypatch, tmp_path / "out.json", "--case", "smoke", "--pass", *passes.PASSES)
    assert [row["pass"] for row in rows] == list(passes.PASSES)
    assert not [row["error"] for row in rows if "error" in row]
    flops = {row["pass"]: row["flops"] for row in rows}
    assert all(row["ms"] > 0 and row["batch"] == 1 for row in rows)
    for kind in ("plain", "dual"):
        # Nothing is counted less often than it runs: what is kept is not computed again.
        none, selective, asymmetric, block = (
            flops[f"{kind}+backward {mode}"] for mode in ("none", "selective", "asymmetric", "block")
        )
        assert none == selective < asymmetric < block
    assert flops["plain"] < flops["dual"] < flops["dual+backward none"]


def test_a_batch_of_the_other_family(monkeypatch, tmp_path):
    asked = ("plain+backward none", "dual+backward selective", "update")
    rows = run_bench(monkeypatch, tmp_path / "out.json", "--case", "smoke-cosmos", "--pass", *asked)
    assert [(row["pass"], row["batch"], "error" in row) for row in rows] == [(name, 2, False) for name in asked]


def test_a_row_without_memory_says_so_and_the_others_run(monkeypatch, tmp_path, capsys):
    def too_large(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 93.00 GiB.")

    monkeypatch.setitem(passes.PASSES, "dual+backward none", too_large)
    asked = ("plain", "dual+backward none", "dual")
    rows = run_bench(monkeypatch, tmp_path / "out.json", "--case", "smoke", "--pass", *asked)
    assert [row["pass"] for row in rows] == list(asked)
    assert [row.get("error") for row in rows] == [
        None,
        "out of memory: CUDA out of memory. Tried to allocate 93.00 GiB.",
        None,
    ]
    assert "93.00 GiB" in capsys.readouterr().out


def test_the_blocks_that_fit_follow_from_the_free_memory(monkeypatch, tmp_path):
    bench = runpy.run_path(str(BENCH), run_name="bench")
    room = bench["_room"]
    peaks = {1: int(10e9), 2: int(13e9)}
    monkeypatch.setitem(room.__globals__, "_peak_of", lambda case, name, layers, device: peaks[layers])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(100e9), int(141e9)))
    found = room("wan2.1-14b", "dual", torch.device("cpu"))
    assert found == {"blocks": 28, "of": 40, "free_gb": 100.0, "one_gb": 10.0, "each_gb": 3.0}
    peaks[2] = int(11e9)
    assert room("wan2.1-14b", "dual", torch.device("cpu"))["blocks"] == 40
