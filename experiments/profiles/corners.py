"""A stage's own corner of a broker: topics behind a prefix on Kafka, a virtual host of its own on RabbitMQ.

Invariant: what is made here belongs to one run, and is gone after sweep(), or sweep() says what is left; the
application's own streams are neither read nor written. Nothing here waits for a broker once it is told to give up.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Protocol

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from experiments.profiles.runs import Workload
from streaming.batch import Outgoing
from streaming.cluster import guests
from streaming.cluster.rabbitmq import Credentials, DisposableRabbitMQ, address_of
from streaming.errors import BrokerUnavailable
from streaming.home import Home
from streaming.interfaces import Publisher, Transport
from streaming.lab import KAFKA, QUEUES, RABBITMQ_STREAMS, Lab
from streaming.topology import ROLES, Role, Stream
from streaming.transports.kafka import KafkaTransport
from streaming.transports.kafka.settings import ADMIN, PRODUCER
from streaming.transports.rabbitmq.queues import RabbitQueues
from streaming.transports.rabbitmq.streams import RabbitStreams

ADMIN_S: Final = 20.0
FILL_S: Final = 120.0
FILL_RATE_HZ: Final = {KAFKA: 200_000, QUEUES: 20_000, RABBITMQ_STREAMS: 200_000}  # about, on two cores
_LOOK_S: Final = 0.1  # how long a sender waits before it asks whether to give up
_PIECE: Final = 2_000
_UNCONFIRMED: Final = 2_000  # and a piece: less than the queues' publisher lets be outstanding
_GONE_OR_HELD: Final = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.GROUP_ID_NOT_FOUND,
    KafkaError.NON_EMPTY_GROUP,
}

GivenUp = Callable[[], bool]  # whether to stop waiting for the broker
At = str | DisposableRabbitMQ  # Kafka's bootstrap servers, or a RabbitMQ node with its credentials


class Sender(Protocol):
    """Sends what a role is given to read. When it has given up, all of this returns at once and nothing is promised."""

    def send(self, stream: str, values: list[bytes], keys: list[bytes]) -> None:
        """Queue records, in order; wait while there is no room."""
        ...

    def confirm(self) -> None:
        """Return when all is confirmed; BrokerUnavailable when it is not in time, or was refused."""
        ...

    def close(self) -> None:
        """Let go; what is not confirmed is given up."""
        ...


class Corner(Protocol):
    """What a stage asks of a broker."""

    @property
    def fill_rate_hz(self) -> int:
        """About how fast a backlog can be made, records a second."""
        ...

    def lab(self, workload: Workload, home: Home) -> Lab:
        """The settings with which a role's process finds this corner; secrets are put into `home`."""
        ...

    def create(self, streams: Iterable[Stream]) -> None:
        """Make what the role reads and writes."""
        ...

    def sender(self, client: str, given_up: GivenUp) -> Sender:
        """A connection of its own, to be closed."""
        ...

    def sweep(self) -> None:
        """Leave nothing; BrokerUnavailable, naming it, when something is left."""
        ...


def corner(broker: str, at: At, role: Role, prefix: str) -> Corner:
    """The corner behind this prefix on the broker at `at`."""
    if broker == KAFKA:
        assert isinstance(at, str)  # noqa: S101 - runner.brokers() gives what belongs to the broker
        return KafkaCorner(at, prefix)
    assert isinstance(at, DisposableRabbitMQ)  # noqa: S101
    return RabbitCorner(at, broker, role, prefix)


@dataclass
class KafkaCorner:
    """Topics and groups behind a prefix."""

    servers: str
    prefix: str

    @property
    def fill_rate_hz(self) -> int:
        """As measured with replication 3."""
        return FILL_RATE_HZ[KAFKA]

    def lab(self, workload: Workload, home: Home) -> Lab:  # noqa: ARG002 - no secrets
        """See Corner."""
        return Lab(
            bootstrap_servers=self.servers,
            replication=self._copies,
            codec=workload.codec,
            vehicles=workload.vehicles,
            seed=workload.seed,
            prefix=self.prefix,
            tuning=workload.tuning,
        )

    def create(self, streams: Iterable[Stream]) -> None:
        """See Corner."""
        KafkaTransport(self.servers, prefix=self.prefix).create(streams, replication=self._copies)

    def sender(self, client: str, given_up: GivenUp) -> Sender:
        """As the application's producer, but silent: its topics go before it does."""
        refused: list[str] = []
        own = {"bootstrap.servers": self.servers, "client.id": client, "log_level": 0}
        reports = {"delivery.report.only.error": True, "on_delivery": lambda error, _: refused.append(str(error))}
        return _KafkaSender(Producer({**PRODUCER, **own, **reports}), self.prefix, given_up, refused)

    def sweep(self) -> None:
        """See Corner, and the function."""
        sweep(self.servers, self.prefix)

    @cached_property
    def _copies(self) -> int:
        admin = AdminClient({**ADMIN, "bootstrap.servers": self.servers, "log_level": 0})
        return min(3, len(admin.list_topics(timeout=ADMIN_S).brokers))


