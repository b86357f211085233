"""Queues on a real node: confirms, redelivery, alarms, restarts; and each event once in the files."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from streaming.batch import Batch, Outgoing
from streaming.cluster.rabbitmq import DisposableRabbitMQ, control
from streaming.errors import BrokerUnavailable, SetupError, UsageError
from streaming.identities import Identities, new_rows
from streaming.interfaces import Offsets
from streaming.topology import STREAMS
from streaming.transformers.windows import MeansStep
from streaming.transports.rabbitmq.address import Address
from streaming.transports.rabbitmq.link import Link
from streaming.transports.rabbitmq.queue_publisher import QueuePublisher
from streaming.transports.rabbitmq.queue_source import QueueSource
from streaming.transports.rabbitmq.queues import RabbitQueues
from tests.brokers.rabbitmq_scenes import (
    CODEC,
    CODECS,
    DEADLINE_S,
    GROUP,
    OUTBOX_MOMENTS,
    STREAM,
    Killable,
    Notebook,
    address,
    assert_each_once,
    landed,
    outgoing,
    positions,
    sink_at,
    until,
    until_landed,
)

pytestmark = pytest.mark.brokers


def queues(at: Address, queue_type: str = "quorum", prefetch: int = 60_000) -> RabbitQueues:
    made = RabbitQueues(at, queue_type=queue_type, readers=lambda _: [GROUP], prefetch=prefetch)
    made.create([STREAM], replication=1)
    return made


def publish(transport: RabbitQueues, count: int, first: int = 0) -> None:
    publisher = transport.publisher("test")
    publisher.publish(outgoing(positions(count, first=first)))
    assert publisher.flush(60)
    publisher.close()


def take(source: QueueSource, count: int) -> list[Batch]:
    batches: list[Batch] = []

    def enough() -> bool:
        batches.extend(source.poll(0.2))
        return sum(map(len, batches)) >= count

    until(enough)
    return batches


@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
def test_what_is_published_and_confirmed_is_read_in_order(rabbitmq: DisposableRabbitMQ, queue_type: str) -> None:
    transport = queues(address(rabbitmq), queue_type)
    payloads = [b"", b"x", os.urandom(131_064), os.urandom(131_065), os.urandom(400_000)]
    payloads += [b"%d" % n for n in range(20_000)]
    publisher = transport.publisher("test")
    publisher.publish(Outgoing("positions", payloads, [b"key.with.dots", b"\xff" * 300] * 10_002 + [b""]))
    assert publisher.flush(60)
    assert publisher.outstanding == 0
    publisher.close()

    source = transport.source("positions", GROUP, Notebook())
    batches = take(source, len(payloads))
    assert [value for batch in batches for value in batch.values] == payloads
    assert np.all(np.diff(np.concatenate([batch.offsets for batch in batches])) == 1)
    source.acknowledge({0: batches[-1].next_offset})
    source.acknowledge({0: batches[-1].next_offset})  # once more does no harm
    source.close()
    assert transport.depths("positions") == {GROUP: 0}


def test_what_is_not_acknowledged_comes_again_after_a_lost_connection(rabbitmq: DisposableRabbitMQ) -> None:
    transport = queues(address(rabbitmq))
    publish(transport, 1_000)
    keeper = Notebook()
    source = transport.source("positions", GROUP, keeper)
    first = take(source, 1_000)
    source.acknowledge({0: 601})
    again: list[bytes] = []

    def came_again() -> bool:
        if not keeper.lost:
            rabbitmq.drop_connections()  # the management's books are seconds behind: until it knows of ours
        for batch in source.poll(0.2):
            again.extend(batch.values)
        return len(again) >= 400

    until(came_again)
    assert keeper.lost >= 1
    assert keeper.resumed == keeper.lost + 1
    assert source.redelivered >= 400
    assert again[:400] == [value for batch in first for value in batch.values][600:]
    source.close()


def test_an_acknowledgement_of_a_lost_connection_is_ignored(rabbitmq: DisposableRabbitMQ) -> None:
    transport = queues(address(rabbitmq))
    publish(transport, 100)
    keeper = Notebook()
    source = transport.source("positions", GROUP, keeper)
    before = take(source, 100)[-1]
    source.seek(0, 0)
    again = take(source, 100)[0]
    assert keeper.lost == 1
    assert again.offsets[0] > before.offsets[-1]
    source.acknowledge({0: before.next_offset})
    source.close()
    until(lambda: transport.depths("positions") == {GROUP: 100})


def test_of_two_consumers_one_is_active_and_the_other_takes_over_what_was_not_acknowledged(
    rabbitmq: DisposableRabbitMQ,
) -> None:
    transport = queues(address(rabbitmq))
    active, waiting = (transport.source("positions", GROUP, Notebook(), instance=number) for number in (0, 1))
    publish(transport, 1_000)
    came = [value for batch in take(active, 1_000) for value in batch.values]
    assert waiting.poll(0.3) == []
    active.acknowledge({0: 401})
    active.close()
    assert [value for batch in take(waiting, 600) for value in batch.values] == came[400:]
    publish(transport, 10, first=1_000)
    take(waiting, 10)
    waiting.close()


def cut(publisher: QueuePublisher) -> None:
    """The connection goes without a word, and what was on its way with it."""
    connection = publisher._link._connection
    if connection is not None and connection.is_open:
        with suppress(OSError, AttributeError):  # it has just gone by itself
            connection._transport._sock.shutdown(socket.SHUT_RDWR)


def test_a_publisher_sends_again_what_a_lost_connection_left_unconfirmed(rabbitmq: DisposableRabbitMQ) -> None:
    transport = queues(address(rabbitmq))
    publisher = transport.publisher("test")
    for first in range(0, 30_000, 3_000):
        publisher.publish(outgoing(positions(3_000, first=first)))
        cut(publisher)  # whatever is in flight
    assert publisher.flush(60)
    assert publisher.resent > 0
    publisher.close()

    source = transport.source("positions", GROUP, Notebook())
    sequences: list[int] = []

    def all_read() -> bool:
        for batch in source.poll(0.2):
            sequences.extend(CODEC.decode(batch.values).table["sequence"])
        return set(sequences) == set(range(30_000))

    until(all_read)
    firsts = list(dict.fromkeys(sequences))
    assert firsts == sorted(firsts), "the first copy of each comes in order"
    source.close()


def test_a_message_that_no_queue_takes_is_an_error_and_not_a_loss_in_silence(rabbitmq: DisposableRabbitMQ) -> None:
    transport = queues(address(rabbitmq))
    publisher = transport.publisher("test")
    publisher.publish(Outgoing("nobody", [b"x"], [b"k"]))
    with pytest.raises(SetupError, match="nobody"):
        publisher.flush(30)
    publisher.close()


def test_a_broker_that_takes_its_time_to_grant_is_not_away(rabbitmq: DisposableRabbitMQ) -> None:
    """As with a long queue on a busy machine: the channel is open at once, the answer to consuming takes long."""
    asked, gone = threading.Event(), threading.Event()

    def grant() -> None:
        assert gone.wait(DEADLINE_S)
        link.call(link.serves)

    def opened(*_: object) -> None:
        asked.set()
        threading.Thread(target=grant, daemon=True).start()

    link = Link(address(rabbitmq), "slowly", on_open=opened, on_lost=lambda: None)
    assert asked.wait(DEADLINE_S)
    threading.Timer(0.5, gone.set).start()
    link.wait_open(timeout_s=0.01)
    assert gone.is_set()
    link.close()


def test_a_role_may_do_its_own_part_only(rabbitmq: DisposableRabbitMQ) -> None:
    queues(address(rabbitmq, prefix=""))
    generator = RabbitQueues(address(rabbitmq, "positions-generator", prefix=""))
    publisher = generator.publisher("positions-generator")
    publisher.publish(outgoing(positions(1)))
    assert publisher.flush(30)
    publisher.close()
    with pytest.raises(SetupError):
        generator.create([STREAM], replication=1)
    with pytest.raises(SetupError):
        generator.source("positions", GROUP, Notebook())
    sink = RabbitQueues(address(rabbitmq, GROUP, prefix="")).source("positions", GROUP, Notebook())
    assert len(take(sink, 1)[0]) == 1
    sink.close()
    forbidden = generator.publisher("positions-generator")
    forbidden.publish(Outgoing("alerts", [b"x"], [b"k"]))
    with pytest.raises(SetupError):
        forbidden.flush(30)
    forbidden.close()
    with pytest.raises(SetupError):
        RabbitQueues(replace(address(rabbitmq, GROUP), password="")).publisher("sink")
    with pytest.raises(BrokerUnavailable):
        RabbitQueues(replace(address(rabbitmq), port=1)).create([STREAM], replication=1)


def test_a_queue_of_another_shape_and_a_missing_one_are_refused(rabbitmq: DisposableRabbitMQ) -> None:
    at = address(rabbitmq)
    transport = queues(at)
    transport.create([STREAM], replication=1)  # the same again is fine
    with pytest.raises(UsageError, match="shape"):
        queues(at, "classic")
    with pytest.raises(UsageError, match="nothing"):
        transport.source("nothing", GROUP, Notebook())


def test_what_comes_again_thirty_times_is_not_dropped_by_the_broker(rabbitmq: DisposableRabbitMQ) -> None:
    # From 4.0 on a quorum queue drops after 20 deliveries unless its limit is -1; 3.10 has no limit by default, and
    # knows no -1.
    transport = queues(address(rabbitmq))
    publish(transport, 100)
    source = transport.source("positions", GROUP, Notebook())
    for _ in range(30):
        take(source, 100)
        source.seek(0, 0)
    assert source.redelivered >= 29 * 100
    batches = take(source, 100)
    source.acknowledge({0: batches[-1].next_offset})
    until(lambda: transport.depths("positions") == {GROUP: 0})
    source.close()


def test_reference_data_can_be_read_whole_and_again_and_nothing_else_can(rabbitmq: DisposableRabbitMQ) -> None:
    transport = RabbitQueues(address(rabbitmq), readers=lambda _: [GROUP])
    transport.create([STREAM, STREAMS["vehicles"]], replication=1)
    assert transport.read_all("vehicles") == []
    payloads = [b'{"vehicle":"v-%d"}' % n for n in range(300)] + [b"", b"x" * 300_000]
    publisher = transport.publisher("test")
    publisher.publish(Outgoing("vehicles", payloads, [b"k"] * len(payloads)))
    assert publisher.flush(30)
    publisher.close()
    for _ in range(2):
        until(lambda: sum(map(len, transport.read_all("vehicles"))) == len(payloads))
        assert [value for batch in transport.read_all("vehicles") for value in batch.values] == payloads
    assert transport.depths("vehicles") == {GROUP: len(payloads)}, "and the sink's queue has them too"
    with pytest.raises(UsageError, match="cannot replay"):
        transport.read_all("positions")
    transport.close()


def test_a_memory_alarm_holds_the_publisher_back_and_it_goes_on_by_itself(rabbitmq: DisposableRabbitMQ) -> None:
    transport = queues(address(rabbitmq))
    publisher = transport.publisher("test")
    publisher.publish(outgoing(positions(100)))
    assert publisher.flush(30)
    control(rabbitmq.nodes[0], "set_vm_memory_high_watermark", "absolute", "1MB")
    work = threading.Thread(target=publisher.publish, args=[outgoing(positions(15_000, first=100))])
    try:
        until(lambda: rabbitmq.ask("/nodes")[0]["mem_alarm"])
        work.start()
        until(lambda: publisher.is_blocked)
        work.join(0.5)
        assert work.is_alive(), "publish() waits"
        assert publisher.outstanding <= 5_500
        assert not publisher.flush(0.2)
    finally:
        control(rabbitmq.nodes[0], "set_vm_memory_high_watermark", "absolute", "1GiB")
    work.join(60)
    assert publisher.flush(60)
    assert not publisher.is_blocked
    publisher.close()
    assert transport.depths("positions") == {GROUP: 15_100}


def test_a_full_queue_refuses_and_the_publisher_waits_until_there_is_room(
    rabbitmq: DisposableRabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streaming.transports.rabbitmq.queues.MAX_QUEUE_BYTES", 100_000)
    transport = queues(address(rabbitmq))
    publisher = transport.publisher("test")
    publisher.publish(outgoing(positions(3_000)))
    assert not publisher.flush(1.0)

    source = transport.source("positions", GROUP, Notebook())
    seen: set[int] = set()

    def all_read() -> bool:
        for batch in source.poll(0.2):
            seen.update(CODEC.decode(batch.values).table["sequence"])
            source.acknowledge({0: batch.next_offset})
        return len(seen) == 3_000

    until(all_read)
    assert publisher.flush(30)
    assert publisher.resent > 0
    publisher.close()
    source.close()


def test_a_restarted_node_is_found_again_by_publisher_and_source(rabbitmq: DisposableRabbitMQ, tmp_path: Path) -> None:
    transport = queues(address(rabbitmq))
    publisher = transport.publisher("test")
    sink = sink_at(tmp_path)
    source = transport.source("positions", GROUP, sink)
    publisher.publish(outgoing(positions(5_000)))
    assert publisher.flush(60)
    # RabbitMQ 3.10 saves the list of its quorum queues every half second: killed before, it never finds the new one.
    created_at = time.monotonic()
    until(lambda: time.monotonic() - created_at > 1.5)
    publisher.publish(outgoing(positions(1_000, first=5_000)))
    rabbitmq.kill(1)
    publishing = threading.Thread(target=lambda: publisher.publish(outgoing(positions(4_000, first=6_000))))
    publishing.start()
    rabbitmq.start(1)
    publishing.join(60)
    assert publisher.flush(60)
    publisher.close()

    def all_landed() -> bool:
        for batch in source.poll(0.2):
            sink.write(batch)
        source.acknowledge(sink.commit())
        return len(landed(tmp_path, "rabbitmq")) >= 10_000

    until(all_landed)
    source.close()
    assert_each_once(tmp_path, "rabbitmq", 10_000)


def test_connections_dropped_between_commit_and_acknowledgement_double_nothing(
    rabbitmq: DisposableRabbitMQ, tmp_path: Path
) -> None:
    transport = queues(address(rabbitmq), prefetch=1_000)
    publish(transport, 10_000)
    sink = sink_at(tmp_path)
    source = transport.source("positions", GROUP, sink)
    for _ in range(20):
        offsets: Offsets = {}
        while not offsets:
            for batch in source.poll(0.2):
                sink.write(batch)
            offsets = sink.commit()
        connections = source._served
        source.seek(0, 0)  # the connection goes, and with it the acknowledgement
        while source._served == connections:
            time.sleep(0.001)
        source.acknowledge(offsets)

    def all_landed() -> bool:
        for batch in source.poll(0.2):
            sink.write(batch)
        source.acknowledge(sink.commit())
        return transport.depths("positions")[GROUP] == 0 and len(landed(tmp_path, "rabbitmq")) >= 10_000

    until(all_landed)
    source.close()
    assert source.redelivered > 0
    assert sink.repeats > 0
    assert_each_once(tmp_path, "rabbitmq", 10_000)


def test_a_sink_killed_ten_times_lands_each_of_50000_messages_once(
    rabbitmq: DisposableRabbitMQ, tmp_path: Path
) -> None:
    at = address(rabbitmq)
    transport = queues(at)
    with Killable("sink", "queues", tmp_path, at) as sink:
        chance = random.Random(5)
        for part in range(10):
            publish(transport, 5_000, first=5_000 * part)
            aim = chance.randrange(5_000 * part + 1, 5_000 * part + 4_000)
            until_landed(tmp_path, aim)
            sink.kill_and_start()
        until_landed(tmp_path, 50_000)
        until(lambda: transport.depths("positions") == {GROUP: 0})
        sink.stop()
        assert sink.kills == 10
        assert_each_once(tmp_path, "rabbitmq", 50_000)


def test_a_transformer_killed_at_random_and_at_named_moments_gives_the_means_of_an_offline_run(
    rabbitmq: DisposableRabbitMQ, tmp_path: Path
) -> None:
    at = address(rabbitmq)
    readers = {"positions": ["means-transformer"], "position_means": ["means"], "late_positions": ["late"]}
    transport = RabbitQueues(at, readers=lambda name: readers[name])
    transport.create([STREAMS[name] for name in readers], replication=1)
    means = transport.source("position_means", "means", Notebook())
    with Killable("transform", "queues", tmp_path, at) as transformer:
        _, outputs = MeansStep().advance(MeansStep().initial(0), positions(80_000))
        wanted = outputs["position_means"]
        came: list[pl.DataFrame] = []
        seen = Identities()

        def until_came(count: int) -> None:
            deadline = time.monotonic() + 60
            while seen.count < count:
                assert time.monotonic() < deadline, "not in time"
                for batch in means.poll(0.05):
                    came.append(new_rows(CODECS["position_means"].decode(batch.values).table, seen))
                    seen.add(came[-1])

        for part in range(10):
            publish(transport, 5_000, first=5_000 * part)
            until_came(len(wanted) * part // 16)
            transformer.kill_and_start()
        for part, moment in enumerate(reversed(OUTBOX_MOMENTS * 2), start=10):
            publish(transport, 5_000, first=5_000 * part)
            transformer.dies_at(moment)
        transformer.start()
        until_came(len(wanted))
        until(lambda: transport.depths("positions") == {"means-transformer": 0})
        transformer.stop()
        means.close()
        assert pl.concat(came).equals(wanted), "the first copy of each, in order"
        assert transport.depths("late_positions") == {"late": 0}
        assert transformer.kills == 16
