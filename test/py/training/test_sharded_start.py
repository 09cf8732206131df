"""Networks are never whole on a process: built on the meta device, shared out, each part read from the files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from distributed.spawn import run_on_ranks
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.testing._internal.distributed.fake_pg import FakeStore
from training import start_ranks
from training.small_starts import MODELS, ROLES, Reads, settings, whole_start, write_weights

from rcm_sidecar.checkpoints import reading
from rcm_sidecar.checkpoints.sources import build_frozen
from rcm_sidecar.distributed.job_team import JobTeam
from rcm_sidecar.distributed.mesh import ParallelSizes, build_mesh
from rcm_sidecar.distributed.tensors import local
from rcm_sidecar.networks import Network, build
from rcm_sidecar.networks.lora import is_adapter
from rcm_sidecar.training.learner import start_networks
from rcm_sidecar.training.placement import place

OFFICIAL = "official.safetensors"
ADAPTER = "adapter.safetensors"
EVERY_START = (
    *itertools.product(((1, 2), (1, 3), (2, 3)), MODELS, (False, True), ("fp32", "bf16"), (OFFICIAL,), ("teacher",)),
    *itertools.product(((1, 3),), MODELS, (False,), ("bf16",), ("diffusers", "comfyui.safetensors"), ("teacher",)),
    *itertools.product(((1, 3),), MODELS, (True,), ("fp32", "bf16"), ("rcm.pth",), (ADAPTER,)),
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    write_weights(folder)
    return folder


@contextmanager
def one_of(sizes: ParallelSizes, rank: int) -> Iterator[JobTeam]:
    """This process as any one of a team whose others are not there: a start sends nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=sizes.world)
    try:
        yield JobTeam(rank, sizes, torch.device("cpu"), build_mesh("cpu", sizes))
    finally:
        dist.destroy_process_group()
        # It holds meshes, which are equal on all ranks and yet know which rank they are.
        _clear_sharding_prop_cache()


def owned(network: Network, itemsize: int) -> int:
    """Bytes in the file of the parts that this process holds; of a LoRA the base."""
    return itemsize * sum(local(p).numel() for name, p in network.named_parameters() if not is_adapter(name))


@pytest.mark.parametrize(
    ("shape", "family", "lora", "compute", "file", "init"),
    [
        ((1, 1), "wan", False, "fp32", OFFICIAL, "teacher"),
        ((1, 2), "cosmos", True, "bf16", OFFICIAL, "teacher"),
        ((1, 3), "wan", True, "fp32", "diffusers", ADAPTER),
        ((1, 3), "cosmos", False, "bf16", "rcm.pth", "teacher"),
        ((2, 2), "wan", False, "bf16", "comfyui.safetensors", "teacher"),
        ((1, 2), "cosmos", False, "fp32", "diffusers", OFFICIAL),
        *(pytest.param(*case, marks=pytest.mark.long) for case in EVERY_START),
    ],
)
def test_the_parts_of_all_processes_are_the_whole_and_nothing_else_is_read(
    shape: tuple[int, int], family: str, lora: bool, compute: str, file: str, init: str, weights: Path
) -> None:
    sizes = ParallelSizes(*shape, context=1)
    path = weights / family / file
    changes = {"student.init": init if init == "teacher" else str(weights / family / init)}
    config = settings(family, lora, compute, **changes)
    itemsize = next(iter(reading.open_weights(path).values())).dtype.itemsize
    parts: dict[tuple[str, str], list[torch.Tensor]] = {}
    for rank in range(sizes.world):
        with one_of(sizes, rank) as team:
            teacher = build_frozen(config.model)
            with Reads() as reads:
                learners = start_networks(config, teacher, path, ROLES, team)
            networks = {"teacher": teacher, **{role: learner.network for role, learner in learners.items()}}
            for name, network in networks.items():
                for key, value in network.named_parameters():
                    parts.setdefault((name, key), []).append(local(value.detach()))
            if init == "teacher":
                assert reads.bytes == sum(owned(net, itemsize) for net in set(networks.values()))
    for name, network in whole_start(config, path).items():
        for key, wanted in network.named_parameters():
            found = parts.pop((name, key))
            for replica in range(sizes.replicate):
                whole = torch.cat(found[replica * sizes.shard : (replica + 1) * sizes.shard])
                assert whole.dtype == wanted.dtype and torch.equal(whole, wanted), (name, key)
    assert not parts


def test_the_counter_sees_a_tensor_that_is_cast_before_it_is_cut(weights: Path) -> None:
    with Reads() as reads:
        value = reading.open_weights(weights / "wan" / OFFICIAL)["blocks.0.ffn.0.weight"].load()
        value[3:4, 2:].clone()
        assert reads.bytes == value[3:4, 2:].nbytes
        value.double()[:1].clone()
    assert reads.bytes == value[3:4, 2:].nbytes + value.nbytes


@pytest.mark.parametrize("family", MODELS)
def test_fresh_weights_do_not_depend_on_the_processes(family: str) -> None:
    """`pretrain` draws the numbers that one process draws."""
    config, sizes = settings(family, False, "fp32"), ParallelSizes(1, 3, 1)
    name, arguments = config.model.name, config.model.overrides.arguments()
    parts: dict[str, list[torch.Tensor]] = {}
    for rank in range(sizes.world):
        with one_of(sizes, rank) as team:
            network = build(name, device="meta", **arguments)
            place([network], config.compute, team)
            network.initialise(torch.Generator().manual_seed(2))
            for key, value in network.named_parameters():
                parts.setdefault(key, []).append(local(value.detach()))
    for key, wanted in build(name, generator=torch.Generator().manual_seed(2), **arguments).named_parameters():
        assert torch.equal(torch.cat(parts[key]), wanted), key


@pytest.mark.long
def test_three_processes_call_and_gather_together(weights: Path, tmp_path: Path) -> None:
    run_on_ranks(
        3,
        tmp_path,
        start_ranks,
        ("leading_process_uses_them_as_if_whole", str(weights), 3, 1),
        ("leading_process_uses_them_as_if_whole", str(weights), 1, 3),
        ("leading_process_uses_them_as_if_whole", str(weights), 1, 1),
    )
