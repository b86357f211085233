"""Offsets and reprocessing: resets, replay, what crashes lose or double, lost positions, what transactions cost."""

from __future__ import annotations

import shutil
import socket
import struct
import tempfile
import threading
import time
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import polars as pl
from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]  # its stubs re-export nothing
from matplotlib.figure import Figure as Drawing
from numpy.typing import NDArray

from experiments import figures, worker
from experiments.experiment import Experiment, Figure, Needs, Scene, factor, fixed
from experiments.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED
from experiments.findings import Claim, Judgement, always, compare, paired, per_repetition
from experiments.lab import ADMIN_S, Lab, answer, noting, produce
from experiments.ledger import reconcile
from experiments.load import due
from experiments.measurements import Levels, Measured, NotMeasured
from experiments.statistics import median_interval, ratio_interval
from experiments.trial import Trial
from experiments.worker import AFTER, BEFORE, TRANSACTION, Copying, Landing

EARLIEST, LATEST, OFFSET, TIMESTAMP, AUTO = "earliest", "latest", "offset", "timestamp", "auto.offset.reset=earliest"
FRESH, KILLED, SAME = "a fresh sink", "a fresh sink, killed", "the same sink"
EXPIRED, BEYOND = "expired", "beyond the end"
TIME_OUT, SUCCESSOR = "the time-out", "a successor"
CHECK_MS: Final = 250  # how often the broker looks for expired offsets and for transactions that are too old
COMMIT_POINTS: Final = 5  # named points of one slot's commit, see sinks/slots.py
QUICK = MappingProxyType({"fetch.wait.max.ms": 20, "enable.partition.eof": True})


# -- resets ------------------------------------------------------------------------------------------------------------


def resets(trial: Trial) -> None:
    """A group has read everything; its offsets are reset; what does its next member read?"""
    lab, count = trial.lab, trial.count("records")
    topic, group = lab.topic("history", trial.count("partitions")), lab.group("analysis")
    times, confirmed = _send_dated(trial, topic, count)
    first = lab.consumer("member", group, **QUICK)
    first.subscribe([topic])
    messages = _until_the_end(trial, first, topic)
    first.commit(offsets=first.position(first.assignment()), asynchronous=False)
    everything = _sequences(trial, messages)
    places = np.array([(each.partition() or 0, each.offset() or 0) for each in messages])
    trial.account(reconcile(count, confirmed, everything, lanes=places[:, 0]))
    way, moment = trial.text("way"), int(np.median(times))
    starts = _starts(lab, topic, way, moment)
    trial.record("refused_while_running", not _alter(lab, group, topic, starts), "")
    first.close()
    if way != AUTO:
        trial.wait_until(lambda: _alter(lab, group, topic, starts), "the group to be empty")
    second = lab.consumer("member", group, **QUICK)
    lab.keep(second.close)
    second.subscribe([topic])
    got = _sequences(trial, _until_the_end(trial, second, topic))
    is_wanted = {
        LATEST: np.zeros(count, dtype=bool),
        OFFSET: np.array([offset >= starts[partition] for partition, offset in places]),
        TIMESTAMP: times[everything] >= moment,
    }.get(way, np.ones(count, dtype=bool))
    wanted = everything[is_wanted]
    trial.record("read", len(got), "records")
    trial.record("missed", len(np.setdiff1d(wanted, got)), "records")
    trial.record("extra", len(np.setdiff1d(got, wanted)), "records")


def _send_dated(trial: Trial, topic: str, count: int) -> tuple[NDArray[np.int64], list[int]]:
    """Send records of the past ten minutes, their times in disorder; each one's time, and what was confirmed."""
    messages = trial.lab.workload.messages(count)
    disorder = trial.random("times").uniform(-1, 1, count) * trial.number("disorder_ms")
    times = (time.time() * 1000 - 600_000 + 10 * np.arange(count) + disorder).astype(np.int64)
    confirmed: list[int] = []
    producer = trial.lab.producer("source")
    for number, (key, value) in enumerate(zip(messages.keys, messages.values, strict=True)):
        report = noting(confirmed, number)
        produce(producer, topic, key=key, value=value, timestamp=int(times[number]), on_delivery=report)
    producer.flush(trial.remaining_s)
    return times, confirmed


def _starts(lab: Lab, topic: str, way: str, moment: int) -> dict[int, int]:
    """The offset that a reset of this kind means for each partition."""
    earliest, latest = OffsetSpec.earliest(), OffsetSpec.latest()  # type: ignore[no-untyped-call]
    lows, highs = (_list_offsets(lab, topic, spec) for spec in (earliest, latest))
    if way == LATEST:
        return highs
    if way == OFFSET:
        return {partition: (low + highs[partition]) // 2 for partition, low in lows.items()}
    if way == TIMESTAMP:  # -1: no record is that late
        found = _list_offsets(lab, topic, OffsetSpec.for_timestamp(moment))
        return {partition: offset if offset >= 0 else highs[partition] for partition, offset in found.items()}
    return lows


def _list_offsets(lab: Lab, topic: str, spec: OffsetSpec) -> dict[int, int]:
    asked = {TopicPartition(topic, partition): spec for partition in lab.describe(topic)}

    def ask() -> dict[int, int]:
        return {mark.partition: each.result(ADMIN_S).offset for mark, each in lab.admin.list_offsets(asked).items()}

    return lab.ask_leaders(ask)


def _alter(lab: Lab, group: str, topic: str, starts: dict[int, int]) -> bool:
    """Set the group's offsets, as kafka-consumer-groups --reset-offsets does; False when the broker refuses."""
    marks = [TopicPartition(topic, partition, offset) for partition, offset in starts.items()]
    try:
        done = answer(lab.admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, marks)])[group])
    except KafkaException as refusal:
        if refusal.args[0].code() in (KafkaError.UNKNOWN_MEMBER_ID, KafkaError.NON_EMPTY_GROUP):
            return False
        raise
    return all(mark.error is None for mark in done.topic_partitions)


