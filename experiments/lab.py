"""Where trials run: brokers, topics of their own, clients whose settings are kept, and the application's messages.

Invariant: whatever a lab makes (topics, groups, processes, brokers) is gone when it is closed; brokers it did not start
itself are never stopped, paused or reconfigured.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from uuid import uuid4

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its stubs re-export nothing
    AdminClient,
    AlterConfigOpType,
    ClusterMetadata,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)
from numpy.typing import NDArray

from experiments.faults import BrokerControl, OwnBrokers
from experiments.workload import Workload
from streaming.cluster.kafka import DisposableCluster
from streaming.errors import BrokerUnavailable, UsageError
from streaming.transports.kafka.failures import patiently
from streaming.transports.kafka.settings import ADMIN

T = TypeVar("T")
BROKERS: Final = "brokers"  # a link in the run's folder to its brokers' data, as long as there is any
ADMIN_S: Final = 20.0
WATCHER_MS: Final = 2_000
SEAL: Final = b"\0sealed"
FIRST: Final = 0  # where reading begins; where the oldest record has a higher offset, the reset goes there
WARM_UP_RECORDS: Final = 5_000


@dataclass(frozen=True)
class Records:
    """A topic's content in the order of reading, in columns."""

    partitions: NDArray[np.int64]
    offsets: NDArray[np.int64]
    keys: list[bytes | None]
    values: list[bytes]
    timestamps_ms: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.values)


