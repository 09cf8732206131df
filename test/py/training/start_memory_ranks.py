"""What each of four gloo processes does in test_start_memory.py. Importable by name, because they are spawned."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from training.small_starts import settings

from rcm_sidecar.checkpoints import save_network
from rcm_sidecar.checkpoints.reading import open_weights
from rcm_sidecar.distributed.job_team import JobTeam
from rcm_sidecar.distributed.mesh import Mesh, ParallelSizes
from rcm_sidecar.distributed.tensors import local
from rcm_sidecar.training.setup import set_up_distillation
from rcm_sidecar.training.shared_networks import SharedNetworks
from rcm_sidecar.training.state import live_tensors

ALLOWED = 2e9
"""Beyond its share: what the interpreter and torch take, and one tensor."""


class Peak(threading.Thread):
    """Largest RssAnon of this process in bytes, looked at every 10 ms."""

    def __init__(self):
        super().__init__(daemon=True)
        self.bytes, self._done = 0, threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *raised):
        self._done.set()
        self.join()

    def run(self):
        while not self._done.wait(0.01):
            found = re.search(r"^RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
            self.bytes = max(self.bytes, 1024 * int(found[1]))


def start_and_export(folder, lora, layers):
    """The whole set-up of a run and the export at its end; no process ever needs much beyond its share."""
    world = dist.get_world_size()
    sizes = ParallelSizes(1, world, 1)
    mesh = init_device_mesh("cpu", (world,), mesh_dim_names=("shard",))
    team = JobTeam(dist.get_rank(), sizes, torch.device("cpu"), Mesh(sizes, mesh, None))
    changes = {"model.name": "wan2.1-t2v-1.3b", "model.overrides": {"numLayers": layers}, "method": "scm"}
    config = settings("wan", lora, "bf16", **changes, **{"teacher.weights": folder})
    with Peak() as peak:
        trained = set_up_distillation(config, False, team)
        started = peak.bytes
        net = trained.learner.network
        shared = SharedNetworks(team, {}, dict(net.named_parameters()))
        target = Path(folder) / "export" / "model.safetensors"
        shared.lead(lambda: save_network(net, target, adapter=trained.learner.adapter, whole=shared.whole))
    held = {id(value): value for module in (trained.teacher, net) for value in module.parameters()}
    held |= {id(value): value for named in live_tensors(trained).values() for value in named.values()}
    share = sum(local(value).nbytes for value in held.values())
    everything = sum(value.numel() * value.element_size() for value in held.values())
    print(
        f"rank {team.rank}: {everything / 1e9:.2f} GB in all, share {share / 1e9:.2f} GB, "
        f"RssAnon {started / 1e9:.2f} GB after the start, {peak.bytes / 1e9:.2f} GB at most",
        flush=True,
    )
    assert share <= 1.01 * everything / world
    assert peak.bytes < share + ALLOWED < everything
    if team.leads:
        assert len(open_weights(target)) == sum(".lora." not in name for name, _ in net.named_parameters())
    dist.barrier()