def _until_the_end(trial: Trial, consumer: Consumer, topic: str) -> list[Message]:
    """What a member reads up to the end of every partition."""
    open_partitions = set(trial.lab.describe(topic))
    messages: list[Message] = []

    def is_over() -> bool:
        for message in consumer.consume(1_000, timeout=0.05):
            if (error := message.error()) is None:
                messages.append(message)
            elif error.code() == KafkaError._PARTITION_EOF:
                open_partitions.discard(message.partition() or 0)
            elif not error.retriable():
                raise KafkaException(error)
        return not open_partitions

    trial.wait_until(is_over, "the end of every partition")
    return messages


def _sequences(trial: Trial, messages: list[Message]) -> NDArray[np.int64]:
    return trial.lab.workload.sequences([message.value() or b"" for message in messages])


# -- replay ------------------------------------------------------------------------------------------------------------


def replay(trial: Trial) -> None:
    """Land a topic with the application's Parquet sink, then again; compare the tables row by row."""
    lab, count = trial.lab, trial.count("records")
    topic = lab.topic("positions", trial.count("partitions"))
    messages = lab.workload.messages(count)
    confirmed = lab.send(topic, messages.keys, messages.values)
    prefix = topic.removesuffix("positions")
    folder = Path(tempfile.mkdtemp(prefix="sg-replay-"))
    lab.keep(lambda: shutil.rmtree(folder, ignore_errors=True))
    original = Landing(lab.bootstrap_servers, prefix, str(folder / "original"), count)
    worker.land(original)
    before = worker.landed(original).collect()
    trial.account(reconcile(count, confirmed, before["sequence"].to_numpy()))
    kills = 0
    if trial.text("into") == SAME:
        _rewind(trial, topic, prefix + "positions-parquet", trial.count("partitions"))
        worker.land(Landing(lab.bootstrap_servers, prefix, original.home, 2 * count, for_s=1.0))
        after = worker.landed(original).collect()
    else:
        if trial.text("into") == KILLED:
            kills = _land_with_kills(trial, prefix, folder / "again", count)
        again = Landing(lab.bootstrap_servers, prefix, str(folder / "again"), count)
        worker.land(again)
        after = worker.landed(again).collect()
    copies = pl.concat([before, after]).group_by(pl.all()).len()
    trial.record("differing_rows", copies.filter(pl.col("len") != 2).height, "rows")
    trial.record("rows_more", after.height - before.height, "rows")
    trial.record("died", kills, "times")


def _land_with_kills(trial: Trial, prefix: str, home: Path, count: int) -> int:
    """Let the sink kill itself at points of its commits, drawn by the seed; how often it did."""
    kills = trial.count("kills")
    points = trial.random("points").integers(1, COMMIT_POINTS * max(1, trial.count("partitions") // kills), kills)
    for point in points:
        process = worker.start(Landing(trial.lab.bootstrap_servers, prefix, str(home), count, dies_at=int(point)))
        trial.lab.keep(process.kill)
        _, said = process.communicate(timeout=trial.remaining_s)
        if process.returncode != -9:
            raise RuntimeError(f"the sink ended with {process.returncode} instead of being killed: {said.decode()}")
    return kills


def _rewind(trial: Trial, topic: str, group: str, partitions: int) -> None:
    """Commit offset 0 for the sink's group as its own static member: its place is kept, so nobody else can."""
    member = trial.lab.consumer("rewinder", group, group_instance_id=f"{group}-0", **_COOPERATIVE)
    try:
        member.subscribe([topic])
        trial.wait_until(lambda: member.poll(0.02) is None and len(member.assignment()) == partitions, "assignment")
        marks = [TopicPartition(topic, number, 0) for number in range(partitions)]
        member.commit(offsets=marks, asynchronous=False)
    finally:
        member.close()


_COOPERATIVE: Final = MappingProxyType({"partition.assignment.strategy": "cooperative-sticky"})


# -- crashes -----------------------------------------------------------------------------------------------------------


def crashes(trial: Trial) -> None:
    """A worker copies a topic and is killed several times; what is lost or doubled in its output?"""
    lab, count, kills = trial.lab, trial.count("records"), trial.count("kills")
    topic, output, group = lab.topic("work", 1), lab.topic("done", 1), lab.group("worker")
    confirmed = lab.send(topic, [None] * count, lab.workload.messages(count).values)
    guarantee, batch = trial.text("guarantee"), trial.count("batch")
    duty = Copying(topic, output, _consumer(lab, group), _producer(lab, group, guarantee), guarantee, batch, 0.001)
    watcher = lab.consumer("watcher", "unused")
    lab.keep(watcher.close)
    for share in trial.random("kills").uniform(0.2, 0.9, kills):
        _work_and_die(trial, duty, watcher, int(share * count / (kills + 1)))
    process = worker.start(duty)
    lab.keep(process.kill)
    trial.wait_until(lambda: _is_alive(process) and _committed(lab, group, topic) == count, "all input committed")
    process.terminate()
    process.communicate(timeout=trial.remaining_s)
    read = lab.read(output, sealed=True, isolation_level="read_committed")
    found = reconcile(count, confirmed, lab.workload.sequences(read.values))
    trial.account(found)
    trial.record("is_exact", found.lost == 0 and found.duplicated == 0, "")
    trial.record("lost_a_kill", found.lost / kills, "records")
    trial.record("doubled_a_kill", found.duplicated / kills, "records")


def _work_and_die(trial: Trial, duty: Copying, watcher: Consumer, written: int) -> None:
    """A worker that is killed when it has written so many records."""
    end = _end(watcher, duty.output) + written
    process = worker.start(duty)
    trial.lab.keep(process.kill)
    trial.wait_until(lambda: _is_alive(process) and _end(watcher, duty.output) >= end, "the worker to work")
    process.kill()
    process.communicate()


def _consumer(lab: Lab, group: str) -> dict[str, Any]:
    settings = {"group.id": group, "group.instance.id": "only", "auto.offset.reset": "earliest"}
    return lab.client("worker", settings | {"enable.auto.commit": False, "fetch.wait.max.ms": 20})


def _producer(lab: Lab, group: str, guarantee: str) -> dict[str, Any]:
    settings: dict[str, Any] = {"enable.idempotence": True, "linger.ms": 0}
    if guarantee == TRANSACTION:
        settings["transactional.id"] = group
    return lab.client(f"worker, {guarantee}", settings)


def _is_alive(process: Any) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"the worker ended by itself: {process.stderr.read().decode()[-300:]}")
    return True


def _end(consumer: Consumer, topic: str) -> int:
    return int(consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=10, cached=False)[1])


