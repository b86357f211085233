"""What a stream's reader makes of gaps between the chunks that the broker sends it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from streaming.errors import RetentionGap
from streaming.interfaces import Extent
from streaming.transports.rabbitmq import stream_source as under_test
from streaming.transports.rabbitmq.address import Address
from streaming.transports.rabbitmq.stream_source import StreamSource
from tests.brokers.rabbitmq_scenes import Notebook


def reader(
    monkeypatch: pytest.MonkeyPatch, start: int | None, extent: Extent, *chunks: tuple[int, int]
) -> StreamSource:
    """One to whom the broker has sent these chunks: first offset, records. The extent is as it was, then `extent`."""
    link = SimpleNamespace(wait_open=lambda: None, failure=None, close=lambda: None)
    monkeypatch.setattr(under_test, "StreamLink", lambda *_, **__: link)
    extents = iter([Extent(0, 100)])
    nothing: Any = None
    source = StreamSource(
        nothing, Address(1, "u", "p"), "events", "readers", Notebook(start), lambda: next(extents, extent)
    )
    source._chunks = [(first, [b"%d" % offset for offset in range(first, first + count)]) for first, count in chunks]
    return source


def polled(source: StreamSource) -> list[int]:
    return [offset for batch in source.poll(0) for offset in batch.offsets.tolist()]


def test_a_gap_that_the_brokers_own_entries_leave_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    source = reader(monkeypatch, 0, Extent(0, 100), (0, 3), (5, 2))
    assert polled(source) == [0, 1, 2, 5, 6]


@pytest.mark.parametrize("start", [0, None])
def test_what_retention_took_between_two_chunks_stops_the_reader_behind_the_first(
    monkeypatch: pytest.MonkeyPatch, start: int | None
) -> None:
    source = reader(monkeypatch, start, Extent(50, 100), (0, 3), (50, 2))
    assert polled(source) == [0, 1, 2]
    with pytest.raises(RetentionGap, match=r"before offset 3, .* is 50"):
        source.poll(0)


def test_what_retention_took_before_the_first_chunk_matters_to_who_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RetentionGap):
        reader(monkeypatch, 0, Extent(50, 100), (50, 2)).poll(0)
    assert polled(reader(monkeypatch, None, Extent(50, 100), (50, 2))) == [50, 51]
