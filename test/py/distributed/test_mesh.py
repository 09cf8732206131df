"""Sizes of the axes, their errors, and which samples a process takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcm_sidecar.distributed.mesh import ParallelSizes, context_kind, own_samples, parallel_sizes
from rcm_sidecar.errors import ConfigError

SIZES = st.builds(ParallelSizes, st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))


@given(sizes=SIZES)
def test_what_is_left_over_replicates(sizes):
    assert parallel_sizes(sizes.world, shard=sizes.shard, context=sizes.context) == sizes


@pytest.mark.parametrize(
    ("world", "shard", "context", "message", "hint"),
    [
        (4, 4, 2, "asks for shard 4 x context 2 = 8 processes and there are 4", "Start 8 processes"),
        (12, 4, 2, "12 processes do not divide into shard 4 x context 2 = 8", "Start 8 or 16 processes"),
    ],
)
def test_impossible_sizes_name_the_fix(world, shard, context, message, hint):
    with pytest.raises(ConfigError, match=message) as error:
        parallel_sizes(world, shard=shard, context=context)
    assert error.value.code == "E_CONFIG_VALUE" and hint in error.value.hint


@pytest.mark.parametrize(
    ("kind", "heads", "context", "chosen"),
    [
        ("auto", 12, 4, "ulysses"),
        ("auto", 12, 8, "ring"),
        ("auto", 40, 8, "ulysses"),
        ("ring", 12, 4, "ring"),
        ("ulysses", 12, 12, "ulysses"),
    ],
)
def test_heads_choose_the_kind(kind, heads, context, chosen):
    assert context_kind(kind, heads, context) == chosen


def test_ulysses_with_impossible_heads_names_what_is_possible():
    with pytest.raises(ConfigError, match="12 attention heads, which context 8 cannot") as error:
        context_kind("ulysses", 12, 8)
    assert error.value.code == "E_CONFIG_VALUE"
    assert "auto or ring" in error.value.hint and "1, 2, 3, 4, 6, 12" in error.value.hint


@given(sizes=SIZES, each=st.integers(1, 5))
def test_every_sample_is_taken_once_by_a_context_group(sizes, each):
    batch = each * sizes.data
    taken = [range(batch)[own_samples(sizes, rank, batch)] for rank in range(sizes.world)]
    for rank, samples in enumerate(taken):
        assert samples == taken[rank - rank % sizes.context], "a context group does not share its samples"
    first_of_groups = taken[:: sizes.context]
    assert [sample for samples in first_of_groups for sample in samples] == list(range(batch))
    assert {len(samples) for samples in taken} == {each}


@pytest.mark.parametrize(
    ("batch", "message", "hint"),
    [
        (10, "schedule.batchSize 10 does not divide among 4 groups of 2 processes", "batchSize to 8 or 12"),
        (3, "schedule.batchSize 3 does not divide among 4 groups of 2 processes", "batchSize to 4,"),
    ],
)
def test_a_batch_that_does_not_divide_names_the_nearest(batch, message, hint):
    with pytest.raises(ConfigError, match=message) as error:
        own_samples(ParallelSizes(replicate=2, shard=2, context=2), 0, batch)
    assert error.value.code == "E_CONFIG_VALUE" and hint in error.value.hint
