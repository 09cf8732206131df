"""A toy velocity network and a batch, in float64, small enough to differentiate by brute force."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from rcm_sidecar.dual import Dual

SHAPE = (2, 1, 2, 3)
SIZE = 12
TEXT = (4, 5)
TIME_SCALE = 10.0


@dataclass
class Call:
    x: Tensor
    t: Tensor
    text: Tensor
    grad: bool
    dual: bool
    t_tangent: Tensor | None = None


class ToyNetwork:
    """v = W2 tanh(W1 x + Wt sin(t) + W3 mean(text)) + t-dependent linear part; smooth, no symmetry, every term live."""

    def __init__(self, seed: int, dtype=torch.float64, hidden: int = 16):
        generator = torch.Generator().manual_seed(seed)

        def weight(*shape):
            values = torch.randn(*shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5
            return values.to(dtype).requires_grad_()

        self.w1, self.w2 = weight(hidden, SIZE), weight(SIZE, hidden)
        self.w3, self.wt = weight(hidden, TEXT[1]), weight(hidden, 1)
        self.skip = weight(SIZE, SIZE)
        self.calls: list[Call] = []

    def parameters(self) -> list[Tensor]:
        return [self.w1, self.w2, self.w3, self.wt, self.skip]

    def plain(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        flat = x.flatten(1)
        time = torch.sin(t / TIME_SCALE * 1.7 + 0.3)[:, None]
        hidden = torch.tanh(flat @ self.w1.T + time @ self.wt.T + text.mean(1) @ self.w3.T)
        return (hidden @ self.w2.T + 0.5 * time * (flat @ self.skip.T)).reshape(x.shape)

    def __call__(self, x, t, text):
        if not isinstance(x, Dual):
            self.calls.append(Call(x, t, text, torch.is_grad_enabled(), False))
            return self.plain(x, t, text)
        assert isinstance(t, Dual)
        self.calls.append(Call(x.primal, t.primal, text, torch.is_grad_enabled(), True, t.tangent))
        assert x.tangent.shape == x.primal.shape and t.tangent.shape == t.primal.shape
        with torch.no_grad():
            _, jvp = torch.func.jvp(lambda a, b: self.plain(a, b, text), tuple(x[:1] + t[:1]), (x[1], t[1]))
        return Dual(self.plain(x.primal, t.primal, text), jvp)


@dataclass
class Batch:
    x0: Tensor
    noise: Tensor
    u: Tensor
    text: Tensor
    negative: Tensor
    guidance: float = 1.7
    time_scale: float = TIME_SCALE
    extra: dict = field(default_factory=dict)

    @property
    def condition(self) -> dict:
        return {
            "text": self.text,
            "negative": self.negative,
            "guidance": self.guidance,
            "time_scale": self.time_scale,
        }

    @property
    def cos(self) -> Tensor:
        return self.u.cos().reshape(-1, 1, 1, 1, 1)

    @property
    def sin(self) -> Tensor:
        return self.u.sin().reshape(-1, 1, 1, 1, 1)


def make_batch(size: int = 6, dtype=torch.float64, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    u = torch.linspace(0.15, 1.4, size, dtype=torch.float64).to(dtype)
    return Batch(draw(size, *SHAPE), draw(size, *SHAPE), u, draw(size, *TEXT), draw(size, *TEXT))


@pytest.fixture
def toy():
    """ToyNetwork(seed, dtype)."""
    return ToyNetwork


@pytest.fixture
def batch():
    """make_batch(size, dtype, seed)."""
    return make_batch
