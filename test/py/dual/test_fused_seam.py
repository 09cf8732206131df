"""The calls to `rcm_kernels` behind the seam, on its CPU backend: the same numbers as the eager rules."""

import pytest
import torch

from rcm_sidecar.dual import Dual, attention, ops

MASKS = (None, "causal", ("block-causal", 3))


def tensors(count, *, keys=9):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 9, 8), (2, 3, keys, 8), (2, 3, keys, 8)] * 2
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes[:count]]


def dual_step(mask):
    q, k, v, tq, tk, tv = tensors(6)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    result = ops.attention(Dual(q, tq), Dual(k, tk), Dual(v, tv), mask=mask)
    gradients = torch.autograd.grad(result.primal.square().sum(), leaves)
    return [result.primal.detach(), result.tangent, *gradients]


@pytest.mark.parametrize("mask", MASKS)
def test_fused_calls_give_the_eager_numbers(mask, monkeypatch):
    eager = dual_step(mask)
    asked = []
    monkeypatch.setattr(attention, "runs_fused", lambda q: asked.append(q.shape) or True)
    fused = dual_step(mask)
    assert len(asked) == 2, "one forward and one backward"
    for one, other in zip(eager, fused, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_constant_text_keys_pass_no_tangent(monkeypatch):
    q, k, v, tq = tensors(4, keys=5)
    expected = ops.attention(Dual(q, tq), k, v)
    monkeypatch.setattr(attention, "runs_fused", lambda q: True)
    fused = ops.attention(Dual(q, tq), k, v)
    torch.testing.assert_close(fused.tangent, expected.tangent, rtol=1e-12, atol=1e-13)


def test_a_cpu_runs_the_explicit_rules():
    assert not attention.runs_fused(torch.zeros(1))


def test_the_head_dims_are_those_of_the_kernels():
    from rcm_kernels.problem import KERNEL_HEAD_DIMS

    assert attention.FUSED_HEAD_DIMS == KERNEL_HEAD_DIMS
