"""AdamW that keeps no first moment when betas[0] = 0, with a state of named plain tensors.

torch.optim.AdamW allocates the first moment always (5.6 GB at 1.4 billion parameters) and numbers its state; here
the state has the parameters' names, so it goes into safetensors and survives a change of their order. Values equal
torch.optim.AdamW.

On a GPU the update is torch's own fused kernel, one pass over memory instead of seven. A CPU, where time of updates
matters little, keeps the passes: results of earlier runs repeat there to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rcm_sidecar.distributed.tensors import local
from rcm_sidecar.errors import CheckpointError, TrainingError
from rcm_sidecar.training.offload import Visitors, rest


@dataclass(frozen=True)
class Rates:
    """Numbers of one update.

    Attributes:
        learning_rate: Of this update.
        beta1: Decay of the first moment; 0 where none is kept.
        beta2: Decay of the second moment.
        epsilon: Added to the square root of the second moment.
        weight_decay: Times the learning rate: the share of a parameter that is removed.
        updates: Updates with this one.
    """

    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    updates: int


def update_by_passes(
    own: list[Tensor], gradients: list[Tensor], second: list[Tensor], first: list[Tensor], rates: Rates
) -> None:
    """One update in place, an operation at a time over all tensors; `first` is empty where beta1 = 0."""
    torch._foreach_mul_(own, 1 - rates.learning_rate * rates.weight_decay)
    torch._foreach_mul_(second, rates.beta2)
    torch._foreach_addcmul_(second, gradients, gradients, 1 - rates.beta2)
    if first:
        torch._foreach_lerp_(first, gradients, 1 - rates.beta1)
    divisors = torch._foreach_sqrt(second)
    torch._foreach_div_(divisors, math.sqrt(1 - rates.beta2**rates.updates))
    torch._foreach_add_(divisors, rates.epsilon)
    step_size = rates.learning_rate / (1 - rates.beta1**rates.updates)
    torch._foreach_addcdiv_(own, first or gradients, divisors, -step_size)


def fused_update(
    own: list[Tensor], gradients: list[Tensor], second: list[Tensor], first: list[Tensor], rates: Rates
) -> None:
    """As `update_by_passes` within rounding, in one pass of torch's own kernel (that of `AdamW(fused=True)`).

    Where no first moment is kept the gradients stand in for it: with beta1 = 0 the kernel makes it
    0 * gradient + 1 * gradient and writes back what was there.
    """
    # Flat: the kernel compares strides, those of dimensions of size 1 too, which say nothing and may differ.
    flat = [[tensor.view(-1) for tensor in tensors] for tensors in (own, gradients, first or gradients, second)]
    # One count for all: the kernel only reads it.
    count = torch.full((), float(rates.updates), device=own[0].device)
    torch._fused_adamw_(  # type: ignore[call-overload]
        *flat,
        [],
        [count] * len(own),
        lr=rates.learning_rate,
        beta1=rates.beta1,
        beta2=rates.beta2,
        weight_decay=rates.weight_decay,
        eps=rates.epsilon,
        amsgrad=False,
        maximize=False,
    )


class AdamW:
    """Adam with decoupled weight decay (arXiv 1711.05101) on every trainable parameter, whatever its name.

    Of sharded parameters it updates the process's own part; its state is sharded like them.

    Args:
        parameters: Name -> parameter; those without requires_grad are left alone.
        betas: Decay of the two moments; betas[0] = 0 stores no first moment.
        epsilon: Added to the square root of the second moment.
        weight_decay: Share of a parameter removed per update, times the learning rate.
        offload: Keep the moments in main memory and bring them to the parameters' device for each update, a bucket at
            a time; the same bits.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        betas: tuple[float, float],
        epsilon: float,
        weight_decay: float,
        offload: bool = False,
    ) -> None:
        trainable = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        if not trainable:
            raise ValueError("there is no trainable parameter")
        if not (0 <= betas[0] < 1 and 0 <= betas[1] < 1):
            raise ValueError(f"betas must lie in [0, 1), got {betas}")
        self._names, self._parameters = list(trainable), list(trainable.values())
        self._betas, self._epsilon, self._weight_decay = betas, epsilon, weight_decay
        empty = rest if offload else torch.empty_like
        self._second = [empty(parameter.detach()) for parameter in self._parameters]
        self._first = [empty(parameter.detach()) for parameter in self._parameters] if betas[0] > 0 else []
        for moment in (*self._second, *self._first):
            local(moment).zero_()
        self._own = [local(parameter) for parameter in self._parameters]
        self._apply = fused_update if all(own.is_cuda for own in self._own) else update_by_passes
        moments = (self._second, self._first) if self._first else (self._second,)
        self._visitors = Visitors(list(zip(*moments, strict=True)), self._own[0].device) if offload else None
        self.updates = 0
        """Updates applied; a skipped update does not count here, since the moments did not see it."""

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def gradient_norm(self) -> Tensor:
        """Euclidean norm of all gradients that this process holds, 0-d, not read back to the CPU."""
        return torch.nn.utils.get_total_norm(self._gradients())

    @torch.no_grad()
    def clip(self, max_norm: float, norm: Tensor | float) -> None:
        """Scale the gradients so that their norm over all processes, `norm`, is at most max_norm."""
        factor = max_norm / (norm + 1e-6)
        bounded = factor.clamp(max=1.0) if isinstance(factor, Tensor) else min(factor, 1.0)
        torch._foreach_mul_(self._gradients(), bounded)

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """One update from the gradients at hand.

        Raises:
            TrainingError: a trainable parameter has no gradient (its graph was cut somewhere).
        """
        gradients = self._gradients()
        self.updates += 1
        beta1, beta2 = self._betas
        rates = Rates(learning_rate, beta1, beta2, self._epsilon, self._weight_decay, self.updates)
        for chosen, second, first in self._moments():
            self._apply(self._own[chosen], gradients[chosen], second, first, rates)

    def _moments(self) -> Iterator[tuple[slice, list[Tensor], list[Tensor]]]:
        """(which parameters, their second moments, their first moments if kept), on the parameters' device."""
        if self._visitors is None:
            yield slice(None), [local(value) for value in self._second], [local(value) for value in self._first]
            return
        for chosen, rows in self._visitors.visits():
            yield chosen, [row[0] for row in rows], [row[1] for row in rows if len(row) > 1]

    def state_dict(self) -> dict[str, Tensor]:
        """`second/<name>`, `first/<name>` if kept, and `updates` (int64, 0-d); the tensors are not copies."""
        if self._visitors is not None:
            self._visitors.settle()
        state = {f"second/{name}": value for name, value in zip(self._names, self._second, strict=True)}
        if self._first:
            state |= {f"first/{name}": value for name, value in zip(self._names, self._first, strict=True)}
        return state | {"updates": torch.tensor(self.updates, dtype=torch.int64)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy a state in, sharded like this one.

        Raises:
            CheckpointError: names or shapes differ, for example after a change of betas[0]; nothing is changed then.
        """
        own = self.state_dict()
        wrong = sorted(set(own) ^ set(state))
        wrong = wrong or [name for name, value in own.items() if value.shape != state[name].shape]
        if wrong:
            raise CheckpointError(
                "E_CHECKPOINT_CORRUPT",
                f"The optimizer's state does not fit: {', '.join(wrong[:3])}.",
                "Resume with the network and the betas the run began with.",
            )
        for name, value in own.items():
            local(value).copy_(local(state[name]))
        self.updates = int(state["updates"])

    def _gradients(self) -> list[Tensor]:
        gradients = [parameter.grad for parameter in self._parameters]
        present = [gradient for gradient in gradients if gradient is not None]
        if len(present) != len(gradients):
            missing = [name for name, gradient in zip(self._names, gradients, strict=True) if gradient is None]
            raise TrainingError("E_TRAINING", f"No gradient for {len(missing)} parameters: {', '.join(missing[:3])}.")
        return [local(gradient) for gradient in present]
