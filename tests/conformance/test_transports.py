"""What every transport does: publishing, reading as a group's member, and asking for ends and counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from streaming.batch import Outgoing
from streaming.errors import Fenced, RetentionGap, TopicRecreated, UsageError
from tests.conformance.scenes import EVENTS, STATE, Notebook, Scene, by_partition, numbers, take, until


def test_what_is_published_is_read_in_order_by_each_partition(scene: Scene) -> None:
    values = numbers(0, 30_000)
    publisher = scene.transport.publisher("tests")
    publisher.publish(Outgoing("events", values, [b"vehicle-%d" % (n % 50) for n in range(len(values))]))
    assert publisher.flush(60)
    assert publisher.outstanding == 0
    publisher.close()

    read = by_partition(take(scene.source(Notebook()), len(values)))

    assert len(read) == 3
    for records in read.values():
        assert [offset for offset, _ in records] == list(range(len(records)))
        assert [int(value) for _, value in records] == sorted(int(value) for _, value in records)
    assert {int(value) for records in read.values() for _, value in records} == set(range(30_000))
    keys = {partition: {int(value) % 50 for _, value in records} for partition, records in read.items()}
    assert sum(map(len, keys.values())) == 50, "a key is in one partition only"


def test_a_batch_is_of_one_partition_with_rising_offsets(scene: Scene) -> None:
    for partition in range(3):
        scene.publish("events", partition, numbers(0, 500))

    for batch in take(scene.source(Notebook()), 1_500):
        assert batch.stream == "events"
        assert batch.offsets.dtype == np.int64
        assert len(batch.values) == len(batch.offsets)
        assert np.all(np.diff(batch.offsets) > 0)


def test_the_keeper_decides_where_reading_starts_and_the_groups_offset_does_not(scene: Scene) -> None:
    for partition in range(3):
        scene.publish("events", partition, numbers(0, 100))
    first = scene.source(Notebook())
    take(first, 300)
    first.acknowledge({0: 100, 1: 100, 2: 100})
    first.close()

    read = by_partition(take(scene.source(Notebook({0: 90, 1: 100})), 110))

    assert read[0][0] == (90, b"90")
    assert 1 not in read
    assert read[2][0] == (0, b"0")


def test_a_tombstone_is_an_empty_value(scene: Scene) -> None:
    scene.publish("events", 1, [b"", b"x"])
    assert by_partition(take(scene.source(Notebook()), 2))[1] == [(0, b""), (1, b"x")]


def test_records_deleted_before_they_were_read_stop_the_reader(scene: Scene) -> None:
    scene.publish("events", 0, numbers(0, 100))
    scene.broker.delete_before(0, 50)
    source = scene.source(Notebook({0: 49}))
    with pytest.raises(RetentionGap, match=r"49.*50"):
        until(lambda: source.poll(0.1))


def test_a_first_start_begins_with_the_oldest_record_that_is_left(scene: Scene) -> None:
    scene.publish("events", 0, numbers(0, 100))
    scene.broker.delete_before(0, 50)
    assert by_partition(take(scene.source(Notebook({1: 0, 2: 0})), 50))[0][0] == (50, b"50")


def test_a_topic_that_was_made_anew_stops_the_reader(scene: Scene) -> None:
    scene.publish("events", 0, numbers(0, 100))
    before = scene.transport.identity("events")
    scene.broker.recreate()
    scene.publish("events", 0, numbers(0, 10))

    after = scene.transport.identity("events")
    assert after.cluster_id == before.cluster_id
    assert after.topic_id != before.topic_id
    source = scene.source(Notebook({0: 100}))
    with pytest.raises(TopicRecreated):
        until(lambda: source.poll(0.1))


def test_reading_goes_on_from_where_it_was_sent_to(scene: Scene) -> None:
    scene.publish("events", 2, numbers(0, 100))
    source = scene.source(Notebook())
    take(source, 100)

    source.seek(2, 40)
    assert by_partition(take(source, 60))[2][0] == (40, b"40")
    source.seek(2, 95)
    scene.publish("events", 2, numbers(100, 110))
    assert by_partition(take(source, 15))[2][0] == (95, b"95")


def test_a_paused_source_delivers_nothing_and_then_everything(scene: Scene) -> None:
    source = scene.source(Notebook())
    scene.publish("events", 0, numbers(0, 10))
    take(source, 10)
    source.pause()
    scene.publish("events", 0, numbers(10, 20))
    assert [source.poll(0.1) for _ in range(5)] == [[]] * 5
    source.resume()
    assert by_partition(take(source, 10))[0][0] == (10, b"10")


def test_what_is_owned_is_released_at_the_end(scene: Scene) -> None:
    keeper = Notebook()
    source = scene.source(keeper)
    scene.publish("events", 0, numbers(0, 10))
    take(source, 10)
    source.close()
    assert sorted(keeper.released) == [0, 1, 2]
    assert keeper.lost == []


def test_a_second_member_shares_the_partitions_and_nothing_is_read_twice(scene: Scene) -> None:
    keepers = [Notebook(), Notebook()]
    for partition in range(3):
        scene.publish("events", partition, numbers(0, 100))
    first = scene.source(keepers[0], instance=0)
    take(first, 300)
    keepers[1].positions = dict.fromkeys(range(3), 100)
    second = scene.source(keepers[1], instance=1)
    until(lambda: (first.poll(0.1), second.poll(0.1), keepers[0].released)[-1])

    for partition in range(3):
        scene.publish("events", partition, numbers(100, 200))
    read: list[tuple[int, int, bytes]] = []

    def both_read() -> bool:
        for member, source in enumerate((first, second)):
            for partition, records in by_partition(source.poll(0.1)).items():
                read.extend((member, partition, value) for _, value in records)
        return len(read) >= 300

    until(both_read)
    assert len({(partition, value) for _, partition, value in read}) == len(read) == 300
    assert {member for member, _, _ in read} == {0, 1}


def test_the_same_instance_started_again_replaces_its_predecessor(scene: Scene) -> None:
    scene.publish("events", 0, numbers(0, 10))
    zombie = scene.source(Notebook())
    take(zombie, 10)
    successor = scene.source(Notebook())
    take(successor, 10)
    with pytest.raises(Fenced):
        until(lambda: zombie.poll(0.1))


def test_a_stream_of_another_shape_is_refused(scene: Scene) -> None:
    scene.transport.create([EVENTS], replication=3)  # the same again is fine
    with pytest.raises(UsageError, match="partitions"):
        scene.transport.create([replace(EVENTS, partitions=4)], replication=3)
    with pytest.raises(UsageError, match=r"cleanup\.policy"):
        scene.transport.create([replace(EVENTS, settings=STATE.settings)], replication=3)


def test_a_missing_stream_is_a_usage_error(scene: Scene) -> None:
    with pytest.raises(UsageError, match="nothing"):
        scene.transport.extents("nothing")
    with pytest.raises(UsageError, match="nothing"):
        scene.transport.identity("nothing")
    with pytest.raises(UsageError, match="nothing"):
        scene.transport.source("nothing", "g", Notebook())


def test_the_whole_stream_its_counts_and_its_ends_agree(scene: Scene) -> None:
    assert scene.transport.read_all("events") == []
    scene.publish("events", 0, numbers(0, 100))
    scene.publish("events", 1, numbers(0, 7))
    scene.broker.delete_before(0, 10)

    extents = scene.transport.extents("events")
    assert {p: (e.low, e.high) for p, e in extents.items()} == {0: (10, 100), 1: (0, 7), 2: (0, 0)}
    read = by_partition(scene.transport.read_all("events"))
    assert read[0] == [(n, b"%d" % n) for n in range(10, 100)]
    assert len(read[1]) == 7
    assert scene.transport.count_between("events", 0, 20, 90) == 70
    assert scene.transport.count_between("events", 0, 0, 1_000) == 90
    assert scene.transport.count_between("events", 2, 0, 0) == 0
