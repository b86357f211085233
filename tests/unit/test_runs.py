"""From polled messages to batches: no offset may slip to another record, however the partitions interleave."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.transports.kafka.runs import batches

polls = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.sampled_from([1, 1, 1, 2, 7])), max_size=60)


def messages_of(runs: list[tuple[int, int, int]]) -> list[tuple[int, int, bytes]]:
    """(partition, offset, value): runs of a length, each beginning `gap` after the partition's last offset."""
    ends: dict[int, int] = {}
    messages = []
    for partition, length, gap in runs:
        for step in range(length):
            offset = ends.get(partition, -1) + (gap if step == 0 else 1)
            ends[partition] = offset
            messages.append((partition, offset, b"%d/%d" % (partition, offset)))
    return messages


@given(polls)
def test_each_record_keeps_its_own_offset(runs: list[tuple[int, int, int]]) -> None:
    messages = messages_of(runs)
    partitions = np.array([partition for partition, _, _ in messages], np.int64)

    made = batches("s", partitions, [value for _, _, value in messages], lambda i: messages[i][1])

    assert len({batch.partition for batch in made}) == len(made)
    found = [(b.partition, o, v) for b in made for o, v in zip(b.offsets.tolist(), b.values, strict=True)]
    assert sorted(found) == sorted(messages)
    for batch in made:
        assert np.all(np.diff(batch.offsets) > 0)


def test_an_interleaved_partition_is_not_taken_for_one_run() -> None:
    # As long as offsets 5..7 are apart, and begun and ended by the same partition: only its middle tells.
    messages = [(0, 5), (1, 6), (0, 7)]
    made = batches("s", np.array([0, 1, 0]), [b"a", b"b", b"c"], lambda i: messages[i][1])
    assert [(b.partition, b.offsets.tolist(), list(b.values)) for b in made] == [
        (0, [5, 7], [b"a", b"c"]),
        (1, [6], [b"b"]),
    ]


def test_offsets_are_asked_for_at_the_ends_of_a_run_only() -> None:
    asked: list[int] = []

    def offset(place: int) -> int:
        asked.append(place)
        return 100 + place

    [batch] = batches("s", np.zeros(1_000, np.int64), [b""] * 1_000, offset)
    assert asked == [0, 999]
    assert batch.offsets.tolist() == list(range(100, 1_100))


def test_falling_offsets_are_refused() -> None:
    with pytest.raises(ValueError, match="fall"):
        batches("s", np.array([0, 0, 0]), [b""] * 3, lambda i: [4, 3, 2][i])


def test_nothing_gives_nothing() -> None:
    assert batches("s", np.array([], np.int64), [], lambda _: 0) == []
