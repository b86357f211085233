"""A replay's clock goes by the faults: it neither runs out before the last of them nor waits after it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.feeding import FaultClock

LENGTH_S = 100.0


class Hand:
    """A clock turned by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def passed(clock: FaultClock, hand: Hand, waits_s: list[float]) -> Iterator[float]:
    """What the clock says after each wait, a fault having happened at the end of each."""
    for number, wait_s in enumerate(waits_s, 1):
        for _ in range(10):
            hand.now_s += wait_s / 10
            yield clock.monotonic_s()
        clock.happened(number / len(waits_s))


@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=30), st.floats(1.0, 1_000.0))
def test_something_is_left_to_send_until_the_last_fault_and_nothing_afterwards(
    waits_s: list[float], guess_s: float
) -> None:
    hand = Hand()
    clock = FaultClock(LENGTH_S, guess_s, hand)
    seen = list(passed(clock, hand, waits_s))
    assert seen == sorted(seen)
    assert seen[-1] < LENGTH_S
    assert clock.monotonic_s() >= LENGTH_S
    before = clock.monotonic_s()
    hand.now_s += 1.0
    assert clock.monotonic_s() == pytest.approx(before + 1.0), (
        "a replay goes on by the clock when more rows are due than go at once"
    )


def test_on_a_machine_ten_times_as_slow_as_guessed_records_come_to_the_end_and_evenly() -> None:
    hand = Hand()
    clock = FaultClock(LENGTH_S, 50.0, hand)
    seen = list(passed(clock, hand, [5.0] * 100))
    for share in (0.25, 0.5, 0.75):
        assert abs(seen[int(share * len(seen))] / LENGTH_S - share) < 0.15
    assert seen[-1] > 0.95 * LENGTH_S


def test_who_waits_is_let_go_by_a_stop() -> None:
    stop = threading.Event()
    stop.set()
    assert not FaultClock(LENGTH_S, 50.0).wait(stop, LENGTH_S)
