"""A transformer's ends on RabbitMQ streams: input known by its offset, output by ids that the broker checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streaming.batch import Batch
from streaming.errors import Fenced, TopicRecreated
from streaming.interfaces import Keeper, Publisher, Source
from streaming.transports.rabbitmq.outbox import Outcome
from streaming.transports.rabbitmq.stream_publisher import StreamPublisher


@dataclass(slots=True)
class StreamInput:
    """Implements outbox.Input: what is used up is an offset of a stream of this identity."""

    source: Callable[[Keeper], Source]
    stream: str
    topic_id: str
    next_offset: int | None = None
    taken: int | None = None  # the offset behind everything taken

    def open(self, used: Any, keeper: Keeper) -> Source:
        """Read on. TopicRecreated when the stream is another one than before."""
        if used is not None:
            self.next_offset, topic_id = used
            if topic_id != self.topic_id:
                raise TopicRecreated(
                    f"{self.stream}: the state was taken from stream {topic_id}, now it is {self.topic_id}"
                )
        return self.source(keeper)

    def begin(self) -> int | None:
        """Where to read from."""
        self.taken = self.next_offset
        return self.next_offset

    @property
    def is_used_up(self) -> bool:
        """Whether nothing is taken and not used."""
        return self.taken == self.next_offset

    def fresh(self, batch: Batch) -> Batch:
        """All of it: a stream's reader gets each offset once."""
        self.taken = batch.next_offset
        return batch

    def use(self, offset: int) -> Any:
        """Everything before `offset` is used up."""
        self.next_offset = offset
        return [offset, self.topic_id]


@dataclass(frozen=True, slots=True)
class StreamOutput:
    """Implements outbox.Output: the same outputs get the same publishing ids, and are stored once."""

    publisher: Callable[[Mapping[str, int]], StreamPublisher]
    last_id: Callable[[str], int]  # the broker's highest publishing id of this publisher on a stream

    def open(self, outcome: Outcome, *, is_sent: bool) -> Publisher:
        """Fenced when the broker has newer outputs than the outbox: somebody else has published under this name."""
        behind = dict(outcome.publishing_ids)
        for each in outcome.outputs:
            behind[each.stream] += len(each.values)
        for stream, first_new in behind.items():
            if (last := self.last_id(stream)) >= first_new:
                raise Fenced(f"{stream} has outputs up to id {last}, this outbox has made {first_new - 1}")
        return self.publisher(behind if is_sent else outcome.publishing_ids)

    def publishing_ids(self, publisher: Publisher, streams: Sequence[str]) -> Mapping[str, int]:
        """The id of each stream's next output. A stream that is new to the outbox goes on where the broker is."""
        if not isinstance(publisher, StreamPublisher):
            raise TypeError(publisher)
        for stream in streams:
            if stream not in publisher.next_ids:
                publisher.begin(stream, self.last_id(stream) + 1)
        return publisher.next_ids
