"""RabbitMQ queues as a transport: a topic exchange, and for each (stream, group) a queue of its own bound to it.

What it can: competing consumers, acknowledgement, back-pressure. What it cannot: read again what was acknowledged. So
it is Queueing and not Replayable: it has no extents() and no count_between(), and a group that joins late gets what
comes after.
Reference data (`vehicles`) is also kept in a RabbitMQ stream, bound to the same exchange, and can be read whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from streaming.batch import Batch
from streaming.errors import BrokerUnavailable, UsageError
from streaming.identities import Identities
from streaming.interfaces import Codec, Identity, Keeper, Remembered
from streaming.topology import ROLES, STREAMS, Stream, StreamKind
from streaming.transports.rabbitmq.address import Address
from streaming.transports.rabbitmq.browsing import QueueState, queues
from streaming.transports.rabbitmq.declaring import channel_of, ready_in
from streaming.transports.rabbitmq.management import ask, quoted
from streaming.transports.rabbitmq.outbox import OutboxFile, OutboxTransaction
from streaming.transports.rabbitmq.queue_flow import QueueInput, QueueOutput
from streaming.transports.rabbitmq.queue_publisher import QueuePublisher
from streaming.transports.rabbitmq.queue_source import PREFETCH, QueueSource
from streaming.transports.rabbitmq.streams import RabbitStreams

MAX_QUEUE_BYTES: Final = 4 * 1024**3  # then the queue refuses, and publishers wait
_NEEDS_LIMIT_OFF: Final = (4, 0)  # from here on quorum queues drop a message after 20 deliveries unless told not to


class RabbitQueues:
    """What queues have of Transport. `readers` gives the groups of a stream; by default the roles that read it."""

    name = "rabbitmq"

    def __init__(
        self,
        address: Address,
        *,
        queue_type: str = "quorum",
        readers: Callable[[str], Iterable[str]] | None = None,
        prefetch: int = PREFETCH,
        outbox: Path | None = None,
        codec: Callable[[str], Codec] | None = None,
    ) -> None:
        self._address, self._queue_type, self._prefetch = address, queue_type, prefetch
        self._outbox, self._codec = outbox, codec
        self._readers = readers or _roles_that_read
        self._reference = {stream.name for stream in STREAMS.values() if stream.kind is StreamKind.REFERENCE}

    def create(self, streams: Iterable[Stream], *, replication: int) -> None:
        """Make the exchange, each reader's queue and the reference streams. Needs a user who may configure.

        `replication` is the number of members of each quorum queue. UsageError for what exists in another shape.
        """
        wanted = [stream for stream in streams if stream.kind is not StreamKind.STATE]  # kept beside the outbox
        kept = [stream for stream in wanted if stream.kind is StreamKind.REFERENCE]
        if kept:
            self._logs.create(kept, replication=replication)
            self._reference |= {stream.name for stream in kept}
        with channel_of(self._address) as channel:
            self._declare_exchanges(channel)
            for stream in wanted:
                for group in self._readers(stream.name):
                    self._declare_queue(channel, stream.name, group, replication)
            for stream in kept:
                channel.queue_bind(self._address.log(stream.name), self._address.exchange, f"{stream.name}.#")

    def publisher(self, client: str) -> QueuePublisher:
        """A publisher with a connection of its own. BrokerUnavailable when none can be had."""
        return QueuePublisher(self._address, client)

    def source(self, stream: str, group: str, keeper: Keeper, *, instance: int = 0) -> QueueSource:
        """Consume the group's queue. While another consumer is active this one waits for its turn.

        UsageError when the queue does not exist.
        """
        with channel_of(self._address) as channel:
            ready_in(channel, self._address.queue(stream, group))
        return QueueSource(self._address, stream, group, keeper, instance=instance, prefetch=self._prefetch)

    @cached_property
    def _logs(self) -> RabbitStreams:
        return RabbitStreams(self._address)

    def read_all(self, stream: str) -> list[Batch]:
        """Every record of a reference stream. UsageError for others: a queue's records can be read once."""
        if stream not in self._reference:
            raise UsageError(f"queues cannot replay: {stream} is no reference stream, use RabbitMQ streams or Kafka")
        return self._logs.read_all(stream)

    def close(self) -> None:
        """End what reads reference streams; for tests, a process that ends need not."""
        if "_logs" in self.__dict__:
            self._logs.close()

    def transaction(
        self,
        reads: str,
        state: str,  # noqa: ARG002 - kept in the outbox
        role: str,
        *,
        restore: Callable[[int, bytes | None], None],
        forget: Callable[[int], None],
        instance: int = 0,
        checkpoint: Callable[[str], None] = lambda _: None,
    ) -> OutboxTransaction:
        """Read, compute, write as one, by an outbox file. UsageError without the folder and codecs for it.

        Fenced while another process of this machine works as the same role and instance.
        """
        if self._outbox is None or self._codec is None:
            raise UsageError("transformers on queues need a folder for their outbox, and the codecs of what they read")
        return OutboxTransaction(
            self._outbox / f"{role}-{instance}",
            QueueInput(lambda keeper: self.source(reads, role, keeper, instance=instance), self._codec(reads)),
            QueueOutput(lambda: self.publisher(f"{role}-{instance}")),
            restore=restore,
            forget=forget,
            checkpoint=checkpoint,
        )

    def remembered(self, role: str) -> Remembered | None:
        """What the role's outbox on this machine holds; UsageError without the outboxes' folder."""
        if self._outbox is None:
            raise UsageError("a transformer's state is in its outbox: say in which folder")
        return OutboxFile(self._outbox / f"{role}-0").remembered(Identities.load)

    def identity(self, stream: str) -> Identity:  # noqa: ARG002 - the same for all
        """The cluster's name. A queue made anew makes no file wrong, so it has no identity of its own."""
        with channel_of(self._address) as channel:
            return Identity(channel.connection._impl.server_properties["cluster_name"], "queue")

    def depths(self, stream: str) -> Mapping[str, int]:
        """How many messages wait, ready to be delivered, in each group's queue."""
        with channel_of(self._address) as channel:
            return {group: ready_in(channel, self._address.queue(stream, group)) for group in self._readers(stream)}

    def held(self, stream: str, group: str) -> int:
        """How many messages the group has not acknowledged, from the management API, whose numbers are seconds old.

        BrokerUnavailable when it does not answer or knows no number yet.
        """
        found = ask(
            self._address, f"/queues/{quoted(self._address.vhost)}/{quoted(self._address.queue(stream, group))}"
        )
        if "messages" not in found:
            raise BrokerUnavailable(f"RabbitMQ at {self._address} has not counted {stream}.{group} yet")
        return int(found["messages"])

    @property
    def address(self) -> Address:
        """Where it is."""
        return self._address

    def queues(self, stream: str) -> list[QueueState]:
        """The queue of each group that reads the stream, as the broker's books know it."""
        return [each for each in queues(self._address) if each.stream == stream and each.group]

    def _declare_exchanges(self, channel: Any) -> None:
        dead = self._address.dead_letters
        channel.exchange_declare(self._address.exchange, "topic", durable=True)
        channel.exchange_declare(dead, "fanout", durable=True)
        channel.queue_declare(dead, durable=True, arguments={"x-queue-type": self._queue_type})
        channel.queue_bind(dead, dead)

    def _declare_queue(self, channel: Any, stream: str, group: str, replication: int) -> None:
        queue = self._address.queue(stream, group)
        arguments: dict[str, object] = {
            "x-queue-type": self._queue_type,
            "x-single-active-consumer": True,
            "x-overflow": "reject-publish",
            "x-max-length-bytes": MAX_QUEUE_BYTES,
            "x-dead-letter-exchange": self._address.dead_letters,
        }
        if self._queue_type == "quorum":
            arguments["x-dead-letter-strategy"] = "at-least-once"
            arguments["x-quorum-initial-group-size"] = replication
            if _version(channel) >= _NEEDS_LIMIT_OFF:
                arguments["x-delivery-limit"] = -1
        channel.queue_declare(queue, durable=True, arguments=arguments)
        channel.queue_bind(queue, self._address.exchange, f"{stream}.#")


def _roles_that_read(stream: str) -> list[str]:
    return [role.name for role in ROLES.values() if stream in role.reads]


def _version(channel: Any) -> tuple[int, ...]:
    properties = channel.connection._impl.server_properties
    return tuple(int(part) for part in properties["version"].split(".")[:2])
