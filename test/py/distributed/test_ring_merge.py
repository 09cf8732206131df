"""Partial attentions merged over any division of the keys are attention to all of them (jvp-kernels.md 1.3)."""

from __future__ import annotations

from functools import reduce

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rcm_sidecar.distributed.ring import Part, merge
from rcm_sidecar.dual.attention import eager_forward

KEYS = 12


def tensors():
    generator = torch.Generator().manual_seed(0)
    rows = (5, KEYS, KEYS) * 2
    q, k, *rest = (torch.randn(2, 3, n, 4, generator=generator, dtype=torch.float64) for n in rows)
    # Scores of a hundred: without a common maximum in the merge, exp would overflow or lose parts.
    return 12 * q, 12 * k, *rest


def attend(q, k, v, tq, tk, tv, keys):
    cut = [None if x is None else x[:, :, keys] for x in (k, v, tk, tv)]
    return Part(*eager_forward(q, cut[0], cut[1], tq, cut[2], cut[3], 0.5, None))


def close(actual, wanted):
    torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)


@given(cuts=st.sets(st.integers(1, KEYS - 1)), order=st.randoms())
def test_any_division_in_any_order(cuts, order):
    given = tensors()
    edges = [0, *sorted(cuts), KEYS]
    parts = [attend(*given, slice(a, b)) for a, b in zip(edges, edges[1:], strict=False)]
    order.shuffle(parts)
    merged, whole = reduce(merge, parts), attend(*given, slice(None))
    for name in ("out", "tangent", "lse", "mu"):
        close(getattr(merged, name), getattr(whole, name))


@pytest.mark.parametrize("moving", [(), ("v",), ("q",), ("k", "v")])
def test_inputs_without_tangents(moving):
    q, k, v, *tangents = tensors()
    tq, tk, tv = (t if name in moving else None for name, t in zip("qkv", tangents, strict=True))
    parts = [attend(q, k, v, tq, tk, tv, keys) for keys in (slice(0, 5), slice(5, KEYS))]
    merged, whole = merge(*parts), attend(q, k, v, tq, tk, tv, slice(None))
    close(merged.out, whole.out)
    assert (merged.tangent is None) == (not moving)
    if moving:
        close(merged.tangent, whole.tangent)


def test_mu_is_the_tangent_of_the_log_sum_exp():
    q, k, v, tq, tk, tv = tensors()
    _, lse_tangent = torch.func.jvp(
        lambda a, b: torch.logsumexp(0.5 * a @ b.transpose(-1, -2), dim=-1), (q, k), (tq, tk)
    )
    close(attend(q, k, v, tq, tk, tv, slice(None)).mu, lse_tangent)