@dataclass
class _KafkaSender:
    producer: Producer
    prefix: str
    given_up: GivenUp
    refused: list[str]

    def send(self, stream: str, values: list[bytes], keys: list[bytes]) -> None:
        for value, key in zip(values, keys, strict=True):
            self._queue(self.prefix + stream, value, key)

    def confirm(self) -> None:
        _confirm(lambda: self.producer.flush(_LOOK_S), self.given_up)
        if self.refused and not self.given_up():
            raise BrokerUnavailable(f"{len(self.refused)} records are refused: {self.refused[0]}")

    def close(self) -> None:
        self.producer.purge()  # else the client's end waits for them

    def _queue(self, topic: str, value: bytes, key: bytes) -> None:
        while not self.given_up():
            try:
                self.producer.produce(topic, value=value, key=key)
            except BufferError:
                self.producer.poll(_LOOK_S)
            else:
                self.producer.poll(0)
                return


@dataclass
class RabbitCorner:
    """A virtual host of its own. On queues, what the role reads goes to its own queue and to no other reader's."""

    node: DisposableRabbitMQ
    broker: str
    role: Role
    prefix: str

    @property
    def fill_rate_hz(self) -> int:
        """Queues take confirmed messages one frame each."""
        return FILL_RATE_HZ[self.broker]

    def lab(self, workload: Workload, home: Home) -> Lab:
        """See Corner."""
        folder = home.brokers("rabbitmq")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.copy2(self.node.folder / "credentials.json", folder)
        ports = self.node.nodes[0].ports
        return Lab(
            brokers=(self.broker,),
            rabbitmq_ports=(ports.amqp, ports.stream, ports.management),
            codec=workload.codec,
            vehicles=workload.vehicles,
            seed=workload.seed,
            prefix=self.prefix,
            tuning=workload.tuning,
        )

    def create(self, streams: Iterable[Stream]) -> None:
        """See Corner."""
        guests.admit(self.node.nodes[0], self._credentials, self.prefix, self.broker, [self.role])
        with self._transport() as transport:
            transport.create(streams, replication=1)

    def sender(self, client: str, given_up: GivenUp) -> Sender:
        """The application's own publisher, as the operator."""
        with contextlib.ExitStack() as opened:
            transport = opened.enter_context(self._transport())
            publisher = transport.publisher(client)
            opened.callback(publisher.close)
            return _RabbitSender(publisher, given_up, opened.pop_all())

    def sweep(self) -> None:
        """Delete the virtual host."""
        guests.dismiss(self.node.nodes[0], self._credentials, self.prefix, self.broker)

    @property
    def _credentials(self) -> Credentials:
        return Credentials.of(self.node.folder)

    @contextlib.contextmanager
    def _transport(self) -> Iterator[Transport]:
        vhost = guests.vhost_of(self.prefix, self.broker)
        address = address_of(self.node.nodes[0], self._credentials, vhost=vhost)
        made = RabbitQueues(address, readers=self._readers) if self.broker == QUEUES else RabbitStreams(address)
        try:
            yield made
        finally:
            made.close()

    def _readers(self, stream: str) -> list[str]:
        if stream in self.role.reads:
            return [self.role.name]
        return [each.name for each in ROLES.values() if stream in each.reads]


@dataclass
class _RabbitSender:
    publisher: Publisher
    given_up: GivenUp
    opened: contextlib.ExitStack

    def send(self, stream: str, values: list[bytes], keys: list[bytes]) -> None:
        for at in range(0, len(values), _PIECE):
            _confirm(lambda: self._above(_UNCONFIRMED), self.given_up)  # else publish() waits for room by itself
            if self.given_up():
                return
            self.publisher.publish(Outgoing(stream, values[at : at + _PIECE], keys[at : at + _PIECE]))

    def confirm(self) -> None:
        _confirm(lambda: self._above(0), self.given_up)

    def close(self) -> None:
        self.opened.close()

    def _above(self, unconfirmed: int) -> int:
        """How many more than that are unconfirmed, after a look."""
        if self.publisher.outstanding > unconfirmed:
            self.publisher.flush(_LOOK_S)
        return max(self.publisher.outstanding - unconfirmed, 0)


def _confirm(left: Callable[[], int], given_up: GivenUp) -> None:
    """Look until nothing is left; BrokerUnavailable when time is up."""
    deadline = time.monotonic() + FILL_S
    while not given_up() and (records := left()):
        if time.monotonic() > deadline:
            raise BrokerUnavailable(f"{records:,} records are not confirmed after {FILL_S:.0f} s")


def sweep(servers: str, prefix: str) -> None:
    """Delete every topic and group behind the prefix. BrokerUnavailable when that is not done.

    A group with a static member that has just gone is the exception: the broker holds it until the session times out.
    """
    admin = AdminClient({**ADMIN, "bootstrap.servers": servers, "log_level": 0})
    try:
        topics = [name for name in admin.list_topics(timeout=ADMIN_S).topics if name.startswith(prefix)]
        groups = [each.group_id for each in admin.list_consumer_groups().result(ADMIN_S).valid]
        mine = [group for group in groups if group.startswith(prefix)]
        asked = {
            **(admin.delete_topics(topics, operation_timeout=ADMIN_S) if topics else {}),
            **(admin.delete_consumer_groups(mine) if mine else {}),
        }
        for future in asked.values():
            _done(future)
    except (KafkaException, TimeoutError) as error:
        raise BrokerUnavailable(f"what begins with {prefix} may still be on {servers}: {error!r}") from error


def _done(future: Future[None]) -> None:
    try:
        future.result(ADMIN_S)
    except KafkaException as error:
        if error.args[0].code() not in _GONE_OR_HELD:
            raise
