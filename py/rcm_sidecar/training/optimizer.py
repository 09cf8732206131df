"""AdamW that keeps no first moment when betas[0] = 0, with a state of named plain tensors.

torch.optim.AdamW allocates the first moment always (5.6 GB at 1.4 billion parameters) and numbers its state; here
the state has the parameters' names, so it goes into safetensors and survives a change of their order. Values equal
torch.optim.AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from rcm_sidecar.distributed.tensors import local
from rcm_sidecar.errors import CheckpointError, TrainingError


class AdamW:
    """Adam with decoupled weight decay (arXiv 1711.05101) on every trainable parameter, whatever its name.

    Of sharded parameters it updates the process's own part; its state is sharded like them.

    Args:
        parameters: Name -> parameter; those without requires_grad are left alone.
        betas: Decay of the two moments; betas[0] = 0 stores no first moment.
        epsilon: Added to the square root of the second moment.
        weight_decay: Share of a parameter removed per update, times the learning rate.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], *, betas: tuple[float, float], epsilon: float, weight_decay: float
    ) -> None:
        trainable = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        if not trainable:
            raise ValueError("there is no trainable parameter")
        if not (0 <= betas[0] < 1 and 0 <= betas[1] < 1):
            raise ValueError(f"betas must lie in [0, 1), got {betas}")
        self._names, self._parameters = list(trainable), list(trainable.values())
        self._betas, self._epsilon, self._weight_decay = betas, epsilon, weight_decay
        self._second = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._first = [torch.zeros_like(parameter) for parameter in self._parameters] if betas[0] > 0 else None
        self._own = [local(parameter) for parameter in self._parameters]
        self._own_second = [local(value) for value in self._second]
        self._own_first = None if self._first is None else [local(value) for value in self._first]
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
        torch._foreach_mul_(self._own, 1 - learning_rate * self._weight_decay)
        torch._foreach_mul_(self._own_second, beta2)
        torch._foreach_addcmul_(self._own_second, gradients, gradients, 1 - beta2)
        if self._own_first is None:
            directions = gradients
        else:
            torch._foreach_lerp_(self._own_first, gradients, 1 - beta1)
            directions = self._own_first
        divisors = torch._foreach_sqrt(self._own_second)
        torch._foreach_div_(divisors, math.sqrt(1 - beta2**self.updates))
        torch._foreach_add_(divisors, self._epsilon)
        step_size = learning_rate / (1 - beta1**self.updates)
        torch._foreach_addcdiv_(self._own, directions, divisors, -step_size)

    def state_dict(self) -> dict[str, Tensor]:
        """`second/<name>`, `first/<name>` if kept, and `updates` (int64, 0-d); the tensors are not copies."""
        state = {f"second/{name}": value for name, value in zip(self._names, self._second, strict=True)}
        if self._first is not None:
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
            value.copy_(state[name])
        self.updates = int(state["updates"])

    def _gradients(self) -> list[Tensor]:
        gradients = [parameter.grad for parameter in self._parameters]
        present = [gradient for gradient in gradients if gradient is not None]
        if len(present) != len(gradients):
            missing = [name for name, gradient in zip(self._names, gradients, strict=True) if gradient is None]
            raise TrainingError("E_TRAINING", f"No gradient for {len(missing)} parameters: {', '.join(missing[:3])}.")
        return [local(gradient) for gradient in present]
