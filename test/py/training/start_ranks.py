"""What each of three gloo processes does in test_sharded_start.py. Importable by name, because they are spawned."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training.tiny_run import tiny_config

from rcm_sidecar.checkpoints import load_adapter, load_network, reading, save_adapter, save_network
from rcm_sidecar.checkpoints.sources import build_frozen
from rcm_sidecar.distributed.job_team import JobTeam
from rcm_sidecar.distributed.mesh import Mesh, ParallelSizes
from rcm_sidecar.distributed.tensors import local, whole
from rcm_sidecar.networks import build
from rcm_sidecar.networks.lora import LoraConfig, adapter_parameters, attach
from rcm_sidecar.training.learner import start_networks
from rcm_sidecar.training.randomness import generator
from rcm_sidecar.training.shared_networks import SharedNetworks

# Sides that divide by neither 2 nor 3 in places, and tensors with fewer rows than processes.
WAN = {"dim": 20, "numHeads": 2, "numLayers": 1, "ffnDim": 25, "textDim": 7, "freqDim": 10, "inDim": 1, "outDim": 1}
COSMOS = {"dim": 20, "numHeads": 2, "numLayers": 1, "textDim": 7, "inDim": 1, "outDim": 1, "adalnLoraDim": 5}
MODELS = {"wan": ("wan2.1-tiny", WAN), "cosmos": ("cosmos-predict2-tiny", COSMOS)}
LORA = {"rank": 3, "alpha": 6.0, "targets": ["attention", "ffn"]}
ROLES = ("student", "critic")


def settings(family, lora, compute, **others):
    name, overrides = MODELS[family]
    precision = dict.fromkeys(("time", "master", "reduce", "ema"), "fp32") | {"compute": compute, "residual": compute}
    return tiny_config(
        {
            "model.name": name,
            "model.overrides": overrides,
            "student.lora": LORA if lora else None,
            "compute.precision": precision,
            **others,
        }
    )


def write_weights(folder):
    """Files of each family in the layouts that teams start from, all of the same random numbers, and an adapter."""
    for family, (name, _) in MODELS.items():
        config = settings(family, False, "fp32")
        net = build(name, **config.model.overrides.arguments())
        source = torch.Generator().manual_seed(1)
        for parameter in net.parameters():
            parameter.data = torch.randn(parameter.shape, generator=source)
        save_network(net, folder / family / "official.safetensors")
        save_network(net, folder / family / "diffusers", "diffusers", max_shard_bytes=20_000)
        save_network(net, folder / family / "comfyui.safetensors", "comfyui", dtype=torch.float16)
        save_network(net, folder / family / "rcm.pth")
        attach(net, LoraConfig(3, 6.0), ROLES, generator=source)
        for parameter in adapter_parameters(net, "student").values():
            parameter.data = torch.randn(parameter.shape, generator=source)
        save_adapter(net, "student", folder / family / "adapter.safetensors")


def shards(count):
    """The team of `count` processes that hold the weights between them; None on a process that is not in it."""
    rank, world = dist.get_rank(), dist.get_world_size()
    if count == 1:
        copies = init_device_mesh("cpu", (world, 1), mesh_dim_names=("replicate", "shard"))
        sizes = ParallelSizes(world, 1, 1)
        return JobTeam(rank, sizes, torch.device("cpu"), Mesh(sizes, copies, None))
    mesh = DeviceMesh("cpu", list(range(count)), mesh_dim_names=("shard",))
    sizes = ParallelSizes(1, count, 1)
    return JobTeam(rank, sizes, torch.device("cpu"), Mesh(sizes, mesh, None)) if rank < count else None


def starts_as_a_whole_one(folder, count, family, lora, compute, file, init="teacher"):
    """Names, values bit by bit, dtypes, what trains; and what of the file each process has read."""
    team = shards(count)
    if team is None:
        return
    path, adapter = Path(folder) / family / file, str(Path(folder) / family / init)
    config = settings(family, lora, compute, **{"student.init": init if init == "teacher" else adapter})
    with Reads() as reads:
        teacher = build_frozen(config.model)
        learners = start_networks(config, teacher, path, ROLES, team)
    wanted = whole_start(config, path)
    for name, module in {"teacher": teacher, **{role: learner.network for role, learner in learners.items()}}.items():
        there = dict(wanted[name].named_parameters())
        here = dict(module.named_parameters())
        assert here.keys() == there.keys()
        for key, value in here.items():
            assert torch.equal(whole(value), there[key]), (name, key)
            assert (value.dtype, value.requires_grad) == (there[key].dtype, there[key].requires_grad), (name, key)
            assert len(local(value)) <= -(-len(value) // count), (name, key)
    if init == "teacher":
        networks = {id(net): net for net in (teacher, *(learner.network for learner in learners.values()))}.values()
        own = sum(owned(net, reading.open_weights(path)) for net in networks)
        assert reads.bytes == own, (reads.bytes, own)


def owned(net, stored):
    """Bytes in the file of the parameters' parts that this process holds; the base of a LoRA, not its adapters."""
    itemsize = next(iter(stored.values())).dtype.itemsize
    return itemsize * sum(local(p).numel() for name, p in net.named_parameters() if ".lora." not in name)


