"""How long verify waits for a queue's table, and what it takes for proof."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from sinks.accounts import Claim
from sinks.queue_cut import BOOKS_AGE_S, _Waiting, take_queue_cut
from streaming.batch import Batch
from streaming.home import Home
from streaming.identities import Identities
from streaming.interfaces import Queueing
from streaming.intervals import IntervalSet
from streaming.lab import Lab
from streaming.topology import ROLES, role, state_stream
from tests.crash.test_arrivals import batch, events, sink_in

ROLE = role("positions-parquet")


class Queue:
    """A queue's numbers, as the broker would give them."""

    name = "rabbitmq"

    def __init__(self, holds: int) -> None:
        self.holds = holds

    def depths(self, stream: str) -> dict[str, int]:
        assert stream == "positions"
        return {ROLE.name: self.holds}

    def held(self, stream: str, group: str) -> int:
        assert (stream, group) == ("positions", ROLE.name)
        return self.holds


def numbers(*ranges: tuple[int, int]) -> Identities:
    return Identities({("p", 1): IntervalSet.of_ranges(ranges)})


def pending(home: Path, wanted: Identities, due: Identities, *, holds: int = 1, needed: int | None = None) -> int:
    """What is still waited for when there is no time left; `due` was all that had been tried."""
    waiting = _Waiting(Home(home), cast("Queueing", Queue(holds)), time.monotonic(), lambda _: None)
    return waiting.until_landed(ROLE, wanted, due, due, wanted.count if needed is None else needed)


def land(home: Path, *ranges: tuple[int, int]) -> None:
    sink = sink_in(home)
    values = [value for first, end in ranges for value in events(first, end)]
    sink.write(batch(values))
    sink.commit()
    sink.close()


@pytest.mark.parametrize(
    ("landed", "left"),
    [([(0, 4)], 6), ([(0, 10)], 0), ([(0, 4), (5, 10)], 1)],
    ids=["half", "all", "one is missing, and nothing younger shows that it has passed"],
)
def test_what_is_due_is_waited_for(tmp_path: Path, landed: Sequence[tuple[int, int]], left: int) -> None:
    land(tmp_path, *landed)
    assert pending(tmp_path, numbers((0, 10)), numbers((0, 10))) == left


def test_what_is_due_is_lost_rather_than_pending_once_something_younger_has_landed(tmp_path: Path) -> None:
    land(tmp_path, (0, 5), (6, 11))
    assert pending(tmp_path, numbers((0, 10)), numbers((0, 10))) == 0


def test_something_younger_proves_nothing_about_what_a_transformer_has_used_since(tmp_path: Path) -> None:
    """Otherwise an alert is checked against means of which the last have not landed, and looks invented."""
    land(tmp_path, (0, 11))
    assert pending(tmp_path, numbers((0, 13)), numbers((0, 10))) == 2
    land(tmp_path, (11, 13))
    assert pending(tmp_path, numbers((0, 13)), numbers((0, 10))) == 0


class Idle(Queue):
    """A broker whose transformers have not begun: they remember nothing."""

    def read_all(self, stream: str) -> list[Batch]:
        assert stream in {"vehicles", *(state_stream(each).name for each in ROLES.values() if each.writes[1:])}
        return []


def test_what_a_sink_has_not_reached_is_pending_also_when_the_transformer_beside_it_is_behind(tmp_path: Path) -> None:
    """Both are stopped with records in their queues: what the sink lacks was confirmed, and is no loss."""
    land(tmp_path, (0, 4))
    ten = IntervalSet.of_ranges([(0, 10)])
    claims = {"positions": {("p", 1): Claim(ten, ten)}}
    cut = take_queue_cut(Home(tmp_path), cast("Queueing", Idle(6)), Lab(), claims, wait_s=0.0, progress=lambda _: None)
    assert cut.pending["means-transformer"] == 10
    assert cut.pending["positions_parquet"] == 6


def test_of_some_only_a_number_is_needed(tmp_path: Path) -> None:
    land(tmp_path, (0, 3))
    assert pending(tmp_path, numbers((0, 10)), numbers((0, 10)), needed=5) == 2
    assert pending(tmp_path, numbers((0, 10)), numbers((0, 10)), needed=3) == 0


def test_an_empty_queue_ends_the_wait_when_the_brokers_books_are_young_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(tmp_path, (0, 5))
    now: Any = iter([0.0, BOOKS_AGE_S + 1, BOOKS_AGE_S + 1])
    monkeypatch.setattr("sinks.queue_cut.time.monotonic", lambda: next(now))
    waiting = _Waiting(Home(tmp_path), cast("Queueing", Queue(0)), 1e9, lambda _: None)
    assert waiting.until_landed(ROLE, numbers((0, 10)), numbers((0, 10)), numbers((0, 10)), 10) == 0
