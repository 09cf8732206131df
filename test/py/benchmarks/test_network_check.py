"""A bf16 network through the kernels' CPU form is as near to float64 as eager bf16.

`bench-network --check` asserts the same at real width on a GPU.
"""

from __future__ import annotations

import pytest
import torch
from network_bench.cases import CASES
from network_bench.check import assert_precise, check


def test_velocity_and_derivative():
    rows = check(torch.device("cpu"), {"smoke": CASES["smoke"]})
    assert rows[0]["check"].keys() == {"primal", "tangent"}
    for found in rows[0]["check"].values():
        assert 1e-3 < found["eager"] < 1e-1, "it compares bf16 with float64"
        assert found["kernels"] != found["eager"], "both were computed the same way"
    assert_precise(rows)
    rows[0]["check"]["tangent"]["ratio"] = 1.11
    with pytest.raises(AssertionError, match="smoke"):
        assert_precise(rows)