def _committed(lab: Lab, group: str, topic: str) -> int:
    asked = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, 0)])
    (found,) = answer(lab.admin.list_consumer_group_offsets([asked], require_stable=True)[group]).topic_partitions
    return int(found.offset)


# -- positions that are gone -------------------------------------------------------------------------------------------


def lost_position(trial: Trial) -> None:
    """A group has read half a partition; its position expires, or points beyond the end; a member comes back."""
    lab, count = trial.lab, trial.count("records")
    topic, group, half = lab.topic("events", 1), lab.group("returns"), count // 2
    confirmed = lab.send(topic, [None] * count, lab.workload.messages(count).values)
    trial.account(reconcile(count, confirmed, lab.workload.sequences(lab.read(topic).values)))
    if trial.text("why") == EXPIRED:
        trial.wait_until(lambda: _commit_expiring(lab, group, topic, half, trial.count("retention_ms")), "a commit")
        trial.wait_until(lambda: _committed(lab, group, topic) < 0, "the position to expire")
    else:
        _alter(lab, group, topic, {0: count + 1_000})
    member = lab.consumer("returning", group, auto_offset_reset=trial.text("reset"), fetch_wait_max_ms=20)
    lab.keep(member.close)
    member.subscribe([topic])
    offsets, is_told = _read_on(trial, member)
    seen = np.unique(np.asarray(offsets, dtype=np.int64))
    trial.record("unread", count - half - int((seen >= half).sum()), "records")
    trial.record("again", int((seen < half).sum()), "records")
    trial.record("was_told", is_told, "")


def _read_on(trial: Trial, member: Consumer) -> tuple[list[int], bool]:
    """Read until nothing has come for `patience_s` since there is an assignment, or an error says why not."""
    offsets: list[int] = []
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < trial.number("patience_s") and trial.remaining_s:
        messages = member.consume(500, timeout=0.05)
        if any((error := message.error()) and not error.retriable() for message in messages):
            return offsets, True
        if messages or not member.assignment():
            quiet_since = time.monotonic()
        offsets += [message.offset() or 0 for message in messages if message.error() is None]
    return offsets, False


def _commit_expiring(lab: Lab, group: str, topic: str, offset: int, retention_ms: int) -> bool:
    """Commit with a retention of the commit's own (OffsetCommit version 2, as clients before Kafka 2.1 sent it).

    The broker's offsets.retention.minutes can't be shorter than a minute; expiry is the same from there on. False while
    no broker is the group's coordinator.
    """

    def text(value: str) -> bytes:
        return struct.pack(f">h{len(value)}s", len(value), value.encode())

    head = struct.pack(">hhi", 8, 2, 1) + text("lab")
    body = text(group) + struct.pack(">i", -1) + text("") + struct.pack(">q", retention_ms)
    body += struct.pack(">i", 1) + text(topic) + struct.pack(">iiqh", 1, 0, offset, -1)
    request = head + body
    for broker in lab.admin.list_topics(timeout=10).brokers.values():
        with socket.create_connection((broker.host, broker.port), timeout=10) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            (length,) = struct.unpack(">i", connection.recv(4, socket.MSG_WAITALL))
            (error,) = struct.unpack(">h", connection.recv(length, socket.MSG_WAITALL)[-2:])
        if error == 0:
            return True
        if error not in (KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_LOAD_IN_PROGRESS):
            raise KafkaException(KafkaError(error))
    return False


# -- transactions ------------------------------------------------------------------------------------------------------


def cost(trial: Trial) -> None:
    """Send as fast as the client can, committing a transaction every so often, or without transactions."""
    lab, count, every_s = trial.lab, trial.count("records"), trial.number("commit_every_ms") / 1000
    topic = lab.topic("bulk", 3)
    values = lab.workload.messages(count).values
    producer = lab.producer("bulk", enable_idempotence=True, **({"transactional.id": topic} if every_s else {}))
    confirmed: list[int] = []
    commits: list[float] = []
    if every_s:
        producer.init_transactions(trial.remaining_s)
        producer.begin_transaction()
    began = last = time.monotonic()
    for number, value in enumerate(values):
        produce(producer, topic, value=value, on_delivery=noting(confirmed, number))
        if every_s and (now := time.monotonic()) - last >= every_s:
            producer.commit_transaction(trial.remaining_s)
            producer.begin_transaction()
            last = time.monotonic()
            commits.append(last - now)
    if every_s:
        producer.commit_transaction(trial.remaining_s)
    producer.flush(trial.remaining_s)
    took = time.monotonic() - began
    trial.record("rate", count / took, "records/s")
    trial.record("commit_time", 1000 * float(np.median(commits)) if commits else float("nan"), "ms")
    read = lab.read(topic, sealed=True, isolation_level="read_committed")
    trial.account(reconcile(count, confirmed, lab.workload.sequences(read.values), lanes=read.partitions))


