"""A cluster looked at from outside: brokers, topics, consumer groups, as the cluster itself says they are now.

Invariant: it asks and never changes anything, and it joins no group. What the cluster does not say is None, never 0.
An offset is a place, no count: control records of transactions and compacted records take or leave places, too.
"""

from __future__ import annotations

import difflib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Final, TypeVar

from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # the package has them, its stubs do not
    AdminClient,
    ConfigResource,
    ConfigSource,
    OffsetSpec,
    ResourceType,
)

from streaming.errors import BrokerUnavailable, UsageError
from streaming.transports.kafka import failures
from streaming.transports.kafka.settings import ADMIN

T = TypeVar("T")
Place = tuple[str, int]  # topic and partition
TIMEOUT_S: Final = 10.0
NO_LATER_RECORD: Final = -1  # the offset of a time that lies behind the newest record
_NEWS_S: Final = 2.0  # a new topic or group is known to every broker by then
_POLL_S: Final = 0.1
_NAMED_AT_MOST: Final = 12


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker that is alive, and what it does: partitions it leads, copies it keeps, copies that are in sync."""

    number: int
    address: str
    leads: int
    copies: int
    copies_in_sync: int


@dataclass(frozen=True, slots=True)
class Partition:
    """Who keeps a partition (broker numbers, the preferred leader first) and which offsets it holds: [low, end).

    `end` is the last stable offset: what a committed reader can reach. `written` is what has been copied to all in
    sync; between the two lie transactions that are still open. `leader` is None while nobody leads.
    """

    topic: str
    number: int
    leader: int | None
    replicas: tuple[int, ...]
    in_sync: tuple[int, ...]
    low: int | None = None
    end: int | None = None
    written: int | None = None

    @property
    def is_under_replicated(self) -> bool:
        """Whether some copy is missing or behind."""
        return len(self.in_sync) < len(self.replicas)

    @property
    def offsets_held(self) -> int | None:
        """From low to end: at least as many as there are records."""
        return None if self.end is None or self.low is None else self.end - self.low

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        derived = {"is_under_replicated": self.is_under_replicated, "offsets_held": self.offsets_held}
        return {**asdict(self), **derived}


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic. `settings` were given to it, `inherited` come from the brokers' own (both only where asked for)."""

    name: str
    partitions: tuple[Partition, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    inherited: Mapping[str, str] = field(default_factory=dict)

    @property
    def replication(self) -> int:
        """Copies of each partition; of the poorest, if they differ."""
        return min((len(each.replicas) for each in self.partitions), default=0)

    @property
    def under_replicated(self) -> int:
        """Partitions that lack a copy in sync."""
        return sum(each.is_under_replicated for each in self.partitions)

    @property
    def leaders(self) -> Mapping[int, int]:
        """Broker → partitions of this topic that it leads."""
        return dict(sorted(Counter(each.leader for each in self.partitions if each.leader is not None).items()))

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "name": self.name,
            "replication": self.replication,
            "under_replicated": self.under_replicated,
            "leaders": {str(broker): count for broker, count in self.leaders.items()},
            "offsets_held": total(each.offsets_held for each in self.partitions),
            "settings": dict(self.settings),
            "inherited": dict(self.inherited),
            "partitions": [each.to_dict() for each in self.partitions],
        }


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a group: its client id and host, its static instance id if it has one, the partitions it reads."""

    client: str
    host: str
    instance: str | None
    assignment: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Position:
    """What a group has committed for a partition, and where the partition ends. None: nothing, or not said."""

    topic: str
    partition: int
    committed: int | None
    end: int | None
    client: str | None  # who reads it now

    @property
    def lag(self) -> int | None:
        """Offsets between the two."""
        return None if self.committed is None or self.end is None else max(0, self.end - self.committed)


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group, with its members and one position for each partition that it reads or has committed."""

    name: str
    state: str
    protocol: str  # classic or consumer
    assignor: str
    coordinator: int | None
    members: tuple[Member, ...]
    positions: tuple[Position, ...]

    @property
    def lag(self) -> int | None:
        """The sum over the partitions; None when one of them is not known."""
        return total(each.lag for each in self.positions)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        positions = [{**asdict(each), "lag": each.lag} for each in self.positions]
        return {**asdict(self), "lag": self.lag, "positions": positions}


