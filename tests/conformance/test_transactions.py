"""What every transactional transport does: outputs, state and positions become visible together or not at all.

A commit is certain when commit() returns, but a broker writes its markers a moment later: readers are awaited.
"""

from __future__ import annotations

import pytest

from streaming.batch import Outgoing
from streaming.errors import ChainBroken, DataError, Fenced, RetentionGap
from tests.conformance.scenes import Memory, Scene, by_partition, numbers, read_from, take, until


def results(*values: bytes) -> list[Outgoing]:
    return [Outgoing("results", list(values), [b"k"] * len(values))]


def test_a_committed_transaction_is_visible_once_with_its_position_and_state(scene: Scene) -> None:
    scene.publish("events", 0, numbers(0, 10))
    memory = Memory()
    transaction = scene.transaction(memory)
    take(transaction, 10)
    assert memory.states == dict.fromkeys(scene.partitions)
    assert transaction.commit(results(b"sum 45"), {0: b"45"}, {0: scene.at(10)})
    transaction.close()

    until(lambda: scene.texts("results") == [b"sum 45"])
    scene.publish("events", 0, numbers(10, 11))
    successor = Memory()
    [batch] = take(scene.transaction(successor), 1)
    assert list(batch.values) == [b"10"]
    assert successor.states == dict.fromkeys(scene.partitions) | {0: b"45"}


def test_an_aborted_transaction_is_never_visible_and_its_input_comes_again(partitioned: Scene) -> None:
    partitioned.publish("events", 0, numbers(0, 10))
    memory = Memory()
    transaction = partitioned.transaction(memory)
    take(transaction, 10)
    assert transaction.commit(results(b"first"), {0: b"first"}, {0: 10})
    partitioned.publish("events", 0, numbers(10, 20))
    take(transaction, 10)
    memory.states.clear()

    assert not transaction.commit(partitioned.broker.doomed(), {0: b"doomed"}, {0: 20})

    assert memory.states == {0: b"first", 1: None, 2: None}
    assert by_partition(take(transaction, 10))[0][0] == (10, b"10")
    assert transaction.commit(results(b"second"), {0: b"second"}, {0: 20})
    until(lambda: sorted(partitioned.texts("results")) == [b"first", b"second"])


def test_a_crash_before_the_commit_reads_again_from_the_last_one(partitioned: Scene) -> None:
    partitioned.publish("events", 1, numbers(0, 20))
    crashed = partitioned.transaction(Memory())
    take(crashed, 20)
    assert crashed.commit(results(b"half"), {1: b"half"}, {1: 10})
    assert crashed.poll(0.1) == []

    successor = Memory()
    read = by_partition(take(partitioned.transaction(successor), 10))
    assert read[1][0] == (10, b"10")
    assert successor.states[1] == b"half"


def test_a_zombie_cannot_commit(partitioned: Scene) -> None:
    partitioned.publish("events", 0, numbers(0, 10))
    zombie = partitioned.transaction(Memory())
    take(zombie, 10)
    successor = partitioned.transaction(Memory())
    take(successor, 10)
    assert successor.commit(results(b"right"), {0: b"right"}, {0: 10})

    with pytest.raises(Fenced):
        zombie.commit(results(b"wrong"), {0: b"wrong"}, {0: 10})
    until(lambda: partitioned.texts("results") == [b"right"])


def test_another_instance_takes_over_position_and_state(partitioned: Scene) -> None:
    for partition in range(3):
        partitioned.publish("events", partition, numbers(0, 10))
    memory, other = Memory(), Memory()
    first = partitioned.transaction(memory)
    take(first, 30)
    assert first.commit(results(b"x"), dict.fromkeys(range(3), b"ten"), dict.fromkeys(range(3), 10))
    second = partitioned.transaction(other, instance=1)
    until(lambda: (first.poll(0.1), second.poll(0.1), other.states)[-1])

    moved = set(other.states)
    assert moved
    assert set(memory.states) == {0, 1, 2} - moved
    assert set(memory.forgotten) == moved
    assert set(other.states.values()) == {b"ten"}
    partition = min(moved)
    partitioned.publish("events", partition, numbers(10, 15))
    assert by_partition(take(second, 5))[partition][0] == (10, b"10")
    assert second.commit([], {partition: b"fifteen"}, {partition: 15})


def test_nothing_to_commit_writes_nothing(partitioned: Scene) -> None:
    transaction = partitioned.transaction(Memory())
    assert transaction.commit([], {}, {})
    assert {extent.high for extent in partitioned.transport.extents("state").values()} == {0}


def test_control_records_take_offsets_but_are_not_counted(partitioned: Scene) -> None:
    partitioned.publish("events", 0, numbers(0, 3))
    transaction = partitioned.transaction(Memory())
    take(transaction, 3)
    for done in (1, 2, 3):
        assert transaction.commit([Outgoing("results", [b"%d" % done], [b"k"], [0])], {0: b"s"}, {0: done})

    until(lambda: partitioned.texts("results") == [b"1", b"2", b"3"])
    extent = partitioned.transport.extents("results")[0]
    assert extent.high - extent.low > 3
    assert partitioned.transport.count_between("results", 0, extent.low, extent.high) == 3
    [batch] = partitioned.transport.read_all("results")
    assert partitioned.transport.count_between("results", 0, batch.next_offset, extent.high) == 0
    assert partitioned.transport.count_between("results", 0, 0, int(batch.offsets[2])) == 2


def test_state_without_a_position_decides_alone(scene: Scene) -> None:
    scene.publish("events", 0, numbers(0, 10))
    transaction = scene.transaction(Memory())
    take(transaction, 10)
    assert transaction.commit([], {0: b"six"}, {0: scene.at(6)})
    transaction.close()
    scene.broker.forget_group()

    successor = Memory()
    read = [value for batch in take(scene.transaction(successor), 4) for value in batch.values]
    assert read == numbers(6, 10)
    assert successor.states[0] == b"six"


def test_input_that_was_deleted_unread_stops_the_transformer(partitioned: Scene) -> None:
    partitioned.publish("events", 0, numbers(0, 10))
    transaction = partitioned.transaction(Memory())
    take(transaction, 10)
    assert transaction.commit([], {0: b"five"}, {0: 5})
    transaction.close()
    partitioned.broker.delete_before(0, 8)

    successor = partitioned.transaction(Memory())
    with pytest.raises(RetentionGap):
        until(lambda: successor.poll(0.1))


def test_input_that_was_made_anew_stops_the_transformer(replayable: Scene) -> None:
    replayable.publish("events", 0, numbers(0, 10))
    transaction = replayable.transaction(Memory())
    take(transaction, 10)
    assert transaction.commit([], {0: b"five"}, {0: replayable.at(5)})
    transaction.close()
    replayable.broker.recreate()
    replayable.publish("events", 0, numbers(0, 100))

    with pytest.raises(DataError) as caught:
        read_from(lambda: replayable.transaction(Memory()))
    assert not isinstance(caught.value, (RetentionGap, ChainBroken))
