"""How long steps wait for checkpoints: a real training job on this machine, its checkpoints written while it goes on.

    python scripts/bench-checkpoints.py [--processes 2] [--every 10] [--steps 60] [--dim 64] [--layers 3] [--set K=V]...

Pretrains the digits network, at its own or a larger size, on CPU processes (`--set compute.device=cuda`: on GPUs). Rank
0 prints one JSON line: bytes of a checkpoint; how long training stood still for it (a copy to memory, and what was left
of writing the one before); the share of all time that is; the median step while none is written and while one is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("py", "kernels")]

from rcm_sidecar.checkpoints.background import CheckpointWriter  # noqa: E402
from rcm_sidecar.jobs import run_job  # noqa: E402
from rcm_sidecar.link import Recorded, RecordingLink  # noqa: E402
from rcm_sidecar.protocol import EvaluationPlan, PretrainStart  # noqa: E402


def resolved(pairs: list[str]) -> dict[str, Any]:
    """The config as the command line resolves it."""
    words = [word for pair in pairs for word in ("--set", pair)]
    command = ["node", str(ROOT / "bin" / "rcm-bridge.js"), "config", "print", "digits-rcm", "--json", *words]
    config: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["config"]
    config["schedule"]["microBatchSize"] = "auto"  # printed as what it is for a distillation
    return config


class Times:
    """When steps ended, when checkpoints were on disk, and how long each made its step wait."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []
        self.writing: list[tuple[float, float]] = []
        self.waits: list[float] = []
        self.link = RecordingLink(self._note)
        self._write = CheckpointWriter.write

    def _note(self, record: Recorded) -> None:
        now = time.perf_counter()
        if record.type == "metric":
            self.steps.append((now, record.body["values"]["time/step_ms"] / 1000))
        if record.type == "checkpoint":
            self.writing.append((now - record.body.seconds, now))

    def write(self, writer: CheckpointWriter, *arguments: Any) -> None:
        """Stands in for `CheckpointWriter.write`."""
        began = time.perf_counter()
        self._write(writer, *arguments)
        self.waits.append(time.perf_counter() - began)

    def summary(self) -> dict[str, float]:
        """Without the first checkpoint, for which memory is taken and a package imported, and the steps before it."""
        begin = self.writing[0][1]
        quiet, busy = [], []
        for ended, seconds in self.steps:
            if ended - seconds > begin:
                is_busy = any(ended > start and ended - seconds < end for start, end in self.writing)
                (busy if is_busy else quiet).append(seconds)
        waits = self.waits[1:-1]
        whole = self.steps[-1][0] - begin
        return {
            "waitFirstSeconds": self.waits[0],
            "waitSeconds": statistics.median(waits),
            "waitMostSeconds": max(waits),
            "waitShare": sum(waits) / whole,
            "writingSeconds": statistics.median(end - start for start, end in self.writing[1:-1]),
            "stepSeconds": statistics.median(quiet) if quiet else float("nan"),
            "stepWhileWritingSeconds": statistics.median(busy) if busy else float("nan"),
            "stepsPerSecond": (len(quiet) + len(busy)) / whole,
        }


def main() -> None:  # noqa: D103
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("processes", 2), ("every", 10), ("steps", 60), ("dim", 64), ("layers", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args()
    pairs = [
        f"model.overrides.dim={asked.dim}",
        f"model.overrides.ffnDim={4 * asked.dim}",
        f"model.overrides.numLayers={asked.layers}",
        f"pretrain.steps={asked.steps}",
        f"checkpoints.everySteps={asked.every}",
        f"compute.gpusPerNode={asked.processes}",
        f"compute.parallel.shard={asked.processes}",
        *("compute.device=cpu", "checkpoints.keepLast=1", "checkpoints.export=[]", "logging.everySteps=1"),
        *("evaluation.previews.everySteps=null", *asked.set),
    ]
    plan = EvaluationPlan(
        rows=(), samples=1, seed=0, network="ema", features=None, metrics=(), neighbours=1, bootstrap_resamples=0,
        preview_steps=(1,),
    )  # fmt: skip
    times = Times()
    with tempfile.TemporaryDirectory() as folder:
        start = PretrainStart(
            config=resolved(pairs), run_id="bench", run_dir=folder, attempt=1, resume_from=None, allow_drift=False,
            cache_dir=folder, plan=plan, smoke=False,
        )  # fmt: skip
        with patch.object(CheckpointWriter, "write", lambda writer, *arguments: times.write(writer, *arguments)):
            run_job(start, times.link)
    size = times.link.of_type("checkpoint")[0].bytes
    print(json.dumps({"processes": asked.processes, "bytes": size, "every": asked.every, **times.summary()}))


if __name__ == "__main__":
    main()
