"""Results that a checkpointed block keeps, so that its recomputation is handed them instead of computing them.

Two kinds of calls can be kept: attention (output and log-sum-exp) and the products of `ops.linear` (output). The
recomputation builds the same graph nodes, which save the same tensors; only the work is missing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Kind: TypeAlias = Literal["attention", "product"]


class KeptResults:
    """Results of the calls of one pass through a block, in the order of the calls.

    Args:
        kinds: What is kept; of other kinds nothing is, and a replay computes them again.
    """

    def __init__(self, kinds: Collection[Kind]) -> None:
        self._kinds = frozenset(kinds)
        self._kept: list[tuple[Kind, tuple[Tensor, ...]]] = []
        self._next: int | None = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """What runs inside is the forward: its results are kept.

        Raises:
            RuntimeError: There was none to keep; compiled code neither keeps results nor takes them.
        """
        with self._current():
            yield
        if self._kinds and not self._kept:
            kinds = " and ".join(sorted(self._kinds))
            raise RuntimeError(f"a checkpointed block kept no result of {kinds}: a compiled body cannot keep any")

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """What runs inside is a recomputation: it is handed the kept results, from the first call on."""
        self._next = 0
        with self._current():
            yield

    def keeps(self, kind: Kind) -> bool:
        """Whether results of this kind are kept."""
        return kind in self._kinds

    def record(self, kind: Kind, *result: Tensor) -> None:
        """Keep the result of one call, if its kind is kept."""
        if self.keeps(kind):
            self._kept.append((kind, result))

    def replay(self, kind: Kind) -> tuple[Tensor, ...] | None:
        """The result of the next call, or None where it has to be computed.

        Raises:
            RuntimeError: The recomputation makes other calls than the forward did.
        """
        if self._next is None or not self.keeps(kind):
            return None
        if self._next == len(self._kept) or self._kept[self._next][0] != kind:
            raise RuntimeError(f"a recomputation asks for a result of {kind} that its forward did not keep")
        self._next += 1
        return self._kept[self._next - 1][1]

    @contextmanager
    def _current(self) -> Iterator[None]:
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


# Set around a block's body only, by the checkpoint that runs it, in the forward and in the recomputation: nothing that
# happens between the two can change it. A variable of the context, because recomputations run on autograd's threads.
_current: ContextVar[KeptResults | None] = ContextVar("kept_results", default=None)


def kept_results(kind: Kind | None = None) -> KeptResults | None:
    """Those of the checkpointed block that is running, or None; compiled code keeps nothing.

    Args:
        kind: None as well where this kind is not kept.
    """
    kept = None if torch.compiler.is_compiling() else _current.get()
    return kept if kept is None or kind is None or kept.keeps(kind) else None