class Cluster:
    """A cluster to look at. Connects on first use; each call raises BrokerUnavailable when nobody answers in time."""

    def __init__(self, bootstrap_servers: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self.bootstrap_servers = bootstrap_servers
        self.timeout_s = timeout_s
        self.admin = AdminClient({**ADMIN, "bootstrap.servers": bootstrap_servers, "client.id": "streamgauge-look"})

    def brokers(self) -> list[Broker]:
        """The brokers that are alive, by number."""
        found = self._metadata()
        partitions = _partitions(found)
        leads = Counter(each.leader for each in partitions)
        copies = Counter(broker for each in partitions for broker in each.replicas)
        in_sync = Counter(broker for each in partitions for broker in each.in_sync)
        return [
            Broker(number, f"{broker.host}:{broker.port}", leads[number], copies[number], in_sync[number])
            for number, broker in sorted(found.brokers.items())
        ]

    def layout(self, topics: Iterable[str] | None = None) -> list[Partition]:
        """Who leads and keeps each partition of these topics (or all), without offsets: one quick question."""
        partitions = _partitions(self._metadata())
        wanted = None if topics is None else set(topics)
        return [each for each in partitions if wanted is None or each.topic in wanted]

    def topics(self, *, internal: bool = False) -> list[Topic]:
        """All topics with their offsets, by name; `internal`: Kafka's own, too (their names begin with __)."""
        partitions = [each for each in self.layout() if internal or not is_internal(each.topic)]
        return _topics(self._with_offsets(partitions))

    def topic(self, name: str) -> Topic:
        """One topic with its offsets and settings. UsageError naming the nearest when there is none of this name."""
        [found] = _topics(self._with_offsets(self.partitions(name)))
        settings, inherited = self._settings(name)
        return Topic(name, found.partitions, settings, inherited)

    def partitions(self, name: str) -> list[Partition]:
        """The layout of one topic. UsageError naming the nearest when there is none of this name."""
        return self._existing(
            "topic", name, lambda: self.layout([name]), lambda: {each.topic for each in self.layout()}
        )

    def groups(self) -> list[Group]:
        """All consumer groups, by name."""
        return self._groups(self._group_names())

    def group(self, name: str) -> Group:
        """One consumer group. UsageError naming the nearest when there is none of this name."""
        names = self._existing("group", name, lambda: {name} & self._group_names(), self._group_names)
        return self._groups(names)[0]

    def offsets(self, places: Iterable[Place], spec: Any, *, is_committed: bool = True) -> dict[Place, int | None]:
        """The offset that an OffsetSpec asks for, of each place; None where the leader does not answer in time."""
        level = IsolationLevel.READ_COMMITTED if is_committed else IsolationLevel.READ_UNCOMMITTED
        found: dict[Place, int | None] = dict.fromkeys(places)
        deadline = time.monotonic() + self.timeout_s
        while missing := [place for place, offset in found.items() if offset is None]:
            asked = {TopicPartition(*place): spec for place in missing}
            futures = self.admin.list_offsets(asked, isolation_level=level, request_timeout=self.timeout_s)
            for mark, future in futures.items():
                found[mark.topic, mark.partition] = self._offset(future)
            if time.monotonic() > deadline:
                break
            if None in found.values():
                time.sleep(_POLL_S)
                self._metadata()  # or the client would ask for no leader again (failures.patiently)
        return found

    def _offset(self, future: Any) -> int | None:
        try:
            offset = int(future.result().offset)
        except KafkaException as exception:
            error = failures.error_of(exception)
            if failures.is_passing(error) or error.code() == KafkaError._NOENT:  # the latter: no leader at all
                return None
            raise failures.asking(self.bootstrap_servers, exception) from exception
        return offset if offset >= NO_LATER_RECORD else None  # librdkafka's -1001: the leader did not answer

    def _metadata(self) -> Any:
        try:
            return self.admin.list_topics(timeout=self.timeout_s)
        except KafkaException as exception:
            raise failures.asking(self.bootstrap_servers, exception) from exception

    def _with_offsets(self, partitions: list[Partition]) -> list[Partition]:
        led = [(each.topic, each.number) for each in partitions if each.leader is not None]
        earliest, latest = OffsetSpec.earliest(), OffsetSpec.latest()  # type: ignore[no-untyped-call]
        # Before the stable ends: what is written between the two questions would look like an open transaction.
        written = self.offsets(led, latest, is_committed=False)
        with ThreadPoolExecutor(2) as pool:  # at once: a leader that has died would cost the time-out thrice
            low, end = pool.map(lambda spec: self.offsets(led, spec), [earliest, latest])

        def known(each: Partition) -> Partition:
            place = (each.topic, each.number)
            who = (each.topic, each.number, each.leader, each.replicas, each.in_sync)
            return Partition(*who, low.get(place), end.get(place), written.get(place))

        return [known(each) for each in partitions]

    def _settings(self, name: str) -> tuple[dict[str, str], dict[str, str]]:
        """The topic's own settings, and those it has from the brokers' that are no defaults."""
        resource = ConfigResource(ResourceType.TOPIC, name)
        [future] = self.admin.describe_configs([resource], request_timeout=self.timeout_s).values()
        entries = self._answer(future).values()
        own = {each.name: each.value for each in entries if each.source == ConfigSource.DYNAMIC_TOPIC_CONFIG.value}
        others = {each.name: each.value for each in entries if not each.is_default and each.name not in own}
        return dict(sorted(own.items())), dict(sorted(others.items()))

    def _group_names(self) -> set[str]:
        found = self._answer(self.admin.list_consumer_groups(request_timeout=self.timeout_s))
        if found.errors and not found.valid:
            said = found.errors[0]  # an exception by the documentation, in fact the error itself
            exception = said if isinstance(said, KafkaException) else KafkaException(said)
            raise failures.asking(self.bootstrap_servers, exception)
        return {each.group_id for each in found.valid}

    def _groups(self, names: Iterable[str]) -> list[Group]:
        ordered = sorted(names)
        if not ordered:
            return []
        described = failures.patiently(self.bootstrap_servers, self.timeout_s, lambda: self._describe(ordered))
        committed = {name: self._committed(name) for name in ordered}
        read = {name: _read_by(described[name]) for name in ordered}
        places = {place for name in ordered for place in (*committed[name], *read[name])}
        led = {(each.topic, each.number) for each in self.layout() if each.leader is not None}
        ends = self.offsets(sorted(places & led), OffsetSpec.latest())  # type: ignore[no-untyped-call]
        return [_group(described[name], committed[name], read[name], ends) for name in ordered]

    def _describe(self, names: list[str]) -> dict[str, Any]:
        futures = self.admin.describe_consumer_groups(names, request_timeout=self.timeout_s)
        return {name: future.result() for name, future in futures.items()}

    def _committed(self, group: str) -> dict[Place, int]:
        def ask() -> Any:
            request = [ConsumerGroupTopicPartitions(group)]
            return self.admin.list_consumer_group_offsets(request, request_timeout=self.timeout_s)[group].result()

        answer = failures.patiently(self.bootstrap_servers, self.timeout_s, ask)
        return {(mark.topic, mark.partition): mark.offset for mark in answer.topic_partitions if mark.offset >= 0}

    def _answer(self, future: Any) -> Any:
        try:
            return future.result()
        except KafkaException as exception:
            raise failures.asking(self.bootstrap_servers, exception) from exception

    def _existing(self, kind: str, name: str, ask: Callable[[], T], names: Callable[[], Iterable[str]]) -> T:
        """What is found under this name; it is asked for again for a while, because it may be new."""
        deadline = time.monotonic() + _NEWS_S
        while not (found := ask()):
            if time.monotonic() > deadline:
                raise UsageError(_no_such(kind, name, sorted(names()), self.bootstrap_servers))
            time.sleep(_POLL_S)
        return found


def is_internal(topic: str) -> bool:
    """Whether a topic is Kafka's own."""
    return topic.startswith("__")


def total(numbers: Iterable[int | None]) -> int | None:
    """The sum, or None when one is not known."""
    known = list(numbers)
    return None if None in known else sum(each for each in known if each is not None)


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Poll a condition on a cluster that is changing; whether it came true in time. An unanswered question is a no."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if condition():
                return True
        except (BrokerUnavailable, KafkaException):
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)


