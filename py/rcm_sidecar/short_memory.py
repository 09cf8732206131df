"""What to do when a GPU's memory is short: try, then do the same with less.

Whether something fits depends on the card, its other users and the sizes, so that trying is surer than reckoning.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import nn

from rcm_sidecar.errors import HostError

T = TypeVar("T")
AnyModule = TypeVar("AnyModule", bound=nn.Module)


def free_memory() -> None:
    """Give back what is no longer used, to Python and to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def again_if_short(
    attempt: Callable[[], T], make_smaller: Callable[[], object], doing: str, *, exhausted: bool = False
) -> T:
    """The result of `attempt`; if memory was short, that of a second one after `make_smaller`.

    Args:
        attempt: What needs memory; it must leave nothing behind when it fails.
        make_smaller: Called once before the second try.
        doing: What then also failed, for the error.
        exhausted: There is no smaller way left: one try.

    Raises:
        HostError: E_GPU, memory was short again.
    """
    if not exhausted:
        try:
            return attempt()
        except torch.OutOfMemoryError:
            pass  # what follows is outside, where the traceback no longer holds the tensors of the failure
        free_memory()
        make_smaller()
    try:
        return attempt()
    except torch.OutOfMemoryError as error:
        reason = str(error).split(". ")[0]
        hint = "Use fewer frames or a smaller picture, end other programs on the GPU, or use --device cpu."
        raise HostError("E_GPU", f"The GPU's memory does not suffice, not even {doing}: {reason}.", hint) from error


def load_or_stream(
    load: Callable[[torch.device], AnyModule],
    blocks_of: Callable[[Any], Iterable[nn.Module]],
    device: torch.device,
) -> AnyModule:
    """A module on `device`; one that does not fit stays on the CPU and is computed on `device` block by block.

    Args:
        load: Makes it on a device.
        blocks_of: Its repeated blocks, nearly all of its weights.
        device: Where it computes.
    """
    where = device

    def to_cpu() -> None:
        nonlocal where
        where = torch.device("cpu")

    module = again_if_short(lambda: load(where), to_cpu, "in main memory")
    if where != device:
        stream_blocks(module, blocks_of(module), device)
    return module


def stream_blocks(module: nn.Module, blocks: Iterable[nn.Module], device: torch.device) -> None:
    """Keep the blocks of a frozen module on the CPU, each on `device` only while it computes; the rest moves there.

    Args:
        module: On the CPU or on `device`.
        blocks: Of the module.
        device: Where it computes.
    """
    blocks = list(blocks)
    inside = {place for block in blocks for place in _places(block)}
    for owner, name in _places(module):
        _put(owner, name, owner.get_parameter(name), torch.device("cpu") if (owner, name) in inside else device)
    for block in blocks:
        _visit(block, device)


def _visit(block: nn.Module, device: torch.device) -> None:
    places = _places(block)
    at_home: list[nn.Parameter] = []

    def bring(_block: nn.Module, _args: Any) -> None:
        at_home[:] = [owner.get_parameter(name) for owner, name in places]
        for (owner, name), parameter in zip(places, at_home, strict=True):
            _put(owner, name, parameter, device)

    def take_away(_block: nn.Module, _args: Any, _out: Any) -> None:
        # None have left home when the block failed before this hook's turn.
        for (owner, name), parameter in zip(places, at_home, strict=False):
            setattr(owner, name, parameter)
        at_home.clear()

    block.register_forward_pre_hook(bring)
    # Also after a failure: what stays on the GPU then would be in the way of the next try.
    block.register_forward_hook(take_away, always_call=True)


def _places(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Where each parameter hangs: its module and its name there."""
    return [(owner, name) for owner in module.modules() for name, _ in owner.named_parameters(recurse=False)]


def _put(owner: nn.Module, name: str, parameter: nn.Parameter, device: torch.device) -> None:
    setattr(owner, name, nn.Parameter(parameter.data.to(device), requires_grad=False))
