"""Keys and values of one text, computed once for several passes of the same weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rcm_sidecar.networks.inputs import Role

KeysValues = tuple[Tensor, Tensor]


class TextCache:
    """Cross-attention keys and values by block, for no-grad passes of one network with one text.

    Make a fresh one for every text, LoRA role and weight update: `net(x, t, text, kv_cache=TextCache())`. A cache used
    with another text tensor or role, or while gradients are recorded, raises: all would be silently wrong.
    """

    def __init__(self) -> None:
        """Start empty; the first pass fills it."""
        self._text: Tensor | None = None
        self._adapter: Role | None = None
        self._blocks: dict[int, KeysValues] = {}

    def bind(self, text: Tensor, adapter: Role | None = None) -> None:
        """Check that this pass may use the cache; the network calls it once per forward.

        Raises:
            RuntimeError: When gradients are recorded.
            ValueError: When the cache was filled from another text tensor or for another role.
        """
        if torch.is_grad_enabled():
            raise RuntimeError("a text cache works in no-grad passes only: cached keys carry no gradient")
        if self._text is not None and self._text is not text:
            raise ValueError("this text cache was filled from another text tensor; make a new TextCache")
        if self._text is not None and self._adapter != adapter:
            raise ValueError(f"this text cache was filled for adapter {self._adapter!r}; make a new TextCache")
        self._text, self._adapter = text, adapter

    @property
    def filled(self) -> bool:
        """Whether a pass has filled it, so that the text embedding need not run."""
        return bool(self._blocks)

    def get(self, block: int, compute: Callable[[], KeysValues]) -> KeysValues:
        """The pair of `block`, computed on the first call."""
        if block not in self._blocks:
            self._blocks[block] = compute()
        return self._blocks[block]
