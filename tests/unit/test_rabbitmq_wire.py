"""Frames cut out of bytes as they come, and put together for publishing, against pika's own reading and writing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product

from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec

from streaming.transports.rabbitmq.wire import CHANNEL, Deliveries, messages

FRAME_MAX = 200


def delivery(tag: int, payload: bytes, consumer: str = "ctag1.x", *, again: bool = False) -> bytes:
    method = spec.Basic.Deliver(consumer, tag, redelivered=again, exchange="e", routing_key="positions.v-1")
    header = frame.Header(CHANNEL, len(payload), spec.BasicProperties(delivery_mode=2, headers={"x-delivery-count": 1}))
    room = FRAME_MAX - 8
    bodies = [frame.Body(CHANNEL, payload[at : at + room]).marshal() for at in range(0, len(payload), room)]
    return b"".join([frame.Method(CHANNEL, method).marshal(), header.marshal(), *bodies])


def taken(pieces: Sequence[bytes]) -> tuple[Deliveries, bytes]:
    """What is cut out when the bytes come in these pieces, and what is left."""
    deliveries, rest = Deliveries(), b""
    for piece in pieces:
        rest += piece
        at, _ = deliveries.take(rest, 0)
        rest = rest[at:]
    return deliveries, rest


@given(st.lists(st.tuples(st.binary(max_size=500), st.booleans()), max_size=8), st.lists(st.integers(0, 4_000)))
def test_however_the_bytes_are_cut_the_same_deliveries_come_out(
    wanted: list[tuple[bytes, bool]], cuts: list[int]
) -> None:
    whole = b"".join(delivery(tag, payload, again=again) for tag, (payload, again) in enumerate(wanted, start=1))
    bounds = sorted({0, *(cut for cut in cuts if cut < len(whole)), len(whole)})
    found, rest = taken([whole[start:end] for start, end in pairwise(bounds)])
    assert list(zip(found.values, found.again, strict=True)) == wanted
    assert found.tags == list(range(1, len(wanted) + 1))
    assert rest == b""


def test_frames_that_are_no_deliveries_are_left_for_pika() -> None:
    other = frame.Method(CHANNEL, spec.Basic.CancelOk("ctag1.x")).marshal()
    heartbeat = frame.Heartbeat().marshal() + b"\0" * 8
    for left, first in product((other, heartbeat), (b"a", b"")):  # a heartbeat looks like an empty message's body
        found, rest = taken([delivery(1, first) + left + delivery(2, b"b")])
        assert found.values == [first]
        assert rest == left + delivery(2, b"b")


@given(st.lists(st.tuples(st.binary(max_size=500), st.binary(max_size=300)), max_size=5))
def test_what_is_joined_for_publishing_is_what_pika_reads(records: list[tuple[bytes, bytes]]) -> None:
    values, keys = [value for value, _ in records], [key for _, key in records]
    for value, joined in zip(values, messages("x", "positions", values, keys, FRAME_MAX), strict=True):
        frames, at = [], 0
        while at < len(joined):
            used, found = frame.decode_frame(joined[at:])
            assert 0 < used <= FRAME_MAX
            frames.append(found)
            at += used
        method, header, *bodies = frames
        assert method.method.NAME == "Basic.Publish"
        assert method.method.mandatory
        assert method.method.routing_key.startswith("positions.")
        assert header.properties.delivery_mode == 2
        assert header.body_size == len(value)
        assert b"".join(body.fragment for body in bodies) == value
