"""Context parallelism: the processes of a group share the tokens of every sample.

Each process runs the blocks on its own tokens. Only attention among the tokens communicates (`ulysses`, `ring`); text
keys, norms and feed-forward layers are local. Value and tangent always travel together.

Gradients: a process backpropagates the loss of the whole sample through its own tokens, times the size of the group.
The mean over the group, which FSDP2's averaging takes, is then the gradient of the whole loss. Without the factor it
is 1 / size of it (rcm-method section 10, fault 8). The gradients of time and text are such parts, too, and want the
same mean; the gradient of the latent is whole on every process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rcm_sidecar.distributed import ring, ulysses
from rcm_sidecar.dual import DualOrTensor, ops
from rcm_sidecar.dual.number import join, split
from rcm_sidecar.step_clock import StepClock, current_clock, region_of

Kind = Literal["ulysses", "ring"]


@dataclass(frozen=True)
class ContextGroup:
    """The processes that share each sample, set once as `net.context` before sharding.

    All of them call the network with the same inputs and get the same velocity.

    Attributes:
        group: Two processes or more, in the order of their tokens.
        kind: How they attend to each other's tokens.
    """

    group: dist.ProcessGroup
    kind: Kind

    def share(self, tokens: int) -> TokenShare:
        """How `tokens` tokens of one forward are dealt out."""
        return TokenShare(self, tokens, current_clock())


@dataclass(frozen=True)
class TokenShare:
    """The tokens of one forward by process: `rows` consecutive ones each, the last processes padded with zeros.

    Padding is never attended to, and `gather` drops it, so it reaches no loss and gives no gradient.

    Attributes:
        context: The processes.
        tokens: Of one sample, without padding.
        clock: What times the exchanges of this forward and its backward, if anything does.
    """

    context: ContextGroup
    tokens: int
    clock: StepClock | None = None

    @property
    def group(self) -> dist.ProcessGroup:
        """The processes."""
        return self.context.group

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.group.size()

    @property
    def rank(self) -> int:
        """This process's place in the group."""
        return self.group.rank()

    @property
    def rows(self) -> int:
        """Tokens of a process, padding included."""
        return -(-self.tokens // self.size)

    def real_rows(self, rank: int) -> int:
        """Tokens of a process without padding; they come first."""
        return max(0, min(self.rows, self.tokens - rank * self.rows))

    def split(self, x: DualOrTensor) -> DualOrTensor:
        """The process's own tokens [B, rows, D] of [B, tokens, D], which every process has.

        The gradient of `x` is gathered: every process gets all of it.
        """
        return ops.linear_map(lambda a: _Split.apply(a, self), x)  # type: ignore[no-untyped-call]

    def own_rows(self, table: Tensor) -> Tensor:
        """The rows [rows, ...] of a table [tokens, ...] that belong to the process's tokens, without gradient."""
        return self._own(table.unsqueeze(0)).squeeze(0)

    def gather(self, x: DualOrTensor) -> DualOrTensor:
        """All tokens [B, tokens, D] from every process's own [B, rows, D]: value and tangent in one collective.

        The gradient of the own tokens is multiplied by the size of the group, see the top of this file.
        """
        value, tangent = split(x)
        whole, whole_tangent = _Gather.apply(value, tangent, self)  # type: ignore[no-untyped-call]
        return join(whole, whole_tangent, x)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        tq: Tensor | None,
        tk: Tensor | None,
        tv: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """See `dual.attention.SharedAttention`."""
        forward = ulysses.forward if self.context.kind == "ulysses" else ring.forward
        return forward(self, q, k, v, tq, tk, tv, scale)

    def attend_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `dual.attention.SharedAttention`."""
        backward = ulysses.backward if self.context.kind == "ulysses" else ring.backward
        return backward(self, grad, q, k, v, out, lse, scale)

    def _own(self, x: Tensor) -> Tensor:
        """[B, tokens, ...] to [B, rows, ...]."""
        start, rows = min(self.rank * self.rows, self.tokens), self.real_rows(self.rank)
        own = x.narrow(1, start, rows)
        padding = self.rows - rows
        return F.pad(own, [0, 0] * (x.dim() - 2) + [0, padding]) if padding else own

    def _all(self, x: Tensor) -> Tensor:
        """[P, B, rows, D] of every process to [P, B, tokens, D], one collective."""
        x = x.contiguous()
        received = x.new_empty(self.size * x.shape[0], *x.shape[1:])
        with region_of(self.clock, "communication"):
            dist.all_gather_into_tensor(received, x, group=self.group)
        whole = received.reshape(self.size, *x.shape).permute(1, 2, 0, 3, 4).flatten(2, 3)
        return whole[:, :, : self.tokens]


class _Split(torch.autograd.Function):
    """Own tokens of a whole; backward gathers, so that two networks in a row have exact gradients, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: TokenShare) -> Tensor:
        ctx.share = share
        return share._own(x).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # Gradients of own tokens carry the factor of `_Gather`, those of a whole tensor do not.
        return ctx.share._all(grad.unsqueeze(0))[0] / ctx.share.size, None


class _Gather(torch.autograd.Function):
    """The whole from everyone's own tokens; every process has the same gradient of it, so backward only cuts."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, tangent: Tensor | None, share: TokenShare) -> tuple[Tensor, Tensor | None]:
        ctx.share = share
        if tangent is None:
            return share._all(value.unsqueeze(0))[0], None
        whole, whole_tangent = share._all(torch.stack([value, tangent]))
        ctx.mark_non_differentiable(whole_tangent)
        return whole, whole_tangent

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _tangent: Tensor | None) -> tuple[Tensor, None, None]:
        return ctx.share._own(grad) * ctx.share.size, None, None