def whole_start(config, path):
    """The same networks made by one process the plain way: load, copy, attach, round."""
    teacher = build_frozen(config.model)
    load_network(teacher, path)
    lora = config.student.lora
    if lora is None:
        networks = {"teacher": teacher}
        for role in ROLES:
            networks[role] = build(config.model.name, **config.model.overrides.arguments())
            load_network(networks[role], path)
    else:
        lora = LoraConfig(lora.rank, lora.alpha, tuple(lora.targets))
        attach(teacher, lora, ROLES, generator=generator(config.seed, 0, "lora"))
        networks = dict.fromkeys(("teacher", *ROLES), teacher)
        if config.student.init != "teacher":
            load_adapter(teacher, "student", config.student.init)
    if config.compute.precision.compute == "bf16":
        for name, parameter in teacher.named_parameters():
            if not parameter.requires_grad and not name.startswith(teacher.wide_parts):
                parameter.data = parameter.data.bfloat16()
    return networks


class Reads(TorchDispatchMode):
    """Counts the bytes of mapped weight files that go into any operation that is more than another view of them."""

    def __init__(self):
        super().__init__()
        self.bytes, self._places = 0, []

    def __enter__(self):
        self._mapped = reading._mapped

        def remembered(file):
            mapped = self._mapped(file)
            begin = reading._view(mapped, torch.uint8, 0, 1).data_ptr()
            self._places.append((begin, begin + len(mapped)))
            return mapped

        reading._mapped = remembered
        return super().__enter__()

    def __exit__(self, *raised):
        reading._mapped = self._mapped
        return super().__exit__(*raised)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            tensors = [value for value in tree_leaves((args, kwargs)) if type(value) is torch.Tensor and value.numel()]
            self.bytes += sum(value.nbytes for value in tensors if not value.is_meta and self._is_mapped(value))
        return func(*args, **(kwargs or {}))

    def _is_mapped(self, value):
        return any(begin <= value.data_ptr() < end for begin, end in self._places)


def reading_the_whole_is_noticed(folder):
    """The counter sees a tensor that is cast before it is cut."""
    stored = reading.open_weights
    file = Path(folder) / "wan" / "official.safetensors"
    with Reads() as reads:
        value = stored(file)["blocks.0.ffn.0.weight"].load()
        assert reads.bytes == 0
        value.double()[:1].clone()
    assert reads.bytes == value.nbytes


def leading_process_uses_them_as_if_whole(folder, context):
    """Five samples on three processes: called together, gathered, and still in step after an error and a cancel."""
    world = dist.get_world_size()
    sizes = ParallelSizes(1, 1, world) if context else ParallelSizes(1, world, 1)
    mesh = DeviceMesh("cpu", list(range(world)), mesh_dim_names=("shard",))
    group = dist.new_group(list(range(world))) if context else None
    team = JobTeam(dist.get_rank(), sizes, torch.device("cpu"), Mesh(sizes, mesh, group))
    config = settings("wan", False, "fp32")
    path = Path(folder) / "wan" / "official.safetensors"
    teacher = build_frozen(config.model)
    start_networks(config, teacher, path, (), team)
    shared = SharedNetworks(team, {"teacher": teacher}, dict(teacher.named_parameters()))
    plain = whole_start(config, path)["teacher"]
    source = torch.Generator().manual_seed(3)
    x, text = torch.randn(5, 1, 1, 6, 6, generator=source), torch.randn(1, 4, 7, generator=source).expand(5, -1, -1)
    t = torch.tensor([20.0, 300.0, 500.0, 700.0, 990.0], dtype=torch.float64)

    def work():
        velocity = shared.velocity("teacher")
        with torch.no_grad():
            for count in (5, 1):
                part = slice(0, count)
                drawn, wanted = (net(x[part], t[part], text[part]) for net in (velocity, plain))
                assert drawn.shape == wanted.shape and (drawn - wanted).norm() < 1e-4 * wanted.norm()
        for name, parameter in teacher.named_parameters():
            assert torch.equal(shared.whole(parameter), plain.get_parameter(name)), name
        return "done"

    assert shared.lead(work) == ("done" if team.leads else None)


def fresh_weights_do_not_depend_on_the_processes(family):
    """`pretrain` draws the numbers that one process draws."""
    from rcm_sidecar.training.placement import place

    config = settings(family, False, "fp32")
    name, arguments = config.model.name, config.model.overrides.arguments()
    wanted = build(name, generator=torch.Generator().manual_seed(2), **arguments)
    net = build(name, device="meta", **arguments)
    place([net], config.compute, shards(3))
    net.initialise(torch.Generator().manual_seed(2))
    for key, value in net.named_parameters():
        assert torch.equal(whole(value.detach()), wanted.get_parameter(key)), key
