"""Run by test_interpreter_elementwise.py with TRITON_INTERPRET=1: the elementwise kernels on the CPU.

python interpreter_elementwise.py <examples>      searches <examples> inputs a kernel; an error ends it with status 1
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import elementwise_cases as cases  # noqa: E402
import launches  # noqa: E402
import torch  # noqa: E402
from hypothesis import assume, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from rcm_kernels import row_plan  # noqa: E402

# The interpreter cuts where a GPU rounds to nearest, hence twice the error of rounding; a norm sees it twice.
LIMITS = {torch.float32: 2e-6, torch.bfloat16: 9e-3, torch.float16: 6e-4}
DTYPES = st.sampled_from(list(LIMITS))
SEEDS = st.integers(0, 2**20)
WIDTHS = st.sampled_from([1, 3])


def judge(errors, dtype):
    assert errors and max(errors.values()) < LIMITS[dtype], errors


@given(DTYPES, st.sampled_from(["", "fs", "ygfs", "yfs", "yg", "y"]), st.lists(st.sampled_from("xygfs"), unique=True),
       st.integers(1, 2), st.integers(1, 6), st.integers(9, 150), WIDTHS, st.booleans(), SEEDS)  # fmt: skip
def layer_norm(dtype, parts, tangents, batch, length, dim, width, one, seed):
    norm = parts not in ("yg", "y")
    args = cases.layer_norm_inputs(
        *(batch, length, dim), dtype=dtype, parts=parts, tangents="".join(tangents), width=width, seed=seed
    )
    judge(cases.layer_norm_errors(launches.layer_norm, args, norm=norm, one=one), dtype)
    if parts not in ("", "y"):
        judge(cases.layer_norm_backward_errors(launches.layer_norm_backward, args, seed, norm=norm, one=one), dtype)


@given(DTYPES, st.integers(1, 2), st.integers(1, 4), st.integers(1, 5), st.integers(3, 40), WIDTHS, st.booleans(),
       st.booleans(), st.booleans(), st.booleans(), SEEDS)  # fmt: skip
def rms_norm(dtype, batch, length, heads, pairs, width, full, table, tangent, interleaved, seed):
    assume(full or heads > 1)
    args = cases.rms_inputs(
        *(batch, length, heads, 2 * pairs),
        dtype=dtype,
        full=full,
        table=table,
        tangent=tangent,
        width=width,
        seed=seed,
    )
    judge(cases.rms_errors(launches.rms_norm, args, interleaved), dtype)
    judge(cases.rms_backward_errors(launches.rms_norm_backward, args, interleaved, seed), dtype)


@given(DTYPES, st.sampled_from(["gelu_tanh", "gelu_erf", "silu"]), st.sampled_from([1, 100, 2048, 5000]),
       st.sampled_from([0.1, 1.0, 6.0]), st.booleans(), SEEDS)  # fmt: skip
def activation(dtype, kind, count, scale, tangent, seed):
    generator = torch.Generator().manual_seed(seed)
    x, tx = (cases.randn(generator, count, dtype=dtype) for _ in range(2))
    judge(cases.activation_errors(launches.activation, x * scale, tx if tangent else None, kind), dtype)


def many_rows():
    """More rows than programs of a backward: each takes several, and the last fewer; also with rows under way."""
    row_plan.OTHER_PROGRAMS = 5
    for row_plan.STAGES, batch, length in ((1, 1, 203), (1, 3, 61), (2, 2, 70)):
        args = cases.layer_norm_inputs(batch, length, 16, dtype=torch.float32, tangents="")
        judge(cases.layer_norm_backward_errors(launches.layer_norm_backward, args), torch.float32)
        args = cases.rms_inputs(batch, length, 1, 16, dtype=torch.float32, tangent=False)
        judge(cases.rms_backward_errors(launches.rms_norm_backward, args, True), torch.float32)


if __name__ == "__main__":
    examples = int(sys.argv[1])
    for search in (layer_norm, rms_norm, activation):
        settings(max_examples=examples, deadline=None, derandomize=True, database=None)(search)()
        print(search.__name__, "holds", flush=True)
    many_rows()
    print("many_rows holds")
