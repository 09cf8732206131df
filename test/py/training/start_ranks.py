"""What each gloo process does with networks that are shared out. Importable by name, because they are spawned."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from training.small_starts import settings, whole_start

from rcm_sidecar.checkpoints.sources import build_frozen
from rcm_sidecar.distributed.job_team import JobTeam
from rcm_sidecar.distributed.mesh import build_mesh, parallel_sizes
from rcm_sidecar.link import Cancel, JobCancelled
from rcm_sidecar.training.learner import start_networks
from rcm_sidecar.training.shared_networks import SharedNetworks


def leading_process_uses_them_as_if_whole(folder, shard, context):
    """Networks are called together, also with fewer samples than processes, and gathered tensor by tensor."""
    sizes = parallel_sizes(dist.get_world_size(), shard=shard, context=context)
    team = JobTeam(dist.get_rank(), sizes, torch.device("cpu"), build_mesh("cpu", sizes))
    config, path = settings("wan", False, "fp32"), Path(folder) / "wan" / "official.safetensors"
    teacher = build_frozen(config.model)
    start_networks(config, teacher, path, (), team)
    shared = SharedNetworks(team, {"teacher": teacher}, dict(teacher.named_parameters()))
    plain = whole_start(config, path)["teacher"]
    source = torch.Generator().manual_seed(3)
    x, text = torch.randn(5, 1, 1, 6, 6, generator=source), torch.randn(1, 4, 7, generator=source).expand(5, -1, -1)
    t = torch.tensor([20.0, 300.0, 500.0, 700.0, 990.0], dtype=torch.float64)
    count = 5

    def work():
        drawn, wanted = (net(x[:count], t[:count], text[:count]) for net in (shared.velocity("teacher"), plain))
        assert drawn.shape == wanted.shape and (drawn - wanted).norm() < 1e-4 * wanted.norm()
        for name, parameter in teacher.named_parameters():
            assert torch.equal(shared.whole(parameter), plain.get_parameter(name)), name
        if count == 1:
            raise JobCancelled(Cancel(checkpoint=True))
        return "done"

    with torch.no_grad():
        assert shared.lead(work) == ("done" if team.leads else None)
        count = 1
        try:
            shared.lead(work)
        except JobCancelled as stopped:
            assert stopped.cancel.checkpoint
        else:
            raise AssertionError("the others went on")
