"""The outbox file: whole or refused; and input on queues known by identities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.batch import Batch, Outgoing
from streaming.errors import ChainBroken
from streaming.events import MARK
from streaming.identities import Identities
from streaming.interfaces import Keeper, Source
from streaming.transports.rabbitmq.outbox import OutboxFile, Outcome
from streaming.transports.rabbitmq.queue_flow import QueueInput
from tests.brokers.rabbitmq_scenes import CODEC, positions

RECORDS = st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=9)), max_size=5)
OUTPUTS = st.lists(st.tuples(st.sampled_from(["alerts", "position_means"]), RECORDS), max_size=3)


@given(st.none() | st.binary(max_size=30), OUTPUTS)
def test_an_outcome_is_read_back_as_it_was_written(
    state: bytes | None, outputs: list[tuple[str, list[tuple[bytes, bytes]]]]
) -> None:
    outgoing = tuple(Outgoing(name, [v for v, _ in each], [k for _, k in each]) for name, each in outputs)
    outcome = Outcome(7, state, [["p", 1, [[0, 5]]]], outgoing, {"alerts": 3})
    assert Outcome.unpack(outcome.pack()) == outcome


@given(st.integers(0, 200), st.integers(1, 255))
def test_a_damaged_outcome_is_refused(place: int, damage: int) -> None:
    packed = bytearray(Outcome(1, b"state", 5, (Outgoing("alerts", [b"v" * 80], [b"k"]),)).pack())
    packed[place % len(packed)] ^= damage
    with pytest.raises((ValueError, OverflowError)):
        Outcome.unpack(bytes(packed))


def test_a_damaged_file_stops_the_transformer(tmp_path: Path) -> None:
    box = OutboxFile(tmp_path)
    assert box.read() == Outcome()
    box.write(Outcome(1, b"state"))
    assert not box.is_sent(1)
    box.mark_sent(1)
    assert box.is_sent(1)
    assert not box.is_sent(2)
    (tmp_path / "outcome").write_bytes(b"SGOUTBOX1 torn")
    with pytest.raises(ChainBroken):
        box.read()


def batch(sequences: list[int], first: int, *, extra: bytes | None = None) -> Batch:
    rows = [positions(1, first=n) for n in sequences]
    values = [CODEC.encode(row)[0] for row in rows] + ([extra] if extra is not None else [])
    return Batch("positions", 0, values, np.arange(first, first + len(values), dtype=np.int64))


def _not_opened(keeper: Keeper) -> Source:
    raise AssertionError(keeper)


def test_used_and_taken_events_are_left_out_and_marks_and_broken_bytes_are_not() -> None:
    reads = QueueInput(_not_opened, CODEC)
    assert reads.fresh(batch([0, 1, 2], 10, extra=b"broken")).offsets.tolist() == [10, 11, 12, 13]
    assert reads.fresh(batch([2, 3, 3, MARK, MARK], 14)).offsets.tolist() == [15, 17, 18]
    assert not reads.is_used_up
    used = reads.use(14)
    assert Identities.load(used).count == 3
    assert not reads.is_used_up

    reads.begin()  # the connection went: 3 comes again, 0 to 2 are used up
    assert reads.taken == []
    assert reads.fresh(batch([0, 1, 2, 3], 30)).offsets.tolist() == [33]
    assert Identities.load(reads.use(34)).count == 4
    assert reads.repeats == 5


def test_a_batch_that_ends_with_repeats_is_used_up_with_its_last_new_event() -> None:
    """What a killed predecessor sent twice: state and account must tell of the same events at every commit."""
    reads = QueueInput(_not_opened, CODEC)
    part = reads.fresh(batch([0, 1, 0, 1], 10))
    assert part.offsets.tolist() == [10, 11]
    assert Identities.load(reads.use(part.next_offset)).count == 2
    assert reads.is_used_up
