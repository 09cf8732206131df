"""Learning rates: warm-up, ends, shapes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcm_sidecar.training.schedule import learning_rate


def rates(schedule, warmup, total, **options):
    return [
        learning_rate(i, base=2.0, schedule=schedule, warmup_updates=warmup, total_updates=total, **options)
        for i in range(total + 3)
    ]


@pytest.mark.parametrize("schedule", ["constant", "linearToZero", "cosine"])
def test_warmup_is_linear_and_reaches_the_base(schedule):
    got = rates(schedule, 10, 40)
    assert got[:10] == pytest.approx([2.0 * (i + 1) / 10 for i in range(10)])
    assert got[10] == 2.0


def test_constant_stays():
    assert set(rates("constant", 4, 20)[4:]) == {2.0}


def test_linear_reaches_zero_one_past_the_last_update():
    got = rates("linearToZero", 10, 40)
    assert got[39] == pytest.approx(2.0 / 30) and got[40] == got[42] == 0
    assert got[25] == pytest.approx(1.0)


def test_cosine_reaches_the_final_share():
    got = rates("cosine", 10, 40, final_share=0.05)
    assert got[40] == got[42] == pytest.approx(0.1)
    assert got[25] == pytest.approx(2.0 * (0.05 + 0.95 * 0.5))
    assert got[20] == pytest.approx(2.0 * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi / 3))))


@given(st.sampled_from(["constant", "linearToZero", "cosine"]), st.integers(0, 9), st.integers(1, 30))
def test_rates_rise_in_warmup_then_never_rise_and_stay_in_range(schedule, warmup, total):
    got = rates(schedule, warmup, total)
    assert all(0 <= rate <= 2.0 for rate in got)
    assert all(b >= a for a, b in zip(got[:warmup], got[1:warmup], strict=False))
    assert all(b <= a for a, b in zip(got[warmup:], got[warmup + 1 :], strict=False))


def test_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="unknown"):
        rates("step", 0, 1)
