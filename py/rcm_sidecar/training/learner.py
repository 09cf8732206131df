"""What learns in a training job: a whole network, or with LoRA the adapters of one role on a base that roles share."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from rcm_sidecar.checkpoints.adapters import fill_adapter, open_adapter
from rcm_sidecar.checkpoints.load import fill_network, open_for
from rcm_sidecar.checkpoints.sources import locate
from rcm_sidecar.config import Lora, RunConfig
from rcm_sidecar.diffusion import guidance
from rcm_sidecar.distributed.job_team import JobTeam
from rcm_sidecar.networks import Network
from rcm_sidecar.networks.inputs import Role as AdapterRole
from rcm_sidecar.networks.lora import LoraConfig, adapter_parameters, attach, initialise
from rcm_sidecar.safetensors_file import LazyTensor
from rcm_sidecar.training.placement import place
from rcm_sidecar.training.randomness import generator


@dataclass(frozen=True)
class Learner:
    """The weights of one role and the velocity they give.

    Attributes:
        network: The module. With LoRA it is the teacher's, and the other roles have it too.
        adapter: Whose adapters learn; None: all weights do.
    """

    network: Network
    adapter: AdapterRole | None = None

    @property
    def velocity(self) -> guidance.Network:
        """f(x, t, text) as this role sees it; the role is an argument of every call, never a state of the module."""
        return partial(self.network, adapter=self.adapter)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """What the optimizer updates, averages follow and checkpoints keep, by name."""
        if self.adapter is None:
            return dict(self.network.named_parameters())
        return dict(adapter_parameters(self.network, self.adapter))


def start_networks(
    config: RunConfig, teacher: Network, weights: Path, roles: Sequence[AdapterRole], team: JobTeam
) -> dict[str, Learner]:
    """Teacher, student and, for methods that have one, critic as they are before the first step, on all processes.

    Nothing is ever whole in memory: networks are laid out while they are on the meta device, then each process reads
    its own parts from the files. Without LoRA each learner is a network of its own, with the teacher's weights read
    once more or those its `init` names; always from a file, because a teacher stored in bf16 has lost bits. With
    `student.lora` all roles share the teacher's network, which gets adapters in place; `init` may name an adapter file.

    Args:
        config: Of the run.
        teacher: Frozen, on the meta device; filled in place.
        weights: Where its weights are.
        roles: Who learns.
        team: The processes.

    Raises:
        WeightsError: weights or adapters that do not fit.
        ConfigError: E_CONFIG_VALUE, a rank that exceeds a side of a layer, context parallelism that fits no heads.
    """
    inits, lora = starts(config), config.student.lora
    learners: dict[str, Learner] = {}
    for role in roles:
        own = teacher if lora is not None else copy.deepcopy(teacher).requires_grad_(True)
        learners[role] = Learner(own, None if lora is None else role)
    files = [(teacher, weights)]
    adapters: dict[AdapterRole, Mapping[str, LazyTensor]] = {}
    if lora is None:
        files += [(learners[role].network, _file(inits[role], weights)) for role in roles]
    else:
        attach(teacher, lora_config(lora), roles)
        named = [role for role in roles if inits[role] != "teacher"]
        adapters = {role: open_adapter(teacher, role, locate(inits[role])) for role in named}
    opened = [(network, open_for(network, file)) for network, file in files]
    place([network for network, _ in opened], config.compute, team)
    for network, found in opened:
        fill_network(network, found)
    if lora is not None:
        initialise(teacher, generator(config.seed, 0, "lora"))
        for role, stored in adapters.items():
            fill_adapter(teacher, role, stored)
    return learners


def starts(config: RunConfig) -> dict[str, str]:
    """What each role starts from: `teacher`, or a locator."""
    return {"student": config.student.init, "critic": config.critic.init}


def lora_config(settings: Lora) -> LoraConfig:
    """The config block as the networks take it."""
    return LoraConfig(settings.rank, settings.alpha, tuple(settings.targets))


def _file(init: str, teacher: Path) -> Path:
    return teacher if init == "teacher" else locate(init)
