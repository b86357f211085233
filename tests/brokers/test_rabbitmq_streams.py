"""RabbitMQ streams on a real node: offsets, publishing ids, identity; each event once through losses and kills."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from rstream import exceptions
from rstream.client import Client

from streaming.batch import Batch, Outgoing
from streaming.cluster.rabbitmq import DisposableRabbitMQ
from streaming.errors import BrokerUnavailable, Fenced, RetentionGap, SetupError, TopicRecreated, UsageError
from streaming.topology import STREAMS
from streaming.transformers.windows import MeansStep
from streaming.transports.rabbitmq.declaring import channel_of
from streaming.transports.rabbitmq.outbox import OutboxTransaction
from streaming.transports.rabbitmq.stream_loop import StreamLink, close, connect
from streaming.transports.rabbitmq.stream_source import StreamSource
from streaming.transports.rabbitmq.streams import RabbitStreams
from tests.brokers.rabbitmq_scenes import (
    CODEC,
    CODECS,
    GROUP,
    OUTBOX_MOMENTS,
    STREAM,
    Killable,
    Notebook,
    address,
    assert_each_once,
    outgoing,
    positions,
    until,
    until_landed,
)

pytestmark = pytest.mark.brokers
FLOW = [STREAMS[name] for name in ("positions", "position_means", "late_positions")]


@pytest.fixture
def streams(rabbitmq: DisposableRabbitMQ, tmp_path: Path) -> Iterator[RabbitStreams]:
    made = RabbitStreams(address(rabbitmq), outbox=tmp_path / "outbox")
    made.create(FLOW, replication=1)
    yield made
    made.close()


def publish(transport: RabbitStreams, count: int, first: int = 0) -> None:
    publisher = transport.publisher("test")
    publisher.publish(outgoing(positions(count, first=first)))
    assert publisher.flush(60)
    publisher.close()


def take(source: StreamSource, count: int) -> list[Batch]:
    batches: list[Batch] = []

    def enough() -> bool:
        batches.extend(source.poll(0.2))
        return sum(map(len, batches)) >= count

    until(enough)
    return batches


def offsets(batches: list[Batch]) -> list[int]:
    found: list[int] = np.concatenate([batch.offsets for batch in batches]).tolist()
    return found


def test_what_is_published_is_read_from_the_offset_that_is_asked_for(streams: RabbitStreams) -> None:
    payloads = [b"", b"x" * 500_000, *(b"%d" % n for n in range(20_000))]
    publisher = streams.publisher("test")
    publisher.publish(Outgoing("positions", payloads, [b"k"] * len(payloads)))
    assert publisher.flush(60)
    assert publisher.outstanding == 0
    publisher.close()

    first = streams.source("positions", GROUP, Notebook())
    batches = take(first, len(payloads))
    first.close()
    assert [value for batch in batches for value in batch.values] == payloads
    places = offsets(batches)
    assert places == list(range(places[0], places[0] + len(payloads)))
    extent = streams.extents("positions")[0]
    assert (extent.low, extent.high) == (places[0], places[-1] + 1)
    assert streams.count_between("positions", 0, places[10], places[110]) == 100
    [whole] = streams.read_all("positions")
    assert list(whole.values) == payloads

    second = streams.source("positions", GROUP, Notebook(start=places[15_000]))
    batches = take(second, len(payloads) - 15_000)
    assert batches[0].offsets[0] == places[15_000]
    assert batches[0].values[0] == payloads[15_000]
    second.seek(0, places[-5])
    assert offsets(take(second, 5)) == places[-5:]
    second.close()


def test_a_reader_of_an_empty_stream_gets_what_comes_and_a_paused_one_nothing(streams: RabbitStreams) -> None:
    assert streams.read_all("positions") == []
    source = streams.source("positions", GROUP, Notebook())
    assert source.poll(0.1) == []
    publish(streams, 10)
    take(source, 10)
    source.pause()
    publish(streams, 10, first=10)
    assert [source.poll(0.1) for _ in range(3)] == [[]] * 3
    source.resume()
    assert CODEC.decode(take(source, 10)[0].values).table["sequence"][0] == 10
    source.close()


def test_lost_connections_lose_and_double_nothing_on_either_side(streams: RabbitStreams) -> None:
    keeper = Notebook()
    source = streams.source("positions", GROUP, keeper)
    publisher = streams.publisher("test")
    batches: list[Batch] = []
    for first in range(0, 50_000, 5_000):
        publisher.publish(outgoing(positions(5_000, first=first)))
        publisher._lanes["positions"].link.drop()
        batches += source.poll(0.05)
        source._link.drop()
    assert publisher.flush(60)
    assert publisher.resent > 0
    publisher.close()
    batches += take(source, 50_000 - sum(map(len, batches)))
    source.close()
    sequences = [n for batch in batches for n in CODEC.decode(batch.values).table["sequence"]]
    assert sequences == list(range(50_000))
    assert keeper.lost == 0


async def nothing(_: Client) -> None:
    """Do it."""


def test_a_node_that_listens_and_is_slow_is_waited_for(
    streams: RabbitStreams, rabbitmq: DisposableRabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streaming.transports.rabbitmq.stream_loop.CONNECT_TIMEOUT_S", 0.2)
    log = streams._address.log("positions")
    rabbitmq.pause(1)
    try:
        link = StreamLink(streams._loop, streams._address, "slow", log, on_open=nothing, on_lost=lambda: None)
        until(lambda: link._reason)
    finally:
        rabbitmq.resume(1)
    link.wait_open(timeout_s=0)
    monkeypatch.undo()  # closing has the time again that it takes
    link.close()


async def stumble(_: Client) -> None:
    """Fail as nobody expects it."""
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("change", "on_open", "reason"), [({}, stumble, "ZeroDivision"), ({"stream_port": 1}, nothing, "ConnectionRefused")]
)
def test_a_link_that_can_not_open_says_why(
    streams: RabbitStreams, change: dict[str, int], on_open: Callable[[Client], Awaitable[None]], reason: str
) -> None:
    there = replace(streams._address, **change)  # type: ignore[arg-type]
    link = StreamLink(streams._loop, there, "poor", there.log("positions"), on_open=on_open, on_lost=lambda: None)
    until(lambda: link.failure or link._reason)
    with pytest.raises(BrokerUnavailable, match=reason):
        link.wait_open(timeout_s=0)
    link.close()


def test_a_stream_made_anew_has_another_identity_and_a_reader_of_the_old_one_stops(streams: RabbitStreams) -> None:
    publish(streams, 100)
    before = streams.identity("positions")
    streams.create([STREAM], replication=1)
    assert streams.identity("positions") == before
    with channel_of(streams._address) as channel:
        channel.queue_delete(streams._address.log("positions"))
    streams.create([STREAM], replication=1)
    after = streams.identity("positions")
    assert after.cluster_id == before.cluster_id
    assert after.topic_id != before.topic_id
    with pytest.raises(TopicRecreated):
        streams.source("positions", GROUP, Notebook(start=100))


def test_a_position_that_the_broker_stores_for_the_group_does_not_count(streams: RabbitStreams) -> None:
    """The conformance suite asks this of brokers whose groups have positions; here only a stranger could store one."""
    publish(streams, 100)
    start = streams.extents("positions")[0].low
    log = streams._address.log("positions")
    client, _ = streams._loop.run(connect(streams._address, "stranger", log))
    for name in (GROUP, f"{GROUP}-0"):
        streams._loop.run(client.store_offset(log, name, start + 60))
    until(lambda: all(streams._loop.run(stored(client, log, name)) == start + 60 for name in (GROUP, f"{GROUP}-0")))
    streams._loop.run(close(client))
    for wanted, first in ((None, start), (start + 30, start + 30)):
        source = streams.source("positions", GROUP, Notebook(start=wanted))
        assert offsets(take(source, start + 100 - first))[0] == first
        source.close()


async def stored(client: Client, log: str, name: str) -> int | None:
    with contextlib.suppress(exceptions.OffsetNotFound):
        return int(await client.query_offset(log, name))
    return None


@pytest.fixture
def short_lived(
    rabbitmq: DisposableRabbitMQ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RabbitStreams]:
    """A stream that keeps little, in small segments: one drops whole segments only, and never up to any offset."""
    monkeypatch.setattr("streaming.transports.rabbitmq.streams.SEGMENT_BYTES", 10_000)
    monkeypatch.setattr("streaming.transports.rabbitmq.streams.MAX_STREAM_BYTES", 20_000)
    made = RabbitStreams(address(rabbitmq), outbox=tmp_path / "outbox")
    made.create([STREAM], replication=1)
    publish(made, 100)
    yield made
    made.close()


def until_it_forgets(streams: RabbitStreams, offset: int) -> None:
    """Publish until retention has taken the record at this offset."""

    def is_gone() -> bool:
        publish(streams, 100)
        return streams.extents("positions")[0].low > offset

    until(is_gone)


def test_records_that_retention_took_before_they_were_read_stop_the_reader(short_lived: RabbitStreams) -> None:
    streams = short_lived
    first = streams.extents("positions")[0].low
    until_it_forgets(streams, first)
    with pytest.raises(RetentionGap, match=f"before offset {first},"):
        streams.source("positions", GROUP, Notebook(start=first))
    source = streams.source("positions", GROUP, Notebook())
    assert offsets(take(source, 1))[0] > first
    source.close()


def test_input_that_retention_took_before_it_was_used_stops_the_transformer(short_lived: RabbitStreams) -> None:
    streams, used = short_lived, short_lived.extents("positions")[0].low + 40

    def opened() -> OutboxTransaction:
        return streams.transaction("positions", "s", "r", restore=lambda *_: None, forget=lambda _: None)

    transaction = opened()
    until(lambda: transaction.poll(0.2))
    assert transaction.commit([], {0: b"state"}, {0: used})
    transaction.close()
    until_it_forgets(streams, used)
    with pytest.raises(RetentionGap, match=f"before offset {used},"):
        opened()


def test_a_reader_that_retention_overtakes_stops_and_skips_nothing(short_lived: RabbitStreams) -> None:
    streams, start = short_lived, short_lived.extents("positions")[0].low
    source = streams.source("positions", GROUP, Notebook(start=start))
    source.pause()
    until_it_forgets(streams, start + 2_000)  # more than what may be on its way to the reader: ten chunks of 100
    source.resume()
    batches: list[Batch] = []
    with pytest.raises(RetentionGap):
        until(lambda: batches.extend(source.poll(0.2)))
    places = offsets(batches)
    assert places == list(range(start, start + len(places)))
    source.close()


def test_what_cannot_be_is_refused_by_name(streams: RabbitStreams) -> None:
    with pytest.raises(UsageError, match="nothing"):
        streams.extents("nothing")
    with pytest.raises(UsageError, match="nothing"):
        streams.publisher("test").publish(Outgoing("nothing", [b"x"], [b"k"]))
    with pytest.raises(UsageError, match="shape"):
        streams.create([replace(STREAM, settings=MappingProxyType({}))], replication=1)
    others = {
        SetupError: RabbitStreams(replace(streams._address, password="")),
        BrokerUnavailable: RabbitStreams(replace(streams._address, stream_port=1)),
    }
    for error, other in others.items():
        with pytest.raises(error):
            other.identity("positions")
        with pytest.raises(UsageError, match="outbox"):
            other.transaction("positions", "s", "r", restore=print, forget=print)
        other.close()


def test_outputs_sent_again_are_stored_once_and_a_lost_outbox_goes_on_behind_them(
    streams: RabbitStreams, tmp_path: Path
) -> None:
    outputs = [Outgoing("position_means", [b"%d" % n for n in range(100)], [b"k"] * 100)]
    publish(streams, 10)
    start = streams.extents("positions")[0].low

    def opened(*, adds: bool = False) -> list[bytes | None]:
        states: list[bytes | None] = []
        transaction = streams.transaction(
            "positions", "s", "r", restore=lambda _, state: states.append(state), forget=lambda _: None
        )
        if states == [None] or adds:
            assert transaction.commit(outputs, {0: b"state"}, {0: start + 7})
        transaction.close()
        return states

    assert opened() == [None]
    (tmp_path / "outbox" / "r-0" / "sent").unlink()  # as if it had died before it could note that
    assert opened() == [b"state"]
    assert [len(batch) for batch in streams.read_all("position_means")] == [100]
    opened(adds=True)
    opened(adds=True)
    assert [len(batch) for batch in streams.read_all("position_means")] == [300]

    (tmp_path / "outbox" / "r-0" / "outcome").unlink()
    (tmp_path / "outbox" / "r-0" / "sent").unlink()
    assert opened() == [None]
    assert [len(batch) for batch in streams.read_all("position_means")] == [400]


def test_a_second_process_of_the_same_instance_is_kept_out(
    streams: RabbitStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streaming.transports.rabbitmq.outbox.LOCK_TIMEOUT_S", 0.1)
    first = streams.transaction("positions", "s", "r", restore=lambda *_: None, forget=lambda _: None)
    with pytest.raises(Fenced):
        streams.transaction("positions", "s", "r", restore=lambda *_: None, forget=lambda _: None)
    first.close()


def test_a_sink_killed_ten_times_lands_each_of_50000_records_once(streams: RabbitStreams, tmp_path: Path) -> None:
    with Killable("sink", "streams", tmp_path, streams._address) as sink:
        chance = random.Random(7)
        for part in range(10):
            publish(streams, 5_000, first=5_000 * part)
            aim = chance.randrange(5_000 * part + 1, 5_000 * part + 4_000)
            until_landed(tmp_path, aim)
            sink.kill_and_start()
        until_landed(tmp_path, 50_000)
        sink.stop()
        assert_each_once(tmp_path, "rabbitmq", 50_000)


def test_a_transformer_killed_at_random_and_at_named_moments_gives_the_means_of_an_offline_run(
    streams: RabbitStreams, tmp_path: Path
) -> None:
    _, outputs = MeansStep().advance(MeansStep().initial(0), positions(80_000))
    wanted = outputs["position_means"]
    with Killable("transform", "streams", tmp_path, streams._address) as transformer:

        def until_made(count: int) -> None:
            until(lambda: sum(map(len, streams.read_all("position_means"))) >= count)

        for part in range(10):
            publish(streams, 5_000, first=5_000 * part)
            until_made(len(wanted) * part // 16)
            transformer.kill_and_start()
        for part, moment in enumerate(reversed(OUTBOX_MOMENTS * 2), start=10):
            publish(streams, 5_000, first=5_000 * part)
            transformer.dies_at(moment)
        transformer.start()
        until_made(len(wanted))
        transformer.stop()
        values = [value for batch in streams.read_all("position_means") for value in batch.values]
        assert CODECS["position_means"].decode(values).table.equals(wanted)
        assert streams.read_all("late_positions") == []
