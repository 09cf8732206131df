"""What learns in a training job: a whole network, or with LoRA the adapters of one role on a base that roles share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from rcm_sidecar.checkpoints import load_adapter
from rcm_sidecar.checkpoints.sources import load_frozen, locate
from rcm_sidecar.config import Lora, RunConfig
from rcm_sidecar.diffusion import guidance
from rcm_sidecar.networks import Network
from rcm_sidecar.networks.inputs import Role as AdapterRole
from rcm_sidecar.networks.lora import LoraConfig, adapter_parameters, attach
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

    def copy(self) -> Learner:
        """The same role with frozen parameters of its own; all others, a LoRA's base, are the same tensors."""
        own = {id(parameter) for parameter in self.parameters.values()}
        memo: dict[int, Any] = {id(p): p for p in self.network.parameters() if id(p) not in own}
        copied = Learner(copy.deepcopy(self.network, memo), self.adapter)
        for parameter in copied.parameters.values():
            parameter.requires_grad_(False)
        return copied


def start_learners(config: RunConfig, teacher: Network, roles: Sequence[AdapterRole]) -> dict[str, Learner]:
    """Student and, for methods that have one, critic as they are before the first step.

    Without LoRA each is a network of its own: a copy of the teacher's, or the weights its `init` names. With
    `student.lora` all roles share the teacher's network, which gets adapters in place; `init` may name an adapter file.

    Raises:
        WeightsError: weights or adapters that do not fit.
        ConfigError: E_CONFIG_VALUE, a rank that exceeds a side of a layer.
    """
    inits, lora = starts(config), config.student.lora
    if lora is None:
        return {role: Learner(_whole(config, inits[role], teacher)) for role in roles}
    attach(teacher, lora_config(lora), roles, generator=generator(config.seed, 0, "lora"))
    for role in roles:
        if inits[role] != "teacher":
            load_adapter(teacher, role, locate(inits[role]))
    return {role: Learner(teacher, role) for role in roles}


def starts(config: RunConfig) -> dict[str, str]:
    """What each role starts from: `teacher`, or a locator."""
    return {"student": config.student.init, "critic": config.critic.init}


def lora_config(settings: Lora) -> LoraConfig:
    """The config block as the networks take it."""
    return LoraConfig(settings.rank, settings.alpha, tuple(settings.targets))


def _whole(config: RunConfig, init: str, teacher: Network) -> Network:
    if init == "teacher":
        return copy.deepcopy(teacher).requires_grad_(True)
    return load_frozen(config.model, Path(locate(init))).requires_grad_(True)
