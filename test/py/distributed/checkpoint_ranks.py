"""What each of several gloo processes does in test_checkpoints.py. Importable by name: the processes are spawned."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from networks import small_wan
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from rcm_sidecar.checkpoints import training_state
from rcm_sidecar.checkpoints.background import CheckpointWriter
from rcm_sidecar.checkpoints.sharded_tensors import local_part
from rcm_sidecar.checkpoints.training_state import (
    TrainingState,
    load_checkpoint,
    verify_written,
    write_checkpoint,
)
from rcm_sidecar.config import Checkpoints
from rcm_sidecar.distributed.fsdp import STORED_PRECISION, shard
from rcm_sidecar.distributed.job_team import JobTeam
from rcm_sidecar.distributed.mesh import ParallelSizes
from rcm_sidecar.errors import CheckpointError, HostError
from rcm_sidecar.training.determinism import Environment
from rcm_sidecar.training.ema import Ema, constant_decay
from rcm_sidecar.training.optimizer import AdamW

STEP = 3


def team():
    """All processes of the default group, this one alone where there is none."""
    size, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    return JobTeam(rank, ParallelSizes(replicate=1, shard=size, context=1), torch.device("cpu"))


def environment():
    return Environment(torch=torch.__version__, threads=1, cpu_capability="DEFAULT", world=team().sizes)


def mesh_of(replicate=1):
    """One axis of shards, or with copies in front of it (HSDP); None without processes to share with."""
    if not dist.is_initialized():
        return None
    if replicate == 1:
        return init_device_mesh("cpu", (team().size,))
    return init_device_mesh("cpu", (replicate, team().size // replicate), mesh_dim_names=("replicate", "shard"))


def trained_state(mesh, steps, seed=0):
    """A small network, its optimizer with both moments and its average after some updates; sharded over a mesh.

    Gradients are a function of name and step, so that one process and many do the same.
    """
    net = small_wan.small_network(seed=seed, out_dim=3)
    if mesh is not None:
        shard(net, mesh, STORED_PRECISION)
    parameters = dict(net.named_parameters())
    optimizer = AdamW(parameters, betas=(0.9, 0.99), epsilon=1e-8, weight_decay=0.01)
    average = Ema(parameters, constant_decay(0.9))
    for step in range(steps):
        for name, parameter in parameters.items():
            parameter.grad = gradient(parameter, int.from_bytes(hashlib.sha256(f"{name} {step}".encode()).digest()[:4]))
        optimizer.step(1e-3)
        average.update(parameters)
    tensors = {"student": parameters, "optimizer-student": optimizer.state_dict(), "ema-0": average.weights}
    return TrainingState(steps, {**tensors, "odd": odd_tensors(mesh, seed + steps)}, {"updates": {"student": steps}})


def gradient(parameter, seed):
    whole = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed), dtype=parameter.dtype)
    if not isinstance(parameter, DTensor):
        return whole
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def odd_tensors(mesh, seed, device="cpu"):
    """What networks do not have: shards that are uneven, empty or along another dimension, plain and 0-d tensors."""
    generator = torch.Generator().manual_seed(seed)
    whole = {
        "uneven": torch.randn(7, 3, generator=generator).bfloat16(),
        "one row": torch.randn(1, 5, generator=generator, dtype=torch.float64),
        "no rows": torch.zeros(0, 4),
        "columns": torch.randint(0, 9, (3, 5), generator=generator),
        "replicated": torch.randn(4, generator=generator),
    }
    plain = {"number": torch.tensor(seed), "flag": torch.tensor(seed % 2 == 0), "plain": torch.full((2, 2), seed + 0.5)}
    whole, plain = ({name: tensor.to(device) for name, tensor in named.items()} for named in (whole, plain))
    if mesh is None:
        return {**whole, **plain}
    last = {"columns": Shard(1), "replicated": Replicate()}
    copies = [Replicate()] * (mesh.ndim - 1)
    return plain | {
        name: distribute_tensor(tensor, mesh, [*copies, last.get(name, Shard(0))], src_data_rank=None)
        for name, tensor in whole.items()
    }


def save(root, replicate=1):
    state = trained_state(mesh_of(replicate), STEP)
    written = write_checkpoint(Path(root), state, environment(), "hash", team())
    verify_written(written.folder, state, team())
    if team().rank == 0:
        document = json.loads((written.folder / "manifest.json").read_text())
        assert document["world"] == {"replicate": 1, "shard": team().size, "context": 1}
        files = {str(p.relative_to(written.folder)): p.stat().st_size for p in written.folder.rglob("*.*")}
        files.pop("manifest.json")
        assert files == {name: file["size"] for name, file in document["files"].items()}
        tensors = sum(size for name, size in files.items() if name != "state.json")
        # Nothing is written twice: what is more than the tensors are the headers.
        assert state.bytes < tensors < state.bytes + 400 * sum(map(len, state.tensors.values())) * team().size
        shares = [sum(s for n, s in files.items() if f"shard-{r + 1:05d}" in n) for r in range(team().size)]
        assert max(shares) < 1.6 * min(shares), shares


def read_back(root, replicate=1):
    """Into a freshly built state of this number of processes: equal to what training here would have made."""
    mesh = mesh_of(replicate)
    stored, manifest = load_checkpoint(Path(root) / "step-00000003", team())
    assert stored.values["updates"] == {"student": STEP} and manifest.step == STEP
    state = trained_state(mesh, 0, seed=9)
    stored.read(state.tensors, team())
    wanted = trained_state(mesh, STEP)
    assert stored.names == wanted.tensors.keys()
    for folder, tensors in wanted.tensors.items():
        for name, tensor in tensors.items():
            ours, theirs = whole(state.tensors[folder][name]), whole(tensor)
            assert torch.equal(ours, theirs), (folder, name)
    return state


def read_and_save(source, target, replicate=1):
    state = read_back(source, replicate)
    state = dataclasses.replace(state, step=STEP, values={"updates": {"student": STEP}})
    write_checkpoint(Path(target), state, environment(), "hash", team())


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def damage_is_seen_by_all(root):
    """One process finds it, all raise it, and it names the checkpoint before."""
    state = trained_state(mesh_of(), 1)
    write_checkpoint(Path(root), state, environment(), "hash", team())
    folder = write_checkpoint(Path(root), dataclasses.replace(state, step=2), environment(), "hash", team()).folder
    file = sorted(folder.glob("ema-0/*"))[-1]
    if team().rank == 0:
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    dist.barrier()
    error = raised(CheckpointError, lambda: load_checkpoint(folder, team()))
    assert error.code == "E_CHECKPOINT_CORRUPT" and file.name in error.message and "step-00000001" in error.hint
    dist.barrier()
    if team().rank == 0:
        file.unlink()
    dist.barrier()
    assert raised(CheckpointError, lambda: load_checkpoint(folder, team())).code == "E_CHECKPOINT_CORRUPT"
    dist.barrier()


def raised(kind, work):
    try:
        work()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def a_full_disk_of_one_stops_all(root):
    """The last process has no space left: all raise the typed error, and nothing is left."""
    state = trained_state(mesh_of(), 1)
    real = os.fsync

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if team().rank == team().size - 1:
        os.fsync = full
    try:
        error = raised(HostError, lambda: write_checkpoint(Path(root), state, environment(), "hash", team()))
    finally:
        os.fsync = real
    assert error.code == "E_DISK_FULL"
    dist.barrier()
    assert not list(Path(root).iterdir())


def training_goes_on(root):
    """Collectives of training run on the default group while the thread's run on their own; the copy is the step's."""
    settings = Checkpoints(every_steps=None, keep_last=1, keep_every_steps=None, async_=True, on_stop=True, export=[])
    writer = CheckpointWriter(Path(root), settings, environment(), "hash", verify=True, team=team())
    real = training_state.save_tensors

    def slow(*arguments):
        time.sleep(0.1 * (1 + team().rank))
        real(*arguments)

    training_state.save_tensors = slow
    mesh, written, rounds = mesh_of(), [], 0
    state = trained_state(mesh, STEP)
    writer.write(state, lambda result: written.append(result.folder.name))
    with torch.no_grad():
        for tensors in state.tensors.values():
            for tensor in tensors.values():
                tensor.zero_()
    going = torch.ones(())
    while going:
        rounds += 1
        going = torch.tensor(0.0 if written else 1.0)
        dist.all_reduce(going, op=dist.ReduceOp.MAX)
    writer.finish()
    assert written == ["step-00000003"] and rounds > 5
    training_state.save_tensors = real
    read_back(root)
    writer.write(trained_state(mesh, STEP + 1), lambda result: written.append(result.folder.name))
    writer.finish()
    dist.barrier()
    assert written[1:] == ["step-00000004"] and [path.name for path in Path(root).iterdir()] == written[1:]


def on_a_gpu(root):
    """From GPU memory through pinned memory to disk, and back into DTensors of a GPU."""
    torch.cuda.set_device(team().rank)
    mesh = init_device_mesh("cuda", (team().size,))
    tensors = odd_tensors(mesh, 1, "cuda")
    for asynchronous in (True, False):
        settings = Checkpoints(
            every_steps=None, keep_last=1, keep_every_steps=None, async_=asynchronous, on_stop=True, export=[]
        )
        writer = CheckpointWriter(Path(root), settings, environment(), "hash", verify=True, team=team())
        step = 2 - asynchronous
        writer.write(TrainingState(step, {"odd": tensors}, {}), lambda _: None)
        writer.finish()
        targets = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
        load_checkpoint(Path(root) / f"step-{step:08d}", team())[0].read({"odd": targets}, team())
        for name, tensor in tensors.items():
            assert targets[name].is_cuda and torch.equal(local_part(targets[name]), local_part(tensor)), name
        dist.barrier()