def _no_such(kind: str, name: str, names: list[str], address: str) -> str:
    shown = [each for each in names if not is_internal(each)]
    near = difflib.get_close_matches(name, shown, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    more = f", … ({len(shown)} in all)" if len(shown) > _NAMED_AT_MOST else ""
    there = f" There are {', '.join(shown[:_NAMED_AT_MOST])}{more}." if shown else " There is none at all."
    return f"there is no {kind} {name!r} at {address}{hint}{there}"


def _partitions(metadata: Any) -> list[Partition]:
    return [
        Partition(
            topic.topic,
            number,
            each.leader if each.leader >= 0 else None,
            tuple(each.replicas),
            tuple(sorted(each.isrs)),
        )
        for _, topic in sorted(metadata.topics.items())
        for number, each in sorted(topic.partitions.items())
    ]


def _topics(partitions: list[Partition]) -> list[Topic]:
    names = dict.fromkeys(each.topic for each in partitions)
    return [Topic(name, tuple(each for each in partitions if each.topic == name)) for name in names]


def _read_by(described: Any) -> dict[Place, str]:
    """Place → client id of the member that reads it."""
    return {
        (mark.topic, mark.partition): member.client_id
        for member in described.members
        for mark in (member.assignment.topic_partitions if member.assignment else ())
    }


def _group(described: Any, committed: dict[Place, int], read: dict[Place, str], ends: dict[Place, int | None]) -> Group:
    return Group(
        name=described.group_id,
        state=described.state.name.lower(),
        protocol=described.type.name.lower(),
        assignor=described.partition_assignor,
        coordinator=described.coordinator.id if described.coordinator else None,
        members=tuple(map(_member, described.members)),
        positions=tuple(
            Position(*place, committed.get(place), ends.get(place), read.get(place))
            for place in sorted({*committed, *read})
        ),
    )


def _member(described: Any) -> Member:
    assignment: dict[str, list[int]] = {}
    for mark in described.assignment.topic_partitions if described.assignment else ():
        assignment.setdefault(mark.topic, []).append(mark.partition)
    kept = {topic: tuple(sorted(partitions)) for topic, partitions in sorted(assignment.items())}
    return Member(described.client_id, described.host, described.group_instance_id, kept)
