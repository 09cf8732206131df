"""Low-rank adapters on the linear layers of a network's blocks; one base serves teacher, student and critic.

The role is an argument of every forward, `net(x, t, text, adapter="student")`, and a checkpointed block keeps the one
it was called with. It is never a state of a module: a state that changes between forward and backward gives a wrong
gradient without an error (design.md section 2). Without a role the network is its base, bit for bit.

Source: LoRA (arXiv 2106.09685), W + (alpha / rank) B A.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn

from rcm_sidecar.distributed.tensors import fill_drawn
from rcm_sidecar.dual import DualOrTensor, ops
from rcm_sidecar.dual.number import wide_dtype, widen
from rcm_sidecar.errors import ConfigError
from rcm_sidecar.networks.inputs import Role, Target, check_adapter
from rcm_sidecar.networks.layers import Linear

_COMPONENT = "lora"

Whole: TypeAlias = Callable[[Tensor], Tensor]
"""All of a parameter, of which a process may hold a part only."""


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """What is adapted and how strongly.

    Attributes:
        rank: Of B A; at most the smaller side of the layer.
        alpha: B A is scaled by alpha / rank.
        targets: Which linear layers of a block: those of both attentions, those of the feed-forward part, or both.
    """

    rank: int
    alpha: float
    targets: tuple[Target, ...] = ("attention", "ffn")

    def __post_init__(self) -> None:
        """Refuse what adapts nothing."""
        if self.rank < 1 or self.alpha <= 0:
            raise ConfigError("E_CONFIG_VALUE", f"LoRA needs rank >= 1 and alpha > 0, not {self.rank} and {self.alpha}")
        if not self.targets or not set(self.targets) <= set(get_args(Target)):
            known = ", ".join(get_args(Target))
            raise ConfigError("E_CONFIG_VALUE", f"unknown LoRA targets {list(self.targets)}", f"known: {known}")
        if len(set(self.targets)) < len(self.targets):
            raise ConfigError("E_CONFIG_VALUE", f"LoRA targets {list(self.targets)} name one twice")


class Adapter(nn.Module):
    """One role's B A beside one linear layer: `down` is A [rank, in], `up` is B [out, rank], zero at the start.

    Args:
        weight: Of the layer; gives shape and device. The adapter is at least float32 whatever the layer is.
        config: Rank and scale.
    """

    def __init__(self, weight: Tensor, config: LoraConfig) -> None:
        super().__init__()
        (features_out, features_in), rank = weight.shape, config.rank
        options: Any = {"dtype": wide_dtype(weight.dtype), "device": weight.device}
        self.down = nn.Parameter(torch.empty(rank, features_in, **options))
        self.up = nn.Parameter(torch.zeros(features_out, rank, **options))
        self.alpha = config.alpha
        self.scale = config.alpha / rank

    def forward(self, x: DualOrTensor, base: DualOrTensor) -> DualOrTensor:
        """`base + (alpha / rank) B A x` in the dtype of `base`."""
        # A product over no more than `rank` numbers costs less than the memory its result would take.
        change = ops.linear(ops.linear(x, self.down), self.up, worth_keeping=False)
        return ops.add(base, ops.linear_map(lambda a: a * self.scale, change))

    def delta(self, whole: Whole = lambda tensor: tensor) -> Tensor:
        """(alpha / rank) B A, [out, in], at least float32, without graph; `whole` gives all of A and of B."""
        return self.scale * (widen(whole(self.up).detach()) @ widen(whole(self.down).detach()))


class LoraLinear(Linear):
    """A linear layer with an adapter for each role; its own parameters keep their names and their storage.

    Args:
        base: The layer it stands in for.
        config: Of the adapters.
        roles: Who gets one.
    """

    def __init__(self, base: nn.Linear, config: LoraConfig, roles: Sequence[Role]) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.lora = nn.ModuleDict({role: Adapter(base.weight, config) for role in roles})

    def forward(self, x: Any, adapter: Role | None = None) -> Any:
        """[..., in] to [..., out] as `adapter` sees it; None is the base."""
        out = super().forward(x)
        return out if adapter is None else self.lora[adapter](x, out)


def attach(
    net: Any,
    config: LoraConfig,
    roles: Sequence[Role] = ("student", "critic"),
    *,
    generator: torch.Generator | None = None,
) -> None:
    """Freeze `net` and give its blocks adapters, in place. All roles start as the base.

    Call it before compile, checkpointing and sharding. The base may be half precision; adapters are at least float32.

    Args:
        net: A network from `networks.build`.
        config: Rank, scale and targets.
        roles: The roles to train.
        generator: Of the initial A, uniform within +-in^-1/2; None means torch's global one.

    Raises:
        ConfigError: E_CONFIG_VALUE, when adapters are there already or the rank does not fit.
    """
    if net.adapters:
        raise ConfigError("E_CONFIG_VALUE", f"this network has adapters already: {', '.join(net.adapters)}")
    paths = [path for target in config.targets for path in net.lora_targets[target]]
    for path in paths:
        layer = cast(nn.Linear, net.blocks[0].get_submodule(path))
        side = min(layer.in_features, layer.out_features)
        if config.rank > side:
            hint = f"It can be {side} at most there."
            raise ConfigError("E_CONFIG_VALUE", f"LoRA rank {config.rank} exceeds a side of {path}", hint)
    net.requires_grad_(False)
    for block in net.blocks:
        for path in paths:
            owner, _, leaf = path.rpartition(".")
            block.get_submodule(owner).register_module(leaf, LoraLinear(block.get_submodule(path), config, roles))
    net.adapters = tuple(roles)
    if not net.blocks[0].get_submodule(paths[0]).weight.is_meta:
        initialise(net, generator)


def initialise(net: nn.Module, generator: torch.Generator | None = None) -> None:
    """Fresh adapters, in place: A is drawn as `attach` says, B is zero. For what was attached on the meta device."""
    for name, parameter in net.named_parameters():
        if not is_adapter(name):
            continue
        bound = parameter.shape[1] ** -0.5 if name.endswith(".down") else 0.0
        draw = partial(nn.init.uniform_, a=-bound, b=bound, generator=generator) if bound else nn.init.zeros_
        fill_drawn(parameter, draw, generator)


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter and not to the base."""
    return _COMPONENT in name.split(".")


