"""Writes checkpoints in a child process that is killed at a random moment, again and again. A program of its own.

Usage: killed_writer.py FOLDER KILLS. Prints one JSON line: how often a kill left a folder unfinished, the last step.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from rcm_sidecar.checkpoints.training_state import (
    TrainingState,
    load_checkpoint,
    prune,
    read_manifest,
    write_checkpoint,
)
from rcm_sidecar.training.determinism import Environment

HERE = Environment(torch="2.11.0", threads=1, cpu_capability="AVX2")


def state(step: int) -> TrainingState:
    source = torch.Generator().manual_seed(step)
    tensors = {f"layer {index}": torch.randn(64, 200, generator=source) for index in range(8)}
    return TrainingState(step, {"student": tensors, "ema-0": tensors}, {"updates": {"student": step}})


def write_on(root: Path, step: int) -> None:
    while True:
        step += 1
        write_checkpoint(root, state(step), HERE, "hash")
        prune(root, step, keep_last=2, keep_every_steps=None)


def newest(root: Path, previous: int) -> int:
    """Every folder that has a manifest is whole, and none older than the newest before has been lost."""
    steps = [int(path.name[5:]) for path in root.glob("step-*") if path.suffix == "" and read_manifest(path)]
    for step in steps:
        stored, _ = load_checkpoint(root / f"step-{step:08d}")
        for folder, tensors in state(step).tensors.items():
            back = stored.read_whole()[folder]
            assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items()), step
    last = max(steps, default=0)
    assert last >= previous, (last, previous)
    return last


def main(root: Path, kills: int) -> None:
    torch.set_num_threads(1)
    root.mkdir()
    write_checkpoint(root, state(1), HERE, "hash")
    last, unfinished, moments = 1, 0, random.Random(0)
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            write_on(root, last)
            os._exit(1)
        time.sleep(moments.uniform(0.01, 0.3))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        unfinished += any(root.glob("*.tmp"))
        last = newest(root, last)
    write_checkpoint(root, state(last + 1), HERE, "hash")
    assert not any(root.glob("*.tmp")) and not any(root.glob("*.old"))
    print(json.dumps({"unfinished": unfinished, "step": last}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
