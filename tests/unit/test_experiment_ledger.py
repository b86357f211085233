"""The oracle: lost, duplicated and reordered records are told apart by identity."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from experiments.ledger import reconcile


def test_a_perfect_run_has_nothing_to_report() -> None:
    found = reconcile(5, range(5), range(5))
    assert (found.lost, found.duplicated, found.unexpected, found.recovered, found.reordered) == (0, 0, 0, 0, 0)


def test_a_lost_and_a_doubled_record_do_not_cancel_out() -> None:
    found = reconcile(4, range(4), [0, 1, 1, 3])
    assert (found.lost, found.duplicated) == (1, 1)


def test_a_record_that_was_never_confirmed_but_arrived_is_recovered() -> None:
    found = reconcile(4, [0, 1], [0, 1, 3])
    assert (found.lost, found.recovered, found.unexpected) == (0, 1, 0)


def test_a_record_nobody_sent_is_unexpected() -> None:
    assert reconcile(2, [0, 1], [0, 1, 7]).unexpected == 1


def test_order_counts_within_a_lane_only() -> None:
    assert reconcile(4, range(4), [1, 0, 3, 2]).reordered == 2
    assert reconcile(4, range(4), [1, 0, 3, 2], lanes=[0, 1, 0, 1]).reordered == 0


def test_a_repeated_record_is_a_duplicate_and_no_disorder() -> None:
    found = reconcile(3, range(3), [0, 1, 0, 2])
    assert (found.duplicated, found.reordered) == (1, 0)


def test_nothing_received_is_everything_lost() -> None:
    assert reconcile(3, range(3), []).lost == 3


@given(st.lists(st.integers(0, 30), max_size=60))
def test_counts_add_up_for_any_reading(received: list[int]) -> None:
    found = reconcile(20, range(20), received)
    assert found.received == len(received)
    assert found.confirmed - found.lost + found.unexpected + found.duplicated == found.received