def adapter_parameters(net: nn.Module, role: Role) -> dict[str, nn.Parameter]:
    """What the optimizer of `role` updates, by name."""
    marker = f".{_COMPONENT}.{role}."
    return {name: parameter for name, parameter in net.named_parameters() if marker in name}


def adapters_of(net: Any, role: Role) -> dict[str, Adapter]:
    """The adapters of `role` by the official name of their layer, in order.

    Raises:
        ConfigError: E_ADAPTER_UNKNOWN.
    """
    check_adapter(role, net.adapters)
    return {name: cast(Adapter, layer.lora[role]) for name, layer in _layers(net)}


def weight_deltas(net: Any, role: Role, whole: Whole = lambda tensor: tensor) -> dict[str, Callable[[], Tensor]]:
    """What the adapters of `role` add to each weight, by the weight's official name, computed when called.

    Raises:
        ConfigError: E_ADAPTER_UNKNOWN.
    """
    return {f"{name}.weight": partial(adapter.delta, whole) for name, adapter in adapters_of(net, role).items()}


def merge(weight: Tensor, delta: Tensor) -> Tensor:
    """The sum in at least float32; a half-precision base is not rounded again."""
    return widen(weight.detach()) + delta


def merge_into_base(net: Any, role: Role) -> None:
    """Add the adapters of `role` to the base weights, in place and in their dtype, and remove all adapters."""
    deltas = weight_deltas(net, role)
    for name, layer in _layers(net):
        owner, _, leaf = name.rpartition(".")
        plain = Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        plain.weight, plain.bias = layer.weight, layer.bias
        plain.weight.data.copy_(merge(plain.weight, deltas[f"{name}.weight"]()))
        net.get_submodule(owner).register_module(leaf, plain)
    net.adapters = ()


def extract(net: Any, role: Role, tuned: nn.Module) -> float:
    """Set the adapters of `role` to the closest ones of their rank to `tuned` minus the base, in place.

    Args:
        net: Base with adapters.
        role: Which to set.
        tuned: The same network without adapters, all of its weights trained.

    Returns:
        The share of the targeted layers' change that the rank cannot hold, as a ratio of norms: 0 is exact.

    Raises:
        ConfigError: E_ADAPTER_UNKNOWN.
    """
    check_adapter(role, net.adapters)
    left, whole = 0.0, 0.0
    for name, layer in _layers(net):
        adapter = cast(Adapter, layer.lora[role])
        change = tuned.get_parameter(f"{name}.weight").detach().double() - layer.weight.detach().double()
        u, s, v = torch.linalg.svd(change, full_matrices=False)
        rank = adapter.down.shape[0]
        root = (s[:rank] / adapter.scale).sqrt()
        adapter.up.data.copy_(u[:, :rank] * root)
        adapter.down.data.copy_(root[:, None] * v[:rank])
        left, whole = left + s[rank:].square().sum().item(), whole + s.square().sum().item()
    return float((left / whole) ** 0.5) if whole else 0.0


def _layers(net: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Every adapted layer with its name, in order; the list is fixed before the first, so layers may be replaced."""
    yield from [(name, module) for name, module in net.named_modules() if isinstance(module, LoraLinear)]
