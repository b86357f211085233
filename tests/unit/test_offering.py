"""The load generator: open loop, nothing skipped, nothing early, its own lateness told; and the search for a limit."""

from __future__ import annotations

import time

import pytest

from experiments.deep_dives.limits import STEPS, _search
from experiments.offering import Offered, offer


class Client:
    """Takes records, each call at a cost, and remembers when it was given which."""

    def __init__(self, cost_s: float = 0.0) -> None:
        self.failed = 0
        self.cost_s = cost_s
        self.given: list[tuple[float, int]] = []

    def put(self, _: str, first: int, end: int) -> None:
        now = time.monotonic()
        self.given += [(now, number) for number in range(first, end)]
        until = now + self.cost_s * (end - first)
        while time.monotonic() < until:
            pass

    def flush(self) -> None:
        pass


def offered(client: Client, records: int, rate: float) -> tuple[Offered, float]:
    at = time.monotonic() + 0.01
    return offer(client, "topic", 7, records, rate, at), at  # type: ignore[arg-type]


def test_each_record_is_given_once_in_order_and_none_before_it_is_due() -> None:
    client = Client()
    done, at = offered(client, 300, 2_000)
    assert [number for _, number in client.given] == list(range(7, 307))
    assert all(moment >= at + (number - 7) / 2_000 for moment, number in client.given)
    assert done.records == 300
    assert done.took_s >= 299 / 2_000


def test_a_client_that_is_too_slow_gets_every_record_all_the_same_and_the_lateness_is_told() -> None:
    client = Client(cost_s=0.001)  # half of what is offered
    done, _ = offered(client, 200, 2_000)
    assert [number for _, number in client.given] == list(range(7, 207))
    assert done.behind_s >= 0.08
    assert done.took_s >= 0.2


def test_at_full_speed_nothing_is_waited_for() -> None:
    done, _ = offered(Client(), 10_000, 0)
    assert done.took_s < 1


@pytest.mark.parametrize("limit", [300.0, 700.0, 1_000.0])
def test_the_search_finds_the_limit_to_a_tenth_and_never_above_it(limit: float) -> None:
    asked: list[float] = []

    def holds(rate: float) -> bool:
        asked.append(rate)
        return rate <= limit

    found = _search(holds, 1_000)
    assert len(asked) == STEPS
    assert 0.9 * limit <= found <= limit
