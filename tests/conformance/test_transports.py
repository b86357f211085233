"""What every transport does: publishing, reading as a group's member, and asking for ends and counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from streaming.batch import Outgoing
from streaming.errors import Fenced, RetentionGap, TopicRecreated, UsageError
from tests.conformance.scenes import EVENTS, STATE, Notebook, Scene, by_partition, numbers, read_from, take, until


def test_what_is_published_is_read_in_order_by_each_partition(scene: Scene) -> None:
    values = numbers(0, 30_000)
    publisher = scene.transport.publisher("tests")
    publisher.publish(Outgoing("events", values, [b"vehicle-%d" % (n % 50) for n in range(len(values))]))
    assert publisher.flush(60)
    assert publisher.outstanding == 0
    publisher.close()

    read = by_partition(take(scene.source(Notebook()), len(values)))

    assert len(read) == len(scene.partitions)
    for records in read.values():
        assert [offset for offset, _ in records] == [scene.at(number) for number in range(len(records))]
        assert [int(value) for _, value in records] == sorted(int(value) for _, value in records)
    assert {int(value) for records in read.values() for _, value in records} == set(range(30_000))
    keys = {partition: {int(value) % 50 for _, value in records} for partition, records in read.items()}
    assert sum(map(len, keys.values())) == 50, "a key is in one partition only"


def test_a_batch_is_of_one_partition_with_rising_offsets(scene: Scene) -> None:
    for partition in scene.partitions:
        scene.publish("events", partition, numbers(0, 500))

    for batch in take(scene.source(Notebook()), 500 * len(scene.partitions)):
        assert batch.stream == "events"
        assert batch.offsets.dtype == np.int64
        assert len(batch.values) == len(batch.offsets)
        assert np.all(np.diff(batch.offsets) > 0)


def test_the_keeper_decides_where_reading_starts_and_the_groups_offset_does_not(partitioned: Scene) -> None:
    for partition in range(3):
        partitioned.publish("events", partition, numbers(0, 100))
    first = partitioned.source(Notebook())
    take(first, 300)
    first.acknowledge({0: 100, 1: 100, 2: 100})
    first.close()

    read = by_partition(take(partitioned.source(Notebook({0: 90, 1: 100})), 110))

    assert read[0][0] == (90, b"90")
    assert 1 not in read
    assert read[2][0] == (0, b"0")


def test_a_tombstone_is_an_empty_value(scene: Scene) -> None:
    last = scene.partitions[-1]
    scene.publish("events", last, [b"", b"x"])
    assert by_partition(take(scene.source(Notebook()), 2))[last] == [(scene.at(0), b""), (scene.at(1), b"x")]


def test_records_deleted_before_they_were_read_stop_the_reader(partitioned: Scene) -> None:
    partitioned.publish("events", 0, numbers(0, 100))
    partitioned.broker.delete_before(0, 50)
    source = partitioned.source(Notebook({0: 49}))
    with pytest.raises(RetentionGap, match=r"49.*50"):
        until(lambda: source.poll(0.1))


def test_a_first_start_begins_with_the_oldest_record_that_is_left(partitioned: Scene) -> None:
    partitioned.publish("events", 0, numbers(0, 100))
    partitioned.broker.delete_before(0, 50)
    assert by_partition(take(partitioned.source(Notebook({1: 0, 2: 0})), 50))[0][0] == (50, b"50")


def test_a_topic_that_was_made_anew_stops_the_reader(replayable: Scene) -> None:
    replayable.publish("events", 0, numbers(0, 100))
    before = replayable.transport.identity("events")
    replayable.broker.recreate()
    replayable.publish("events", 0, numbers(0, 10))

    after = replayable.transport.identity("events")
    assert after.cluster_id == before.cluster_id
    assert after.topic_id != before.topic_id
    with pytest.raises(TopicRecreated):
        read_from(lambda: replayable.source(Notebook({0: replayable.at(100)})))


def test_reading_goes_on_from_where_it_was_sent_to(replayable: Scene) -> None:
    last = replayable.partitions[-1]
    replayable.publish("events", last, numbers(0, 100))
    source = replayable.source(Notebook())
    take(source, 100)

    source.seek(last, replayable.at(40))
    assert by_partition(take(source, 60))[last][0] == (replayable.at(40), b"40")
    source.seek(last, replayable.at(95))
    replayable.publish("events", last, numbers(100, 110))
    assert by_partition(take(source, 15))[last][0] == (replayable.at(95), b"95")


def test_a_paused_source_delivers_nothing_and_then_everything(scene: Scene) -> None:
    source = scene.source(Notebook())
    scene.publish("events", 0, numbers(0, 10))
    take(source, 10)
    source.pause()
    scene.publish("events", 0, numbers(10, 20))
    assert [source.poll(0.1) for _ in range(5)] == [[]] * 5
    source.resume()
    assert by_partition(take(source, 10))[0][0] == (scene.at(10), b"10")


def test_what_is_owned_is_released_at_the_end(scene: Scene) -> None:
    keeper = Notebook()
    source = scene.source(keeper)
    scene.publish("events", 0, numbers(0, 10))
    take(source, 10)
    source.close()
    assert sorted(keeper.released) == list(scene.partitions)
    assert keeper.lost == []


def test_what_was_read_and_not_acknowledged_comes_again(scene: Scene) -> None:
    scene.publish("events", 0, numbers(0, 100))
    first = scene.source(Notebook())
    take(first, 100)
    first.close()
    read = [value for batch in take(scene.source(Notebook()), 100) for value in batch.values]
    assert read == numbers(0, 100)


def test_reading_starts_where_the_keeper_says(replayable: Scene) -> None:
    replayable.publish("events", 0, numbers(0, 100))
    read = by_partition(take(replayable.source(Notebook({0: replayable.at(90)})), 10))
    assert read == {0: [(replayable.at(number), b"%d" % number) for number in range(90, 100)]}


def test_a_second_member_shares_the_partitions_and_nothing_is_read_twice(partitioned: Scene) -> None:
    keepers = [Notebook(), Notebook()]
    for partition in range(3):
        partitioned.publish("events", partition, numbers(0, 100))
    first = partitioned.source(keepers[0], instance=0)
    take(first, 300)
    keepers[1].positions = dict.fromkeys(range(3), 100)
    second = partitioned.source(keepers[1], instance=1)
    until(lambda: (first.poll(0.1), second.poll(0.1), keepers[0].released)[-1])

    for partition in range(3):
        partitioned.publish("events", partition, numbers(100, 200))
    read: list[tuple[int, int, bytes]] = []

    def both_read() -> bool:
        for member, source in enumerate((first, second)):
            for partition, records in by_partition(source.poll(0.1)).items():
                read.extend((member, partition, value) for _, value in records)
        return len(read) >= 300

    until(both_read)
    assert len({(partition, value) for _, partition, value in read}) == len(read) == 300
    assert {member for member, _, _ in read} == {0, 1}


def test_the_same_instance_started_again_replaces_its_predecessor(partitioned: Scene) -> None:
    partitioned.publish("events", 0, numbers(0, 10))
    zombie = partitioned.source(Notebook())
    take(zombie, 10)
    successor = partitioned.source(Notebook())
    take(successor, 10)
    with pytest.raises(Fenced):
        until(lambda: zombie.poll(0.1))


def test_what_is_there_is_not_made_anew(scene: Scene) -> None:
    before = scene.transport.identity("events")
    scene.publish("events", 0, numbers(0, 10))
    scene.transport.create([EVENTS], replication=len(scene.partitions))
    assert scene.transport.identity("events") == before
    take(scene.source(Notebook()), 10)


def test_a_stream_of_another_shape_is_refused(partitioned: Scene) -> None:
    partitioned.transport.create([EVENTS], replication=3)
    with pytest.raises(UsageError, match="partitions"):
        partitioned.transport.create([replace(EVENTS, partitions=4)], replication=3)
    with pytest.raises(UsageError, match=r"cleanup\.policy"):
        partitioned.transport.create([replace(EVENTS, settings=STATE.settings)], replication=3)


def test_a_missing_stream_is_a_usage_error(replayable: Scene) -> None:
    with pytest.raises(UsageError, match="nothing"):
        replayable.transport.extents("nothing")
    with pytest.raises(UsageError, match="nothing"):
        replayable.transport.identity("nothing")


def test_a_missing_stream_cannot_be_read(scene: Scene) -> None:
    with pytest.raises(UsageError, match="nothing"):
        scene.transport.source("nothing", "g", Notebook())


def test_the_whole_stream_its_counts_and_its_ends_agree(replayable: Scene) -> None:
    transport, first, end = replayable.transport, replayable.at(0), replayable.at(100)
    assert transport.read_all("events") == []
    replayable.publish("events", 0, numbers(0, 100))

    extent = transport.extents("events")[0]
    assert (extent.low, extent.high) == (first, end)
    assert by_partition(transport.read_all("events")) == {0: [(first + n, b"%d" % n) for n in range(100)]}
    assert transport.count_between("events", 0, first + 20, first + 90) == 70
    assert transport.count_between("events", 0, 0, 1_000) == 100
    assert transport.count_between("events", replayable.partitions[-1], 0, 0) == 0


def test_what_was_deleted_is_in_no_count_and_no_end(partitioned: Scene) -> None:
    partitioned.publish("events", 0, numbers(0, 100))
    partitioned.publish("events", 1, numbers(0, 7))
    partitioned.broker.delete_before(0, 10)

    extents = partitioned.transport.extents("events")
    assert {p: (e.low, e.high) for p, e in extents.items()} == {0: (10, 100), 1: (0, 7), 2: (0, 0)}
    read = by_partition(partitioned.transport.read_all("events"))
    assert read[0] == [(n, b"%d" % n) for n in range(10, 100)]
    assert len(read[1]) == 7
    assert partitioned.transport.count_between("events", 0, 0, 1_000) == 90
