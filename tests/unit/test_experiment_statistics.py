"""Statistics: intervals that cover what they should, and say nothing they cannot know."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.statistics import (
    difference_interval,
    median_interval,
    percentiles,
    proportion_interval,
    ratio_interval,
)


def test_the_interval_of_a_median_covers_the_true_median_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(7)
    hits = 0
    for _ in range(200):
        interval = median_interval(random.lognormal(0.0, 0.5, size=15))
        hits += interval.low <= 1.0 <= interval.high
    assert 0.88 <= hits / 200 <= 1.0


def test_the_same_values_give_the_same_interval() -> None:
    values = [3.0, 1.0, 4.0, 1.5, 9.0]
    assert median_interval(values) == median_interval(values)


def test_one_value_has_no_width_and_no_value_is_refused() -> None:
    assert median_interval([2.0]).low == median_interval([2.0]).high == 2.0
    with pytest.raises(ValueError, match="nothing"):
        median_interval([])


@given(st.lists(st.floats(0.1, 1e6), min_size=2, max_size=12))
def test_an_interval_stays_within_the_values_and_contains_the_median(values: list[float]) -> None:
    interval = median_interval(values)
    assert min(values) <= interval.low <= interval.high <= max(values)


def test_a_slow_repetition_cancels_out_of_a_paired_ratio() -> None:
    machine = np.array([1.0, 2.0, 0.5, 1.5, 1.0, 3.0])
    interval = ratio_interval(200 * machine, 100 * machine)
    assert interval.low == interval.high == interval.estimate == pytest.approx(2.0)


def test_a_difference_is_taken_pair_by_pair() -> None:
    assert difference_interval([11, 22, 33, 44, 55], [1, 12, 23, 34, 45]).estimate == pytest.approx(10.0)


def test_five_successes_of_five_are_no_certainty() -> None:
    interval = proportion_interval(5, 5)
    assert interval.estimate == 1.0
    assert 0.5 < interval.low < 0.7


def test_a_percentile_is_given_only_when_a_hundred_values_lie_beyond_it() -> None:
    assert set(percentiles(range(1_001))) == {0.5, 0.75, 0.9}
    assert 0.99 in percentiles(range(10_001))
    assert set(percentiles(range(10))) == {0.5}
