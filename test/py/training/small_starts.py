"""Small networks of both families with weights in files, how one process starts from them, what of a file is read."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training.tiny_run import tiny_config

from rcm_sidecar.checkpoints import load_adapter, load_network, reading, save_adapter, save_network
from rcm_sidecar.checkpoints.sources import build_frozen
from rcm_sidecar.networks import build
from rcm_sidecar.networks.lora import LoraConfig, adapter_parameters, attach
from rcm_sidecar.training.randomness import generator

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