def orphan(trial: Trial) -> None:
    """A transactional producer falls silent in mid-transaction: how long do whose records wait?"""
    lab, rate, timeout_ms = trial.lab, trial.number("rate"), trial.count("timeout_ms")
    topic = lab.topic("shared", 2)
    total = 2 * int(rate * trial.number("seconds"))
    writer = lab.producer("neighbour", linger_ms=0)
    watch = _Watch(trial, topic, writer, total, rate)
    silent = _begun(trial, topic, timeout_ms)
    lab.keep(silent.purge)
    is_succeeded = trial.text("ends") != SUCCESSOR
    watch.began = time.monotonic()
    confirmed: list[int] = []
    for elapsed, numbers in due(trial, 2 * rate, total):
        for number in numbers:
            produce(
                writer,
                topic,
                value=b"%d" % number,
                partition=number % 2,
                on_delivery=noting(confirmed, number),
            )
        writer.poll(0)
        watch.look()
        if not is_succeeded and elapsed >= trial.number("successor_s"):
            is_succeeded = True
            successor = Producer(_transactional(lab, topic, timeout_ms))
            thread = threading.Thread(target=successor.init_transactions, args=(trial.remaining_s,))
            thread.start()
            lab.keep(thread.join)
    writer.flush(trial.remaining_s)
    trial.wait_until(lambda: watch.look() and watch.is_complete, "every record at both readers")
    arrived = watch.delays["committed"]
    trial.account(reconcile(total, confirmed, np.flatnonzero(~np.isnan(arrived))))
    for kind, delays in watch.delays.items():
        for partition, part in ((0, "shared"), (1, "other")):
            trial.record(f"{kind}_{part}", float(delays[partition::2].max()), "s")
    for number in range(0, total, max(2, total // 200 * 2)):
        for kind, delays in watch.delays.items():
            trial.sample("delay", float(delays[number]), "s", kind, at_s=number / (2 * rate))


def _transactional(lab: Lab, topic: str, timeout_ms: int) -> dict[str, Any]:
    settings = {"transactional.id": topic, "transaction.timeout.ms": timeout_ms, "message.timeout.ms": timeout_ms}
    return lab.client("transactional", settings)


def _begun(trial: Trial, topic: str, timeout_ms: int) -> Producer:
    """A producer with an open transaction, one record of which is in partition 0."""
    producer = Producer(_transactional(trial.lab, topic, timeout_ms))
    producer.init_transactions(trial.remaining_s)
    producer.begin_transaction()
    producer.produce(topic, value=b"-1", partition=0)
    producer.flush(trial.remaining_s)
    return producer


class _Watch:
    """A committed and an uncommitted reader: how long after each record was due did it come?"""

    def __init__(self, trial: Trial, topic: str, writer: Producer, total: int, rate: float) -> None:
        self.delays = {kind: np.full(total, np.nan) for kind in ("committed", "uncommitted")}
        self.began = time.monotonic()
        self._due = np.arange(total) / (2 * rate)
        self._readers: dict[str, Consumer] = {}
        self._awake: set[tuple[str, int]] = set()
        for kind in self.delays:
            consumer = trial.lab.consumer(kind, "unused", isolation_level=f"read_{kind}", fetch_wait_max_ms=10)
            trial.lab.keep(consumer.close)
            consumer.assign([TopicPartition(topic, number, 0) for number in (0, 1)])
            self._readers[kind] = consumer
        for partition in (0, 1):
            writer.produce(topic, value=b"-1", partition=partition)
        writer.flush(trial.remaining_s)
        trial.wait_until(lambda: self.look() and len(self._awake) == 4, "both readers at both partitions")

    @property
    def is_complete(self) -> bool:
        """Both have seen all."""
        return not any(np.isnan(delays).any() for delays in self.delays.values())

    def look(self) -> bool:
        """Take what has come."""
        for kind, consumer in self._readers.items():
            messages = consumer.consume(500, timeout=0.001)
            now = time.monotonic() - self.began
            for message in messages:
                if message.error() is None:
                    self._awake.add((kind, message.partition() or 0))
                    if (number := int(message.value() or b"-1")) >= 0:
                        self.delays[kind][number] = now - self._due[number]
        return True


# -- claims ------------------------------------------------------------------------------------------------------------


def timestamp_misses_nothing(measured: Measured) -> Judgement:
    """Judge: a reset to a moment brings every record from that moment on."""
    trials = measured.trials("resets").filter(pl.col("way") == TIMESTAMP)
    return always(per_repetition(trials, pl.col("missed") == 0), "A reset to a timestamp missed no later record")


def timestamp_is_exact(measured: Measured) -> Judgement:
    """Judge: and no others, when times are in disorder."""
    trials = measured.trials("resets").filter((pl.col("way") == TIMESTAMP) & (pl.col("disorder_ms") > 0))
    return always(per_repetition(trials, pl.col("extra") == 0), "A reset to a timestamp brought no earlier record")


def auto_reset_rewinds(measured: Measured) -> Judgement:
    """Judge: auto.offset.reset=earliest reads everything again."""
    trials = measured.trials("resets").filter(pl.col("way") == AUTO)
    return always(per_repetition(trials, pl.col("missed") == 0), "The group read everything again")


def running_groups_refuse(measured: Measured) -> Judgement:
    """Judge: the offsets of a group with members can't be altered from outside."""
    trials = measured.trials("resets")
    return always(per_repetition(trials, pl.col("refused_while_running") == 1), "The broker refused every reset")


def replay_is_equal(measured: Measured) -> Judgement:
    """Judge: tables landed again equal the original."""
    trials = measured.trials("replay").filter(pl.col("into") != SAME)
    return always(per_repetition(trials, pl.col("differing_rows") == 0), "The replayed table was the same row by row")


def rewinding_doubles(measured: Measured) -> Judgement:
    """Judge: a rewound group makes its sink write rows again."""
    trials = measured.trials("replay").filter(pl.col("into") == SAME)
    return always(per_repetition(trials, pl.col("rows_more") > 0), "The sink wrote rows again after the rewinding")


def _crashes(measured: Measured, guarantee: str) -> pl.DataFrame:
    return measured.trials("crashes", with_void=True).filter(pl.col("guarantee") == guarantee)


def before_never_doubles(measured: Measured) -> Judgement:
    """Judge: at most once."""
    is_kept = per_repetition(_crashes(measured, BEFORE), pl.col("duplicated") == 0)
    return always(is_kept, "Committing before the work doubled no record")


def before_loses_little(measured: Measured) -> Judgement:
    """Judge: the loss of a crash that commits before the work, against its commit interval."""
    trials = _crashes(measured, BEFORE)
    is_bounded = (pl.col("lost") > 0) & (pl.col("lost_a_kill") <= pl.col("batch"))
    return always(per_repetition(trials, is_bounded), "Records were lost, at most one commit interval of them a crash,")


def after_never_loses(measured: Measured) -> Judgement:
    """Judge: at least once."""
    is_kept = per_repetition(_crashes(measured, AFTER), pl.col("lost") == 0)
    return always(is_kept, "Committing after the work lost no record")


def transactions_are_exact(measured: Measured) -> Judgement:
    """Judge: exactly once."""
    trials = _crashes(measured, TRANSACTION)
    return always(per_repetition(trials, pl.col("is_exact") == 1), "Transactions left every record exactly once")


def interval_decides_duplicates(measured: Measured) -> Judgement:
    """Judge: duplicates of the longest against the shortest commit interval."""
    trials = _crashes(measured, AFTER).with_columns(pl.col("duplicated").clip(lower_bound=1))
    intervals = sorted(set(trials["batch"]))
    if len(intervals) < 2:
        raise NotMeasured("one commit interval only")
    shortest, longest = intervals[0], intervals[-1]
    pairs = paired(trials, "duplicated", pl.col("batch") == longest, pl.col("batch") == shortest)
    says = f"Duplicates when committing every {longest} records against every {shortest}"
    return compare(ratio_interval(*pairs), "×", says, above=2)


def earliest_skips_nothing(measured: Measured) -> Judgement:
    """Judge: reset=earliest after a lost position."""
    trials = measured.trials("lost_position").filter(pl.col("reset") == "earliest")
    return always(per_repetition(trials, pl.col("unread") == 0), "Under earliest nothing stayed unread")


def latest_goes_on(measured: Measured) -> Judgement:
    """Judge: reset=latest after a lost position."""
    trials = measured.trials("lost_position").filter(pl.col("reset") == "latest")
    return always(per_repetition(trials, pl.col("unread") == 0), "Under latest nothing stayed unread")


def error_stops(measured: Measured) -> Judgement:
    """Judge: reset=error after a lost position."""
    trials = measured.trials("lost_position").filter(pl.col("reset") == "error")
    return always(per_repetition(trials, pl.col("was_told") == 1), "Under error the member was told")


def transactions_are_cheap(measured: Measured) -> Judgement:
    """Judge: rate with a commit every 100 ms against none."""
    pairs = paired(measured.trials("cost"), "rate", pl.col("commit_every_ms") == 100, pl.col("commit_every_ms") == 0)
    return compare(ratio_interval(*pairs), "×", "Rate with a transaction every 100 ms against none", above=0.97)


def short_transactions_cost_more(measured: Measured) -> Judgement:
    """Judge: rate with a commit every 10 ms against one every 100 ms."""
    pairs = paired(measured.trials("cost"), "rate", pl.col("commit_every_ms") == 10, pl.col("commit_every_ms") == 100)
    return compare(ratio_interval(*pairs), "×", "Rate with a transaction every 10 ms against every 100 ms", below=0.67)


def orphans_end_in_time(measured: Measured) -> Judgement:
    """Judge: the stall against the time-out plus a check."""
    trials = measured.trials("orphan").filter(pl.col("ends") == TIME_OUT)
    allowed = (pl.col("timeout_ms") + CHECK_MS) / 1000 + 0.3
    return always(
        per_repetition(trials, pl.col("committed_shared") <= allowed),
        f"The stall ended within transaction.timeout.ms and one check ({CHECK_MS} ms; 0.3 s allowed)",
    )


def _against_the_stall(measured: Measured, metric: str, says: str) -> Judgement:
    trials = measured.trials("orphan").filter(pl.col("ends") == TIME_OUT)
    per = trials.group_by("repetition").agg((pl.col(metric) / pl.col("committed_shared")).median().alias("share"))
    return compare(median_interval(per["share"].to_numpy()), "of the stall", says, below=0.2)


def other_partitions_go_on(measured: Measured) -> Judgement:
    """Judge: committed readers of a partition that the orphan has not written to."""
    return _against_the_stall(measured, "committed_other", "Longest wait in the partition without the orphan")


def uncommitted_readers_go_on(measured: Measured) -> Judgement:
    """Judge: uncommitted readers of the orphan's partition."""
    return _against_the_stall(measured, "uncommitted_shared", "Longest wait of the uncommitted reader")


def successor_ends_it(measured: Measured) -> Judgement:
    """Judge: how long after the successor's start the stall goes on."""
    trials = measured.trials("orphan").filter(pl.col("ends") == SUCCESSOR)
    after = (trials["committed_shared"] - trials["successor_s"]).to_numpy()
    return compare(median_interval(after), "s", "Stall after a successor's start", below=1)


# -- figures -----------------------------------------------------------------------------------------------------------


def draw_crashes(measured: Measured) -> Drawing:
    """Records lost and doubled a crash, by guarantee and commit interval."""
    trials = measured.trials("crashes", with_void=True)
    designs = [
        (guarantee, batch)
        for guarantee in (BEFORE, AFTER, TRANSACTION)
        for batch in sorted(trials.filter(pl.col("guarantee") == guarantee)["batch"].unique())
    ]
    figure, axes = figures.panels(2, width=9.0, height=2.8)
    labels = [f"{guarantee},\nevery {batch}" for guarantee, batch in designs]
    for axis, metric, colour in zip(axes, ("lost_a_kill", "doubled_a_kill"), (RED, ORANGE), strict=True):
        groups = [
            trials.filter((pl.col("guarantee") == guarantee) & (pl.col("batch") == batch))[metric].to_list()
            for guarantee, batch in designs
        ]
        figures.bars(axis, labels, groups, colour)
    axes[0].set_title("Lost")
    axes[1].set_title("Doubled")
    axes[0].set_xlabel("records lost a crash")
    axes[1].set_xlabel("records doubled a crash")
    axes[1].set_yticklabels([])
    return figure


def draw_positions(measured: Measured) -> Drawing:
    """What a member reads after a reset, and after its group's position is gone."""
    trials = measured.trials("resets")
    designs = trials.select("way", "disorder_ms").unique().sort("way", "disorder_ms").rows()
    figure, axes = figures.panels(2, width=10.0, height=3.4)
    wrong = [
        trials.filter((pl.col("way") == way) & (pl.col("disorder_ms") == disorder))
        .with_columns(wrong=pl.col("missed") + pl.col("extra"))["wrong"]
        .to_list()
        for way, disorder in designs
    ]
    figures.bars(
        axes[0],
        [f"{way}\n(disorder ± {disorder:g} ms)" if disorder else way for way, disorder in designs],
        wrong,
        form="{:,.0f}",
    )
    axes[0].set_title("After a reset")
    axes[0].set_xlabel("records read against the wish, or not read")
    gone = measured.trials("lost_position")
    cases = gone.select("why", "reset").unique().sort("why", "reset").rows()
    labels = [f"{why}: {reset}" for why, reset in cases]
    places = np.arange(len(labels))[::-1]
    for shift, metric, colour, label in ((0.2, "unread", RED, "not read"), (-0.2, "again", ORANGE, "read again")):
        values = [
            float(gone.filter((pl.col("why") == why) & (pl.col("reset") == reset))[metric].median() or 0)  # type: ignore[arg-type]
            for why, reset in cases
        ]
        axes[1].barh(places + shift, values, height=0.36, color=colour, label=label)
    told = [
        gone.filter((pl.col("why") == why) & (pl.col("reset") == reset))["was_told"].min() == 1 for why, reset in cases
    ]
    axes[1].set_yticks(
        places, [f"{label}{' (told)' if is_told else ''}" for label, is_told in zip(labels, told, strict=True)]
    )
    axes[1].grid(visible=False, axis="y")
    axes[1].set_title("After the position is gone")
    axes[1].set_xlabel("records (median)")
    axes[1].legend()
    return figure


def draw_transactions(measured: Measured) -> Drawing:
    """Rate by commit interval; delay of a neighbour's records beside an orphan."""
    trials = measured.trials("cost")
    figure, axes = figures.panels(2, width=10.0, height=3.0)
    levels = sorted(trials["commit_every_ms"].unique(), key=lambda each: (each > 0, -each))
    groups = [trials.filter(pl.col("commit_every_ms") == each)["rate"].to_list() for each in levels]
    labels = [f"commit every {each} ms" if each else "no transactions" for each in levels]
    figures.bars(axes[0], labels, groups, BLUE, form="{:,.0f}")
    figures.rates(axes[0], "x")
    axes[0].set_title("Rate of sending")
    axes[0].set_xlabel("records a second")
    delays = measured.samples("orphan", "delay")
    kinds = ((TIME_OUT, "committed", RED), (SUCCESSOR, "committed", PURPLE), (TIME_OUT, "uncommitted", GREEN))
    for ends, kind, colour in kinds:
        chosen = delays.filter((pl.col("ends") == ends) & (pl.col("subject") == kind))
        for number, (_, one) in enumerate(chosen.group_by("trial", maintain_order=True)):
            label = f"read_{kind}, ended by {ends}" if number == 0 else None
            axes[1].plot(one["at_s"], one["value"], color=colour, alpha=0.7, linewidth=1.2, label=label)
    axes[1].axhline(
        float(delays["timeout_ms"][0]) / 1000, color=GREY, linestyle="--", linewidth=1, label="transaction.timeout.ms"
    )
    axes[1].set_title("Records of others beside an orphan")
    axes[1].set_xlabel("record due at, seconds after the orphan fell silent")
    axes[1].set_ylabel("read after, seconds")
    axes[1].legend()
    return figure


# -- the experiment ----------------------------------------------------------------------------------------------------


def _way_is_telling(levels: Levels) -> bool:
    return levels["way"] == TIMESTAMP or levels["disorder_ms"] == 0


def _batch_is_telling(levels: Levels) -> bool:
    return levels["guarantee"] == AFTER or levels["batch"] == 50


def _loss_is_telling(levels: Levels) -> bool:
    return levels["why"] == EXPIRED or levels["reset"] != "latest"


WAYS = (EARLIEST, LATEST, OFFSET, TIMESTAMP, AUTO)

OFFSETS = Experiment(
    name="offsets",
    title="Offsets and reprocessing",
    demand="D5",
    question=(
        "What does a group read after its offsets are reset, does a replay give what the original gave, what do "
        "crashes lose or double under each guarantee, what happens when a position is gone, and what do transactions "
        "cost?"
    ),
    broker_settings=MappingProxyType(
        {
            "offsets.retention.check.interval.ms": str(CHECK_MS),
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": str(CHECK_MS),
        }
    ),
    scenes=(
        Scene(
            "resets",
            "Records of the past ten minutes, 10 ms apart, their timestamps in disorder by up to `disorder_ms`, are "
            "read by a group to the end and committed. The group's offsets are set to the earliest, the latest, the "
            "middle offset, or by the timestamp of the middle (first while the member runs, then without it); or "
            "nothing is reset and the next member has auto.offset.reset=earliest. What that member reads is compared "
            "with what was wished: `missed` and `extra`.",
            resets,
            (
                factor("way", "of the reset", (OFFSET, TIMESTAMP, AUTO), WAYS),
                factor("disorder_ms", "of the timestamps, ±", (0.0, 500.0), (0.0, 500.0)),
                fixed("partitions", "of the topic", 3),
                fixed("records", "in the topic", 600, 3_000),
            ),
            keep=_way_is_telling,
            trial_s=1.0,
            columns=("read", "missed", "extra", "refused_while_running"),
        ),
        Scene(
            "replay",
            "The application's own Parquet sink lands a topic; then it lands it again: into a fresh folder; into a "
            "fresh folder while it is killed `kills` times at seeded points of its commits (before and after writing, "
            "fsync, link, and syncing the folder); or on top of the original, after the group was rewound to offset "
            "0. Both tables are compared row by row, offsets included.",
            replay,
            (
                factor("into", "what lands it again", (KILLED, SAME), (FRESH, KILLED, SAME)),
                fixed("records", "in the topic", 2_000, 20_000),
                fixed("partitions", "of the topic", 6),
                fixed("kills", "of the sink", 2),
            ),
            trial_s=2.6,
            columns=("differing_rows", "rows_more", "died", "lost", "duplicated"),
        ),
        Scene(
            "crashes",
            "A worker process takes records one by one (a millisecond each) from one topic to another and commits "
            "every `batch` records: before the work, after it, or together with its output in one transaction. It is "
            "killed (SIGKILL) `kills` times in mid-work, at seeded moments, and a successor takes its place. The "
            "output is read by a read_committed reader and reconciled with the input.",
            crashes,
            (
                factor(
                    "guarantee",
                    "when positions are committed",
                    (BEFORE, AFTER, TRANSACTION),
                    (BEFORE, AFTER, TRANSACTION),
                ),
                factor("batch", "records a commit", (50,), (10, 50), (10, 50, 200)),
                fixed("records", "to be worked on", 250, 500, 1_500),
                fixed("kills", "of the worker", 1, 2),
            ),
            keep=_batch_is_telling,
            trial_s=2.5,
            allows_loss=True,
            columns=("lost_a_kill", "doubled_a_kill", "is_exact", "reordered"),
        ),
        Scene(
            "lost_position",
            "A group has read half a partition when its position expires or, as after a restore, points beyond the "
            "end. A member comes back under each auto.offset.reset. (The commit carries its own short retention, "
            "because offsets.retention.minutes can't be shorter than a minute.)",
            lost_position,
            (
                factor("why", "the position is gone", (EXPIRED,), (EXPIRED, BEYOND)),
                factor("reset", "auto.offset.reset", ("earliest", "latest", "error"), ("earliest", "latest", "error")),
                fixed("records", "in the partition", 200),
                fixed("retention_ms", "of the commit", 100),
                fixed("patience_s", "seconds without a record after which reading is over", 0.3),
            ),
            keep=_loss_is_telling,
            trial_s=0.65,
            needs=Needs(broker_control=True),
            columns=("unread", "again", "was_told"),
        ),
        Scene(
            "cost",
            "An idempotent producer sends as fast as it can, without transactions or committing one every "
            "`commit_every_ms`; then all is read back.",
            cost,
            (
                factor("commit_every_ms", "between commits; 0: no transactions", (0, 100), (0, 10, 100)),
                fixed("records", "sent", 10_000, 40_000),
            ),
            trial_s=1.3,
            columns=("rate", "commit_time", "lost", "duplicated"),
        ),
        Scene(
            "orphan",
            "A transactional producer writes one record into partition 0 and falls silent. Another producer writes "
            "steadily to partitions 0 and 1; a read_committed and a read_uncommitted reader take what comes, and each "
            "record's delay counts from when it was due. The transaction ends by its time-out (the broker looks every "
            f"{CHECK_MS} ms; default: ten seconds), or because a successor starts with the same transactional.id.",
            orphan,
            (
                factor("ends", "the transaction by", (TIME_OUT, SUCCESSOR), (TIME_OUT, SUCCESSOR)),
                fixed("timeout_ms", "transaction.timeout.ms", 1_500),
                fixed("rate", "records a second and partition", 100.0),
                fixed("seconds", "of load", 1.9, 2.1),
                fixed("successor_s", "when the successor starts", 0.3),
            ),
            trial_s=2.7,
            columns=("committed_shared", "committed_other", "uncommitted_shared", "uncommitted_other"),
        ),
    ),
    claims=(
        Claim(
            "timestamp-misses-nothing",
            "A reset to a timestamp brings every record from that moment on.",
            "Apache Kafka documentation, KafkaConsumer.offsetsForTimes: the earliest offset with such a timestamp or "
            "later",
            timestamp_misses_nothing,
        ),
        Claim(
            "timestamp-is-exact",
            "A reset to a timestamp brings only records from that moment on (timestamps half a second in disorder).",
            "folklore",
            timestamp_is_exact,
        ),
        Claim(
            "auto-offset-reset-rewinds",
            "auto.offset.reset=earliest makes a restarted group read the topic from its beginning.",
            "folklore; the documentation: what to do when there is no initial offset",
            auto_reset_rewinds,
        ),
        Claim(
            "running-groups-refuse",
            "The offsets of a group can't be reset while a member runs.",
            "Apache Kafka documentation, kafka-consumer-groups: “the consumer instances should be inactive”",
            running_groups_refuse,
        ),
        Claim(
            "replay-equals-original",
            "A replay into a fresh sink gives the original row by row, also when the sink is killed on its way.",
            "this project's slot protocol (exactly once by the files' own chain)",
            replay_is_equal,
        ),
        Claim(
            "rewinding-doubles",
            "Rewinding a sink's group makes the sink write everything a second time.",
            "folklore, true of sinks that resume where the group's offset says",
            rewinding_doubles,
        ),
        Claim(
            "commit-before-never-doubles",
            "Committing before the work is at most once: nothing is doubled by crashes.",
            "Apache Kafka documentation, “Message Delivery Semantics”",
            before_never_doubles,
        ),
        Claim(
            "commit-before-loses-an-interval",
            "Committing before the work loses records in a crash, but never more than one commit interval.",
            "derived from Apache Kafka documentation, “Message Delivery Semantics”",
            before_loses_little,
        ),
        Claim(
            "commit-after-never-loses",
            "Committing after the work is at least once: nothing is lost by crashes.",
            "Apache Kafka documentation, “Message Delivery Semantics”",
            after_never_loses,
        ),
        Claim(
            "transactions-are-exactly-once",
            "Output and offsets in one transaction are exactly once under crashes, to a read_committed reader.",
            "KIP-98 and KIP-447",
            transactions_are_exact,
        ),
        Claim(
            "duplicates-follow-the-interval",
            "A commit interval five times as long at least doubles what a crash doubles.",
            "folklore: “commit more often to have fewer duplicates”",
            interval_decides_duplicates,
        ),
        Claim(
            "earliest-skips-nothing",
            "With auto.offset.reset=earliest a group whose position is gone skips nothing.",
            "Apache Kafka documentation, auto.offset.reset",
            earliest_skips_nothing,
        ),
        Claim(
            "latest-goes-on",
            "A group whose offsets have expired goes on where it was (by default auto.offset.reset=latest).",
            "folklore; offsets.retention.minutes is seven days, the data may stay longer",
            latest_goes_on,
        ),
        Claim(
            "error-stops",
            "With auto.offset.reset=error the member is told that its position is gone.",
            "librdkafka, CONFIGURATION.md, auto.offset.reset",
            error_stops,
        ),
        Claim(
            "transactions-cost-three-percent",
            "A transaction every 100 ms costs no more than 3 % of the rate.",
            "Confluent, “Transactions in Apache Kafka” (2017): “only a 3 % degradation in throughput”",
            transactions_are_cheap,
        ),
        Claim(
            "short-transactions-cost-more",
            "Committing every 10 ms instead of every 100 ms takes at least a third of the rate.",
            "Confluent, “Transactions in Apache Kafka” (2017): overhead is per transaction, so larger ones are better",
            short_transactions_cost_more,
        ),
        Claim(
            "orphans-end-by-the-time-out",
            "A read_committed reader waits for an orphan no longer than transaction.timeout.ms and one broker check.",
            "Apache Kafka documentation, transaction.timeout.ms and "
            "transaction.abort.timed.out.transaction.cleanup.interval.ms",
            orphans_end_in_time,
        ),
        Claim(
            "orphans-block-their-partitions-only",
            "An orphan holds up only the partitions that it has written to.",
            "KIP-98: the last stable offset is a partition's",
            other_partitions_go_on,
        ),
        Claim(
            "uncommitted-readers-do-not-wait",
            "A read_uncommitted reader is not held up by an orphan.",
            "Apache Kafka documentation, isolation.level",
            uncommitted_readers_go_on,
        ),
        Claim(
            "a-successor-ends-it",
            "A producer that starts with the orphan's transactional.id ends the stall within a second.",
            "KIP-98: initTransactions aborts what a former instance has left open",
            successor_ends_it,
        ),
    ),
    figures=(
        Figure("crashes", "What a crash loses or doubles, by guarantee and records a commit.", draw_crashes),
        Figure("positions", "Reading after a reset, and after the group's position is gone.", draw_positions),
        Figure(
            "transactions",
            "What transactions cost, and how long others' records wait beside an orphaned one.",
            draw_transactions,
        ),
    ),
    use_cases=(
        "Replay is what a log has over a queue: keep raw events long enough and a mended program can read them again, "
        "into a fresh table that is compared and then takes the old one's place. Reset by timestamp when the question "
        "is about time, a little earlier than needed, and let the program drop what lies before; reset only groups "
        "that are stopped. Commit before the work only where a lost record is cheaper than a doubled one (a "
        "notification, a sample); commit after the work where the effect is idempotent; use transactions where both "
        "input and output are topics, with commits of a hundred milliseconds or more; and where the output is files "
        "or a database, keep the position there, as this application's sinks do, because then neither a crash nor a "
        "rewound group can double a row. Set auto.offset.reset=error for whatever must not skip or repeat in silence, "
        "keep offsets.retention.minutes above the longest absence of a group, and give transactions a short time-out "
        "and a stable transactional.id, so that an orphan does not hold up the readers of its partitions."
    ),
)