@dataclass
class Lab:
    """Brokers and everything a trial needs from them. `brokers` is None on somebody else's cluster."""

    run_id: str
    bootstrap_servers: str
    folder: Path
    workload: Workload
    brokers: BrokerControl | None = None
    settings: dict[str, Any] = field(default_factory=lambda: {"topics": {}, "clients": {}})
    _topics: list[str] = field(default_factory=list)
    _groups: list[str] = field(default_factory=list)
    _applications: list[str] = field(default_factory=list)
    _exit: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _shared: dict[str, Any] = field(default_factory=dict)
    _at_end: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _counter: int = 0

    def __post_init__(self) -> None:
        usual = {**ADMIN, "bootstrap.servers": self.bootstrap_servers, "log_level": 0}
        self.admin = AdminClient(usual)
        # Asks again and again while brokers hang: one that was asked and hangs is soon given up for another.
        self._watcher = AdminClient({**usual, "socket.timeout.ms": WATCHER_MS})

    @property
    def control(self) -> BrokerControl:
        """The lab's own brokers. UsageError on a cluster that isn't ours to break."""
        if self.brokers is None:
            raise UsageError("this trial controls brokers, and these are not the lab's own")
        return self.brokers

    @property
    def broker_count(self) -> int:
        """How many brokers answer now."""
        return len(self._metadata(self._watcher).brokers)

    # -- topics and groups ---------------------------------------------------------------------------------------------

    def topic(self, purpose: str, partitions: int = 1, replication: int | None = None, **settings: str) -> str:
        """Make a topic of this run and return its name: three copies if there are three brokers.

        Settings are the broker's, with _ for the dots.
        """
        name = self._name(purpose)
        replication = replication or min(3, self.broker_count)
        config = {key.replace("_", "."): value for key, value in settings.items()}
        self.create(NewTopic(name, num_partitions=partitions, replication_factor=replication, config=config))
        self.settings["topics"].setdefault(purpose, {"partitions": partitions, "replication": replication, **config})
        return name

    def create(self, topic: NewTopic) -> None:
        """Make a topic, and wait until each partition has a leader."""
        answer(self.admin.create_topics([topic], operation_timeout=ADMIN_S)[topic.topic])
        self._topics.append(topic.topic)
        self.wait_for(lambda: self._has_leaders(topic.topic, topic.num_partitions), f"leaders of {topic.topic}")

    def group(self, purpose: str) -> str:
        """The name of a new consumer group of this run."""
        name = self._name(purpose)
        self._groups.append(name)
        return name

    def application(self, purpose: str) -> str:
        """A name for a stream processor: what it makes under a name that contains this one goes with the trial."""
        name = self._name(purpose)
        self._applications.append(name)
        return name

    def configure(self, kind: ResourceType, name: str, **settings: str) -> None:
        """Set configurations of a topic, broker or group while it runs; with _ for the dots."""
        entries = [
            ConfigEntry(key.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
            for key, value in settings.items()
        ]
        resource = ConfigResource(kind, name, incremental_configs=entries)
        answer(self.admin.incremental_alter_configs([resource])[resource])

    def describe(self, topic: str) -> dict[int, tuple[int, tuple[int, ...], tuple[int, ...]]]:
        """Leader, replicas and in-sync replicas of each partition, as the cluster says now (leader -1: none)."""
        # A broker that has just come back may not have heard of a new topic yet.
        partitions = self.wait_for(lambda: self._partitions(topic), f"metadata of {topic}")
        return {number: (each.leader, tuple(each.replicas), tuple(each.isrs)) for number, each in partitions.items()}

    def _partitions(self, topic: str) -> dict[int, Any]:
        found: dict[int, Any] = self._watcher.list_topics(topic, timeout=ADMIN_S).topics[topic].partitions
        return found

    def ask_leaders(self, ask: Callable[[], T]) -> T:
        """The answer to what `admin` asks partitions' leaders, and may ask twice: a new leader may not be known yet."""
        return patiently(self.bootstrap_servers, ADMIN_S, ask, lambda: self._metadata(self.admin))

    # -- clients -------------------------------------------------------------------------------------------------------

    def producer(self, purpose: str, **settings: Any) -> Producer:
        """A producer; its settings are written into the run's provenance."""
        return Producer(self.client(purpose, {"linger.ms": 5, **_dotted(settings)}))

    def consumer(self, purpose: str, group: str, **settings: Any) -> Consumer:
        """A consumer that is closed with the lab at the latest; its settings go into the run's provenance."""
        defaults = {"group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False}
        return Consumer(self.client(purpose, {**defaults, **_dotted(settings)}))

    def send(
        self, topic: str, keys: Sequence[bytes | None], values: Sequence[bytes], **settings: Any
    ) -> NDArray[np.int64]:
        """Send all, wait, and return the places (0, 1, …) of those that were confirmed."""
        confirmed: list[int] = []
        producer = self.producer("loader", **settings)
        for place, (key, value) in enumerate(zip(keys, values, strict=True)):
            produce(producer, topic, value=value, key=key, on_delivery=noting(confirmed, place))
        producer.flush(ADMIN_S)
        return np.sort(np.asarray(confirmed, dtype=np.int64))

    def read(self, topic: str, *, sealed: bool = False, **settings: Any) -> Records:
        """Everything in the topic from its oldest record to its present end, outside any group; see read_all()."""
        return self.read_all([topic], sealed=sealed, **settings)[topic]

    def beginnings(self, topics: Sequence[str]) -> list[TopicPartition]:
        """The partitions of these topics, for assign(), from their oldest records under auto.offset.reset=earliest.

        As a number: for a logical offset librdkafka asks the leader, and if it doesn't know it yet, half a second
        later.
        """
        return [TopicPartition(topic, number, FIRST) for topic in topics for number in self.describe(topic)]

    def read_all(self, topics: Sequence[str], *, sealed: bool = False, **settings: Any) -> dict[str, Records]:
        """The same of several topics at once, which takes hardly longer than of one.

        A reader is not shown what only the leader has (acks=1), nor what a leader just elected does not yet know to be
        committed, nor what a transaction committed a moment ago, whose mark the partition has not got yet. With
        `sealed` a mark that all copies have confirmed is put behind each partition's records first, read up to, and
        left out of the answer: what lies before it has been read.
        """
        seal = self._seal(topics) if sealed else None
        consumer = self.consumer("reader", "unused", enable_partition_eof=not sealed, fetch_wait_max_ms=20, **settings)
        try:
            places = self.beginnings(topics)
            consumer.assign(places)
            found = _drain(consumer, {(each.topic, each.partition) for each in places}, seal)
            kept = [each for each in found if not (each.value() or b"").startswith(SEAL)]
            return {topic: _records([each for each in kept if each.topic() == topic]) for topic in topics}
        finally:
            consumer.close()

    def _seal(self, topics: Sequence[str]) -> bytes:
        """A new mark behind each partition's records, confirmed by all copies."""
        seal = SEAL + uuid4().bytes
        producer = self.producer("sealer", acks="all", linger_ms=0)
        for topic in topics:
            for number in self.describe(topic):
                produce(producer, topic, value=seal, partition=number)
        if producer.flush(ADMIN_S):
            raise BrokerUnavailable(f"no mark of all copies behind {', '.join(topics)} within {ADMIN_S:g} s")
        return seal

    # -- life ----------------------------------------------------------------------------------------------------------

    def warm_up(self) -> str:
        """Send and read a throw-away topic, so that no trial pays for cold code; returns what was done, in words."""
        topic = self.topic("warm-up", 3)
        messages = self.workload.messages(WARM_UP_RECORDS)
        for _ in range(2):
            self.send(topic, messages.keys, messages.values)
        self.read(topic)
        return f"{2 * WARM_UP_RECORDS:,} records through a throw-away topic before the first trial"

    def keep(self, cleanup: Callable[[], object]) -> None:
        """Call this when the present trial ends, however it ends."""
        self._exit.callback(cleanup)

    def shared(self, name: str, make: Callable[[], contextlib.AbstractContextManager[T]]) -> T:
        """What the first trial to ask makes and enters, for all trials; left when the lab is closed."""
        if name not in self._shared:
            self._shared[name] = self._at_end.enter_context(make())
        found: T = self._shared[name]
        return found

    def tidy(self) -> None:
        """After a trial: end its processes and clients, delete its topics and groups, mend its brokers."""
        self._exit.close()
        if self.brokers is not None:
            self.brokers.heal()
        self._delete()

    def close(self) -> None:
        """Leave nothing behind. Somebody else's cluster loses our topics and groups, our own brokers end."""
        try:
            self._exit.close()
            self._at_end.close()
            if self.brokers is None:
                self._delete()
        finally:
            if self.brokers is not None:
                self.brokers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait_for(self, condition: Callable[[], T | None], what: str, within_s: float = ADMIN_S) -> T:
        """Poll until truthy. BrokerUnavailable naming `what` when it never is."""
        give_up = time.monotonic() + within_s
        while time.monotonic() < give_up:
            if outcome := condition():
                return outcome
            time.sleep(0.02)
        raise BrokerUnavailable(f"{what}: not within {within_s:g} s")

    def _name(self, purpose: str) -> str:
        self._counter += 1
        return f"lab-{self.run_id}-{self._counter}-{purpose}"

    def client(self, purpose: str, settings: dict[str, Any]) -> dict[str, Any]:
        """A client's settings with this lab's address; noted for the provenance."""
        self.settings["clients"].setdefault(
            purpose, {key: value for key, value in settings.items() if not callable(value)}
        )
        quiet = {"log_level": 0, "bootstrap.servers": self.bootstrap_servers, "client.id": purpose}
        return quiet | settings

    def _has_leaders(self, topic: str, partitions: int) -> bool:
        found = self._partitions(topic)
        return len(found) == partitions and all(each.leader >= 0 for each in found.values())

    def sweep(self, runs: Sequence[str]) -> None:
        """Delete the topics and groups of these runs, which have ended without doing so.

        BrokerUnavailable when the cluster does not answer.
        """
        self._applications += [f"lab-{run_id}-" for run_id in runs]
        self._delete()

    def _metadata(self, asking: AdminClient) -> ClusterMetadata:
        """What the cluster says of itself, which `asking` knows then; BrokerUnavailable when it does not answer."""
        try:
            found: ClusterMetadata = asking.list_topics(timeout=ADMIN_S)
        except KafkaException as error:
            raise BrokerUnavailable(f"{self.bootstrap_servers}: {error.args[0].str()}") from error
        return found

    def _find(self, parts: Sequence[str]) -> None:
        """Topics and groups whose names contain one of these are to be deleted too."""
        topics = self._metadata(self.admin).topics
        groups = [each.group_id for each in answer(self.admin.list_consumer_groups(request_timeout=ADMIN_S)).valid]
        for names, known in ((topics, self._topics), (groups, self._groups)):
            known += [name for name in names if name not in known and any(part in name for part in parts)]

    def _delete(self) -> None:
        applications, self._applications = self._applications, []
        if applications:
            self._find(applications)
        topics, self._topics = self._topics, []
        groups, self._groups = self._groups, []
        for futures in (
            self.admin.delete_topics(topics) if topics else {},
            self.admin.delete_consumer_groups(groups) if groups else {},
        ):
            for future in futures.values():
                with contextlib.suppress(KafkaException):  # a group that never had a member, a topic a trial deleted
                    future.result(ADMIN_S)


def own_brokers(workload: Workload, broker_settings: Mapping[str, str]) -> Callable[[str, Path], Lab]:
    """Opens labs on three brokers of their own, which end with the lab or with this process."""

    def open_lab(run_id: str, folder: Path) -> Lab:
        cluster = DisposableCluster(settings=broker_settings)
        (folder / BROKERS).symlink_to(cluster.folder)
        brokers = OwnBrokers(cluster.__enter__())
        lab = Lab(run_id, brokers.bootstrap_servers, folder, workload, brokers)
        lab.settings["brokers"] = brokers.settings()
        return lab

    return open_lab


def given_brokers(workload: Workload, bootstrap_servers: str) -> Callable[[str, Path], Lab]:
    """Opens labs on somebody's cluster: only topics and groups of the lab's own are touched.

    What killed runs of the same home have left there is deleted first; only one run at a time has the home.
    """

    def open_lab(run_id: str, folder: Path) -> Lab:
        lab = Lab(run_id, bootstrap_servers, folder, workload)
        lab.settings["bootstrap_servers"] = bootstrap_servers
        lab.sweep([each.name for each in folder.parent.parent.glob("*/*/") if each.name != run_id])
        return lab

    return open_lab


def forget_brokers(folder: Path) -> None:
    """Delete the data that a run's own brokers have left, if any."""
    link = folder / BROKERS
    if link.is_symlink():
        shutil.rmtree(link.readlink(), ignore_errors=True)
        link.unlink()


def answer(future: Any) -> Any:
    """An admin call's result; BrokerUnavailable when no broker answers."""
    try:
        return future.result(ADMIN_S)
    except KafkaException as error:
        if error.args[0].code() in (KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError.REQUEST_TIMED_OUT):
            raise BrokerUnavailable(str(error)) from error
        raise


def produce(producer: Producer, topic: str, **record: Any) -> None:
    """Queue one record, waiting for room in the client's queue instead of failing."""
    while True:
        try:
            producer.produce(topic, **record)
        except BufferError:
            producer.poll(0.05)
        else:
            producer.poll(0)
            return


def noting(confirmed: list[int], place: int) -> Callable[[KafkaError | None, Message], None]:
    """A delivery report that adds the place to `confirmed` when the record is."""

    def note(error: KafkaError | None, _: Message) -> None:
        if error is None:
            confirmed.append(place)

    return note


def _drain(
    consumer: Consumer, still_open: set[tuple[str | None, int | None]], seal: bytes | None = None
) -> list[Message]:
    """All messages up to the seal of each of these (topic, partition), or to its end if the client tells of ends."""
    messages: list[Message] = []
    give_up = time.monotonic() + ADMIN_S
    while still_open:
        for message in consumer.consume(5_000, timeout=0.05):
            if (error := message.error()) is None:
                messages.append(message)
            is_end = message.value() == seal if error is None else error.code() == KafkaError._PARTITION_EOF
            if is_end:
                still_open.discard((message.topic(), message.partition()))
            elif error is not None and not error.retriable():
                raise KafkaException(error)
            give_up = time.monotonic() + ADMIN_S
        if time.monotonic() > give_up:
            raise BrokerUnavailable(f"no end of {len(still_open)} partitions within {ADMIN_S:g} s: {still_open}")
    return messages


def _records(messages: Sequence[Message]) -> Records:
    return Records(
        partitions=np.fromiter((each.partition() for each in messages), dtype=np.int64, count=len(messages)),
        offsets=np.fromiter((each.offset() for each in messages), dtype=np.int64, count=len(messages)),
        keys=[each.key() for each in messages],
        values=[each.value() or b"" for each in messages],
        timestamps_ms=np.fromiter((each.timestamp()[1] for each in messages), dtype=np.int64, count=len(messages)),
    )


def _dotted(settings: dict[str, Any]) -> dict[str, Any]:
    return {name if callable(value) else name.replace("_", "."): value for name, value in settings.items()}
