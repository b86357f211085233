"""Interval sets are sets: every operation agrees with Python's own."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.intervals import IntervalSet

PAIRS = st.lists(st.tuples(st.integers(-40, 40), st.integers(-40, 40)), max_size=12)


def plain(pairs: list[tuple[int, int]]) -> set[int]:
    return {value for start, end in pairs for value in range(start, end)}


@given(PAIRS)
def test_ranges_in_any_order_become_the_set_of_their_numbers(pairs: list[tuple[int, int]]) -> None:
    found = IntervalSet.of_ranges(pairs)
    assert set(found) == plain(pairs)
    assert list(found) == sorted(plain(pairs))
    assert len(found) == found.count == len(plain(pairs))


@given(PAIRS)
def test_ranges_neither_overlap_nor_touch(pairs: list[tuple[int, int]]) -> None:
    ranges = IntervalSet.of_ranges(pairs).ranges
    assert all(start < end for start, end in ranges)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ranges))


@given(PAIRS, PAIRS)
def test_union_difference_and_intersection_are_those_of_sets(
    left: list[tuple[int, int]], right: list[tuple[int, int]]
) -> None:
    a, b = IntervalSet.of_ranges(left), IntervalSet.of_ranges(right)
    assert (a | b) == a.union(b) == IntervalSet.of_sorted(np.array(sorted(plain(left) | plain(right)), dtype=np.int64))
    assert set(a - b) == set(a.difference(b)) == plain(left) - plain(right)
    assert set(a & b) == set(a.intersection(b)) == plain(left) & plain(right)


@given(PAIRS, st.integers(-45, 45))
def test_membership_is_that_of_the_set(pairs: list[tuple[int, int]], value: int) -> None:
    found = IntervalSet.of_ranges(pairs)
    assert (value in found) == (value in plain(pairs))
    values = np.arange(-45, 45)
    assert found.contains(values).tolist() == [each in plain(pairs) for each in values.tolist()]


@given(st.lists(st.integers(-40, 40)))
def test_a_sorted_array_with_repetitions_becomes_its_set(values: list[int]) -> None:
    assert set(IntervalSet.of_sorted(np.array(sorted(values), dtype=np.int64))) == set(values)


@given(PAIRS, st.integers(-40, 40), st.integers(-40, 40))
def test_adding_a_range_leaves_the_old_set_as_it_was(pairs: list[tuple[int, int]], start: int, end: int) -> None:
    before = IntervalSet.of_ranges(pairs)
    assert set(before.add(start, end)) == plain(pairs) | set(range(start, end))
    assert set(before) == plain(pairs)


@given(PAIRS)
def test_ranges_go_through_json_unchanged(pairs: list[tuple[int, int]]) -> None:
    found = IntervalSet.of_ranges(pairs)
    back = IntervalSet.of_ranges(json.loads(json.dumps(found.ranges)))
    assert back == found
    assert hash(back) == hash(found)


@pytest.mark.parametrize(
    ("pairs", "says"),
    [([], ""), ([(0, 1)], "0"), ([(0, 5), (7, 8)], "0…4, 7"), ([(n, n + 1) for n in range(0, 14, 2)], None)],
)
def test_a_set_shows_itself_in_few_words(pairs: list[tuple[int, int]], says: str | None) -> None:
    assert str(IntervalSet.of_ranges(pairs)) == (says if says is not None else "0, 2, 4, 6, 8 and 2 ranges more")
