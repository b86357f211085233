"""Where reading starts: the checks every transport makes, and how a snapshot carries its own position.

Invariant: a snapshot is only ever used together with the input offset it was taken at, of the topic it was taken from.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from streaming.errors import ChainBroken, RetentionGap, TopicRecreated
from streaming.interfaces import Extent

STATE_KEY = b"state"
_HEADER = struct.Struct("<q22s")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A transformer's memory of one partition: `state` holds everything before `next_offset` of topic `topic_id`."""

    next_offset: int
    topic_id: str
    state: bytes

    def pack(self) -> bytes:
        """As a record: 8 bytes little-endian offset, 22 bytes topic id (a broker's base64 uuid), then the state."""
        return _HEADER.pack(self.next_offset, self.topic_id.encode()) + self.state

    @classmethod
    def unpack(cls, record: bytes) -> Snapshot:
        """The inverse of pack(). ChainBroken when the record is too short to be a snapshot."""
        if len(record) < _HEADER.size:
            raise ChainBroken(f"a snapshot of {len(record)} bytes: the state stream carries something else")
        next_offset, topic_id = _HEADER.unpack_from(record)
        return cls(next_offset, topic_id.rstrip(b"\0").decode(), record[_HEADER.size :])


def checked_start(stream: str, partition: int, wanted: int | None, extent: Extent) -> int:
    """The offset to start with; None means the oldest record. RetentionGap or TopicRecreated when it does not exist."""
    if wanted is None:
        return extent.low
    if wanted < extent.low:
        raise RetentionGap(stream, partition, wanted, extent.low)
    if wanted > extent.high:
        raise TopicRecreated(
            f"{stream}[{partition}]: reading should go on at offset {wanted}, but the topic ends at {extent.high}: it "
            f"was made anew or has lost its end. Move what came from the old topic away, or restore the topic."
        )
    return wanted


def chosen_start(
    stream: str, partition: int, committed: int | None, snapshot: Snapshot | None, topic_id: str
) -> int | None:
    """Where a transformer resumes; None to start with the oldest record.

    The snapshot decides alone when the group's offset has expired. ChainBroken when both exist and disagree, or when
    there is an offset without a snapshot.
    """
    if snapshot is None:
        if committed is None:
            return None
        raise ChainBroken(f"{stream}[{partition}]: the group is at offset {committed}, but there is no state of it")
    if snapshot.topic_id != topic_id:
        raise TopicRecreated(
            f"{stream}[{partition}]: the state was taken from topic id {snapshot.topic_id}, the topic is {topic_id} now"
        )
    if committed is not None and committed != snapshot.next_offset:
        raise ChainBroken(
            f"{stream}[{partition}]: the group is at offset {committed}, its state at {snapshot.next_offset}"
        )
    return snapshot.next_offset
