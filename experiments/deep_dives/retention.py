"""Retention and compaction: when records really go, what disk they take until then, and what a late reader is told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import numpy as np
import polars as pl
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from matplotlib.figure import Figure as Drawing
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from experiments import figures
from experiments.experiment import Experiment, Figure, Needs, Scene, factor, fixed
from experiments.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED
from experiments.findings import Claim, Judgement, always, compare, per_repetition
from experiments.lab import ADMIN_S, produce
from experiments.load import due
from experiments.measurements import Measured
from experiments.statistics import median_interval
from experiments.trial import Trial

MIB = 1024**2
CHECK_MS = 300
LOOK_S = 0.1


# -- trials ------------------------------------------------------------------------------------------------------------


def by_time(trial: Trial) -> None:
    """Send steadily under retention.ms; watch how old the oldest readable record is."""
    lab, rate = trial.lab, trial.number("rate")
    topic = lab.topic("ages", 1, 1, retention_ms=trial.text("retention_ms"), segment_ms=trial.text("segment_ms"))
    total = int(rate * trial.number("seconds"))
    values = lab.workload.messages(total).values
    producer, consumer = lab.producer("steady", linger_ms=0), _reader(trial, topic)
    began, look_s = time.monotonic(), 0.0
    ages: list[float] = []
    for elapsed, numbers in due(trial, rate, total):
        for number in numbers:
            produce(producer, topic, value=values[number])
        if elapsed >= look_s:
            look_s = elapsed + LOOK_S
            ages.append(elapsed - _low(consumer, topic) / rate)
            trial.sample("oldest_age", ages[-1], "s", "oldest", at_s=elapsed)
    producer.flush(trial.remaining_s)
    ended = time.monotonic()
    trial.wait_until(lambda: _low(consumer, topic) == total, "the last record to go", 20.0)
    trial.record("oldest_ever", max(ages), "s")
    trial.record("overstay", max(ages) * 1000 / trial.number("retention_ms"), "× retention.ms")
    trial.record("last_gone_after", time.monotonic() - ended, "s")
    trial.sample("oldest_age", time.monotonic() - began - total / rate, "s", "end")


def by_size(trial: Trial) -> None:
    """Send steadily under retention.bytes; watch the partition's files."""
    lab, limit = trial.lab, trial.number("retention_mib") * MIB
    delay = trial.text("file_delete_delay_ms")
    settings = {"retention_bytes": f"{int(limit)}", "segment_bytes": f"{MIB}", "file_delete_delay_ms": delay}
    topic = lab.topic("sizes", 1, 1, **settings)
    leader, _, _ = lab.describe(topic)[0]
    folder = lab.control.data_folder(leader) / f"{topic}-0"
    values = lab.workload.messages(1_000).values
    size = float(np.mean([len(value) for value in values]))
    rate = trial.number("mib_per_s") * MIB / size
    total = int(trial.number("sent_mib") * MIB / size)
    producer, look_s, sizes = lab.producer("steady"), 0.0, [0]
    for elapsed, numbers in due(trial, rate, total):
        for number in numbers:
            produce(producer, topic, value=values[number % len(values)])
        if elapsed >= look_s:
            look_s = elapsed + LOOK_S
            sizes.append(_disk(folder))
            trial.sample("disk", sizes[-1] / MIB, "MiB", "partition", at_s=elapsed)
            trial.sample("disk", (numbers.stop * size) / MIB, "MiB", "sent", at_s=elapsed)
    producer.flush(trial.remaining_s)
    settled = _settled(trial, folder, 2 * CHECK_MS / 1000 + int(delay) / 1000 + 0.3)
    trial.record("peak_disk", max(sizes) / limit, "× retention.bytes")
    trial.record("settled_disk", settled / limit, "× retention.bytes")


def compaction(trial: Trial) -> None:
    """Update every key several times, delete some; wait for the cleaner; what is still there, and is it right?"""
    lab, keys, updates = trial.lab, trial.count("keys"), trial.count("updates")
    policy = trial.text("policy")
    topic = lab.topic(
        "state", 1, 1, cleanup_policy=policy, segment_ms="200", min_cleanable_dirty_ratio=trial.text("dirty_ratio"),
        retention_ms="1500", delete_retention_ms=trial.text("delete_retention_ms"),
    )  # fmt: skip
    random, names = trial.random("keys"), [b"vehicle-%03d" % number for number in range(keys)]
    order = np.concatenate([random.permutation(keys) for _ in range(updates)])
    values = lab.workload.messages(len(order)).values
    lab.send(topic, [names[key] for key in order], values)
    last = {names[key]: values[place] for place, key in enumerate(order)}
    gone = names[: keys // 5]
    producer = lab.producer("tombstones")
    for key in gone:
        producer.produce(topic, key=key, value=None)
        last[key] = b""
    producer.flush(trial.remaining_s)
    began = time.monotonic()
    _watch_cleaner(trial, topic, began)
    again = names[len(gone) : len(gone) + keys // 3]  # a little dirt on a clean log
    lab.send(topic, list(again), values[: len(again)])
    last |= dict(zip(again, values, strict=False))
    _watch_cleaner(trial, topic, began)
    sent = len(order) + len(gone) + len(again)
    read, offsets = _state(trial, topic)
    stale = sum(last[key] != value for key, value in read)
    present = {key for key, value in read if last[key] == value}
    alive = set(names) - set(gone)
    trial.record("readable", len(read), "records")
    trial.record("removed", 1 - len(read) / sent, "of all records")
    trial.record("stale", stale, "records")
    trial.record("latest_kept", len(present & alive) / len(alive), "of all live keys")
    trial.record("tombstones_left", sum(value == b"" for _, value in read), "records")
    trial.record("has_gaps", bool(len(offsets)) and int(offsets[-1]) >= len(read), "")


def _watch_cleaner(trial: Trial, topic: str, began: float) -> None:
    """Give the cleaner time, and count what is readable meanwhile."""
    for moment in _moments(trial, trial.number("patience_s")):
        # A record beside the state, now and then: without it the last segment stays open, and is never cleaned.
        trial.lab.send(topic, [b"clock"], [b"tick"])
        trial.sample("readable", len(_state(trial, topic)[0]), "records", "topic", at_s=moment - began)


def late_reader(trial: Trial) -> None:
    """A reader comes back after what it had not read yet was deleted: what is it told, what does it miss?"""
    lab, count, reset = trial.lab, trial.count("records"), trial.text("reset")
    topic, group = lab.topic("missed", 1), lab.group("late")
    messages = lab.workload.messages(count)
    lab.send(topic, messages.keys, messages.values)
    first = lab.consumer("reader", group)
    first.assign([TopicPartition(topic, 0, 0)])
    seen = len(trial.wait_until(lambda: first.consume(count // 4, 1.0), "the first records"))
    first.commit(offsets=[TopicPartition(topic, 0, seen)], asynchronous=False)
    first.close()
    cut = TopicPartition(topic, 0, count // 2)
    lab.ask_leaders(lambda: lab.admin.delete_records([cut])[cut].result(ADMIN_S))
    again = lab.consumer("late", group, auto_offset_reset=reset)
    lab.keep(again.close)
    again.assign([TopicPartition(topic, 0, seen)])
    read, errors = _read_on(again, trial)
    trial.record("missed", count - seen - read, "records")
    trial.record("deleted_unread", count // 2 - seen, "records")
    trial.record("was_told", any(error.code() in _OUT_OF_RANGE for error in errors), "")


_OUT_OF_RANGE = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)


def overtaken(trial: Trial) -> None:
    """A reader slower than the stream, under a short retention: how much is deleted before its eyes?"""
    lab, rate = trial.lab, trial.number("rate")
    topic = lab.topic("fast", 1, 1, retention_ms=trial.text("retention_ms"), segment_ms="200")
    total = int(rate * trial.number("seconds"))
    values = lab.workload.messages(total).values
    producer = lab.producer("steady", linger_ms=0)
    settings = {"auto_offset_reset": trial.text("reset"), "queued_min_messages": 1, "max_partition_fetch_bytes": 4096}
    reader = lab.consumer("slow", lab.group("slow"), fetch_message_max_bytes=4096, **settings)
    lab.keep(reader.close)
    reader.assign([TopicPartition(topic, 0, 0)])
    offsets: list[int] = []
    errors, credit, last = 0, 0.0, 0.0
    for elapsed, numbers in due(trial, rate, total):
        for number in numbers:
            produce(producer, topic, value=values[number])
        credit, last = min(credit + (elapsed - last) * trial.number("read_rate"), 20.0), elapsed
        for message in reader.consume(int(credit), timeout=0) if credit >= 1 else []:
            if (error := message.error()) is not None:
                errors += error.code() in _OUT_OF_RANGE
            else:
                credit -= 1
                offsets.append(message.offset() or 0)
    producer.flush(trial.remaining_s)
    jumps = np.diff(np.array([-1, *offsets])) - 1
    trial.record("skipped", int(jumps.sum()), "records")
    trial.record("largest_jump", int(jumps.max(initial=0)), "records")
    trial.record("was_told", errors > 0, "")


# -- what the trials share ---------------------------------------------------------------------------------------------


def _reader(trial: Trial, topic: str) -> Consumer:
    consumer = trial.lab.consumer("watcher", "unused")
    trial.lab.keep(consumer.close)
    consumer.assign([TopicPartition(topic, 0, 0)])
    return consumer


# A client's first broker may not have heard of a new topic yet, nor of its leader.
@retry(retry=retry_if_exception_type(KafkaException), stop=stop_after_delay(10), wait=wait_fixed(0.05), reraise=True)
def _low(consumer: Consumer, topic: str) -> int:
    """The oldest readable offset."""
    low, _ = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=10, cached=False)
    return int(low)


def _disk(folder: Path) -> int:
    """Bytes of a partition's records on disk, those that wait to be deleted included."""
    sizes = 0
    for path in [*folder.glob("*.log"), *folder.glob("*.log.deleted")]:
        try:
            sizes += path.stat().st_size
        except FileNotFoundError:
            continue
    return sizes


def _settled(trial: Trial, folder: Path, quiet_s: float) -> int:
    """The partition's size once it has not changed for `quiet_s`."""
    since, size = time.monotonic(), _disk(folder)

    def is_quiet() -> bool:
        nonlocal since, size
        now = _disk(folder)
        if now != size:
            since, size = time.monotonic(), now
        return time.monotonic() - since > quiet_s

    trial.wait_until(is_quiet, "the files to stop changing")
    return size


def _moments(trial: Trial, seconds: float) -> Iterator[float]:
    """About three moments a second for so long."""
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        yield now
        time.sleep(min(0.3, trial.remaining_s))


def _state(trial: Trial, topic: str) -> tuple[list[tuple[bytes, bytes]], np.ndarray]:
    """Key and value of each readable record of the state, and the offsets."""
    read = trial.lab.read(topic)
    pairs = [(key or b"", value) for key, value in zip(read.keys, read.values, strict=True)]
    return [pair for pair in pairs if pair[0] != b"clock"], read.offsets


def _read_on(consumer: Consumer, trial: Trial) -> tuple[int, list[KafkaError]]:
    """Read until nothing comes for a while or an error stops it: records and errors."""
    read = 0
    errors: list[KafkaError] = []
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < trial.number("patience_s"):
        try:
            messages = consumer.consume(500, 0.1)
        except KafkaException as stopped:
            errors.append(stopped.args[0])
            break
        errors += [error for message in messages if (error := message.error()) is not None]
        if records := sum(message.error() is None for message in messages):
            read, quiet_since = read + records, time.monotonic()
    return read, errors


# -- claims ------------------------------------------------------------------------------------------------------------


def goes_on_time(measured: Measured) -> Judgement:
    """Judge: the oldest record ever readable, in units of retention.ms, over all segment sizes."""
    trials = measured.trials("by_time")
    worst = trials.group_by("repetition").agg(pl.col("overstay").max())["overstay"]
    return compare(median_interval(worst.to_numpy()), "× retention.ms", "Age of the oldest readable record", below=1.2)


def short_segments_help(measured: Measured) -> Judgement:
    """Judge: overstay is bounded by retention + segment + two checks."""
    bound = pl.col("retention_ms") + pl.col("segment_ms") + 3 * CHECK_MS
    trials = measured.trials("by_time")
    return always(
        per_repetition(trials, pl.col("oldest_ever") * 1000 <= bound),
        "No record outlived retention.ms + segment.ms + three checks",
    )


def bytes_bound_disk(measured: Measured) -> Judgement:
    """Judge: peak use of disk against retention.bytes."""
    trials = measured.trials("by_size")
    worst = trials.group_by("repetition").agg(pl.col("peak_disk").max())["peak_disk"]
    return compare(median_interval(worst.to_numpy()), "× retention.bytes", "Largest use of disk", below=1.1)


def one_value_a_key(measured: Measured) -> Judgement:
    """Judge: no superseded value is readable after the cleaner had time."""
    trials = measured.trials("compaction").filter(pl.col("policy") == "compact")
    return always(per_repetition(trials, pl.col("stale") == 0), "No superseded value was readable")


def latest_stays(measured: Measured) -> Judgement:
    """Judge: the latest value of every live key is there under compact."""
    trials = measured.trials("compaction").filter(pl.col("policy") == "compact")
    return always(per_repetition(trials, pl.col("latest_kept") == 1), "Each live key's latest value was there")


def both_policies_keep(measured: Measured) -> Judgement:
    """Judge: the same under compact,delete."""
    trials = measured.trials("compaction").filter(pl.col("policy") == "compact,delete")
    return always(per_repetition(trials, pl.col("latest_kept") == 1), "Each live key's latest value was there")


def offsets_stay(measured: Measured) -> Judgement:
    """Judge: records keep their offsets when others between them go."""
    trials = measured.trials("compaction").filter((pl.col("removed") > 0) & (pl.col("policy") == "compact"))
    return always(per_repetition(trials, pl.col("has_gaps") == 1), "Offsets had gaps where records had gone")


def reader_is_told(measured: Measured) -> Judgement:
    """Judge: a late reader under auto.offset.reset=earliest or latest notices."""
    trials = measured.trials("late_reader").filter(pl.col("reset") != "error")
    return always(per_repetition(trials, pl.col("was_told") == 1), "A reader that came back late was told")


def error_tells(measured: Measured) -> Judgement:
    """Judge: auto.offset.reset=error names the gap."""
    trials = measured.trials("late_reader").filter(pl.col("reset") == "error")
    return always(per_repetition(trials, pl.col("was_told") == 1), "Under auto.offset.reset=error the reader was told")


def latest_skips_more(measured: Measured) -> Judgement:
    """Judge: `latest` misses only what was deleted."""
    trials = measured.trials("late_reader").filter(pl.col("reset") == "latest")
    is_fair = pl.col("missed") <= pl.col("deleted_unread")
    return always(per_repetition(trials, is_fair), "Under latest the reader missed no more than what had been deleted")


def slow_reader_sees_all(measured: Measured) -> Judgement:
    """Judge: a connected reader loses nothing to retention."""
    trials = measured.trials("overtaken")
    return always(
        per_repetition(trials, pl.col("skipped") == 0), "A reader that was connected all the time skipped nothing"
    )


# -- figures -----------------------------------------------------------------------------------------------------------


def draw_ages(measured: Measured) -> Drawing:
    """Age of the oldest record over time, by segment.ms; and disk over time."""
    ages = measured.samples("by_time", "oldest_age").filter(pl.col("subject") == "oldest")
    figure, axes = figures.panels(2, width=10.0)
    for colour, segment_ms in zip((BLUE, ORANGE, PURPLE, GREEN), ages["segment_ms"].unique().sort(), strict=False):
        chosen = ages.filter(pl.col("segment_ms") == segment_ms)
        for number, ((_,), one) in enumerate(chosen.group_by("trial", maintain_order=True)):
            label = f"segment.ms = {segment_ms}" if number == 0 else None
            axes[0].plot(one["at_s"], one["value"], color=colour, alpha=0.7, linewidth=1.3, label=label)
    retention_s = float(ages["retention_ms"][0]) / 1000
    axes[0].axhline(retention_s, color=GREY, linestyle="--", linewidth=1, label="retention.ms")
    axes[0].set_title("Age of the oldest readable record")
    axes[0].set_xlabel("seconds")
    axes[0].set_ylabel("seconds")
    axes[0].legend()
    disk = measured.samples("by_size", "disk")
    smallest = disk.filter(pl.col("retention_mib") == disk["retention_mib"].min())
    for subject, colour, label in (("sent", GREY, "sent"), ("partition", RED, "on disk")):
        chosen = smallest.filter(pl.col("subject") == subject)
        for number, ((_,), one) in enumerate(chosen.group_by("trial", maintain_order=True)):
            axes[1].plot(
                one["at_s"], one["value"], color=colour, alpha=0.8, linewidth=1.3, label=None if number else label
            )
    axes[1].axhline(
        float(smallest["retention_mib"][0]), color=GREY, linestyle="--", linewidth=1, label="retention.bytes"
    )
    axes[1].set_title("Disk used by a partition")
    axes[1].set_xlabel("seconds")
    axes[1].set_ylabel("MiB")
    axes[1].legend()
    return figure


def draw_compaction(measured: Measured) -> Drawing:
    """Records readable over time, by policy and dirty ratio; what is left of the latest values."""
    readable = measured.samples("compaction", "readable")
    figure, axes = figures.panels(2, width=10.0)
    designs = readable.select("policy", "dirty_ratio").unique().sort("policy", "dirty_ratio").rows()
    for colour, (policy, ratio) in zip((BLUE, ORANGE, RED, PURPLE), designs, strict=False):
        chosen = readable.filter((pl.col("policy") == policy) & (pl.col("dirty_ratio") == ratio))
        for number, ((_,), one) in enumerate(chosen.group_by("trial", maintain_order=True)):
            label = f"{policy}, ratio {ratio}" if number == 0 else None
            axes[0].plot(
                one["at_s"], one["value"], "o-", color=colour, markersize=2.5, linewidth=1.3, alpha=0.8, label=label
            )
    axes[0].set_title("Records still readable")
    axes[0].set_xlabel("seconds after the last update")
    axes[0].set_ylabel("records")
    axes[0].set_ylim(bottom=0)
    axes[0].legend()
    trials = measured.trials("compaction")
    labels = [f"{policy}, {ratio}" for policy, ratio in designs]
    groups = [
        (100 * trials.filter((pl.col("policy") == policy) & (pl.col("dirty_ratio") == ratio))["latest_kept"]).to_list()
        for policy, ratio in designs
    ]
    figures.bars(axes[1], labels, groups, [BLUE, ORANGE, RED, PURPLE][: len(labels)])
    axes[1].set_title("Live keys whose latest value is there")
    axes[1].set_xlabel("%")
    return figure


def draw_late(measured: Measured) -> Drawing:
    """What a late reader misses, by auto.offset.reset."""
    trials = measured.trials("late_reader")
    resets = ["earliest", "latest", "error"]
    figure, axes = figures.panels(1, height=2.4)
    groups = [trials.filter(pl.col("reset") == each)["missed"].to_list() for each in resets]
    told = [trials.filter(pl.col("reset") == each)["was_told"].min() == 1 for each in resets]
    labels = [f"{each}\n({'told' if is_told else 'not told'})" for each, is_told in zip(resets, told, strict=True)]
    figures.bars(axes[0], labels, groups, [GREEN if is_told else RED for is_told in told])
    axes[0].axvline(float(trials["deleted_unread"].median()), color=GREY, linestyle="--", linewidth=1)  # type: ignore[arg-type]
    axes[0].set_title("Missed by a reader that came back late")
    axes[0].set_xlabel("records (dashed: deleted before they were read)")
    return figure


# -- the experiment ----------------------------------------------------------------------------------------------------

RETENTION = Experiment(
    name="retention",
    title="Retention and compaction",
    demand="D6",
    question=(
        "When are records really deleted, by time and by size, and what do they occupy until then? What does "
        "compaction keep, "
        "and when? What happens to a reader that is too late or too slow?"
    ),
    broker_settings=MappingProxyType(
        {
            "log.retention.check.interval.ms": str(CHECK_MS),
            "log.initial.task.delay.ms": "500",
            "log.cleaner.backoff.ms": str(CHECK_MS),
        }
    ),
    scenes=(
        Scene(
            "by_time",
            "Records come steadily under a short retention.ms. The oldest readable offset is looked up ten times a "
            "second, "
            "and from it the age of the oldest record; afterwards, how long the last records stay when nothing "
            "follows. The "
            f"broker checks every {CHECK_MS} ms (default: five minutes).",
            by_time,
            (
                factor("segment_ms", "segment.ms", (2_000,), (250, 2_000), (250, 1_000, 4_000)),
                fixed("retention_ms", "retention.ms", 700, 700, 1_000),
                fixed("rate", "records a second", 200.0),
                fixed("seconds", "of load", 3.0, 3.0, 6.0),
            ),
            trial_s=4.2,
            columns=("oldest_ever", "overstay", "last_gone_after"),
        ),
        Scene(
            "by_size",
            "Records come steadily under retention.bytes with segments of 1 MiB (the smallest that Kafka 4 "
            "allows). The size of "
            "the partition's files is looked up ten times a second, files renamed for deletion included, until it "
            "rests.",
            by_size,
            (
                factor("retention_mib", "retention.bytes in MiB", (1,), (1,), (1, 4)),
                fixed("sent_mib", "MiB sent", 4.0, 4.0, 6.0),
                fixed("mib_per_s", "MiB a second", 2.5, 2.5),
                fixed("file_delete_delay_ms", "file.delete.delay.ms (default: a minute)", 500),
            ),
            trial_s=3.7,
            needs=Needs(broker_control=True),
            columns=("peak_disk", "settled_disk"),
        ),
        Scene(
            "compaction",
            "Every key is updated `updates` times, every fifth is deleted with a tombstone, and the cleaner is given "
            "`patience_s`. Then a third of the keys is updated once more, and the cleaner is given as long again. "
            "Read at the "
            "end: superseded values, latest values, tombstones, gaps in the offsets.",
            compaction,
            (
                factor("policy", "cleanup.policy", ("compact",), ("compact", "compact,delete")),
                factor("dirty_ratio", "min.cleanable.dirty.ratio", (0.01,), (0.01, 0.5)),
                fixed("keys", "different keys", 100, 200),
                fixed("updates", "of each key", 5, 10),
                fixed("delete_retention_ms", "delete.retention.ms", 1_000),
                fixed("patience_s", "seconds for the cleaner, twice", 1.3, 1.3, 3.0),
            ),
            keep=lambda levels: levels["policy"] == "compact" or levels["dirty_ratio"] == 0.01,
            trial_s=3.6,
            columns=("readable", "removed", "stale", "latest_kept", "tombstones_left"),
        ),
        Scene(
            "late_reader",
            "A reader stops after a quarter of the records; the first half is deleted (DeleteRecords moves the "
            "log's start as "
            "retention does); the reader comes back under each auto.offset.reset.",
            late_reader,
            (
                factor("reset", "auto.offset.reset", ("earliest", "latest", "error"), ("earliest", "latest", "error")),
                fixed("records", "in the partition", 400),
                fixed("patience_s", "seconds without a record after which reading is over", 0.6),
            ),
            trial_s=0.95,
            allows_loss=True,
            columns=("missed", "deleted_unread", "was_told"),
        ),
        Scene(
            "overtaken",
            "A reader takes `read_rate` records a second of a stream of `rate`, under a short retention, connected "
            "all the time.",
            overtaken,
            (
                factor("reset", "auto.offset.reset", ("earliest",), ("earliest",)),
                fixed("retention_ms", "retention.ms", 500),
                fixed("rate", "records a second", 400.0),
                fixed("read_rate", "records a second the reader can take", 50.0),
                fixed("seconds", "of load", 3.0, 3.0, 5.0),
            ),
            trial_s=3.1,
            allows_loss=True,
            columns=("skipped", "largest_jump", "was_told"),
        ),
    ),
    claims=(
        Claim(
            "records-go-after-retention-ms",
            "Records are gone when retention.ms has passed (give or take a fifth).",
            "folklore; the documentation calls it the maximum time a log is retained",
            goes_on_time,
        ),
        Claim(
            "overstay-is-bounded",
            "A record outlives retention.ms by no more than segment.ms and a few checks, because whole segments "
            "are deleted.",
            "Apache Kafka documentation, segment.ms and log.retention.check.interval.ms",
            short_segments_help,
        ),
        Claim(
            "retention-bytes-bounds-disk",
            "retention.bytes is the most disk that a partition uses (give or take a tenth).",
            "folklore; the documentation: “the maximum size a partition can grow to”",
            bytes_bound_disk,
        ),
        Claim(
            "compaction-leaves-one-value",
            "After the cleaner has run a compacted topic holds exactly one value per key.",
            "folklore; the active segment and the dirty ratio are exempt",
            one_value_a_key,
        ),
        Claim(
            "compaction-keeps-the-latest",
            "Compaction keeps at least the latest value of every key.",
            "Apache Kafka documentation, “Log Compaction”, guarantees",
            latest_stays,
        ),
        Claim(
            "compact-and-delete-keeps-the-latest",
            "With cleanup.policy=compact,delete the latest value of every key stays, and only history is deleted.",
            "folklore",
            both_policies_keep,
        ),
        Claim(
            "offsets-are-never-renumbered",
            "Compaction never changes an offset: gaps stay where records were.",
            "Apache Kafka documentation, “Log Compaction”: “the offset for a message never changes”",
            offsets_stay,
        ),
        Claim(
            "a-late-reader-is-told",
            "A consumer whose position was deleted is told so (auto.offset.reset earliest or latest).",
            "folklore",
            reader_is_told,
        ),
        Claim(
            "reset-error-names-the-gap",
            "With auto.offset.reset=error a consumer stops with an error instead of skipping.",
            "librdkafka, CONFIGURATION.md, auto.offset.reset",
            error_tells,
        ),
        Claim(
            "latest-misses-only-the-deleted",
            "With auto.offset.reset=latest a late consumer misses only what was deleted.",
            "folklore",
            latest_skips_more,
        ),
        Claim(
            "connected-readers-lose-nothing",
            "Retention does not touch what a connected consumer has still to read.",
            "folklore, from brokers that delete on acknowledgement",
            slow_reader_sees_all,
        ),
    ),
    figures=(
        Figure(
            "retention", "How long records stay, and what they occupy, under retention by time and by size.", draw_ages
        ),
        Figure("compaction", "What the cleaner leaves.", draw_compaction),
        Figure("late_reader", "What a reader misses that comes back too late.", draw_late),
    ),
    use_cases=(
        "Choose retention.ms by the longest time a reader may be away and the disk by rate × (retention.ms + "
        "segment.ms), not by "
        "retention.ms alone; retention.bytes is a brake for emergencies, per partition, with one segment on top. "
        "Where data must "
        "be gone by a deadline (privacy), shorten segment.ms too. Use compaction for state that is looked up by "
        "key, such as this "
        "application's `vehicles`: it keeps the latest value for ever, but a reader must fold what it reads, "
        "because older values "
        "are there as well. Add `delete` only where state may expire (sessions). Let every reader that must not "
        "lose anything run "
        "with auto.offset.reset=error, as this project's sinks do, and watch the distance between its position and "
        "the log's "
        "start, because nothing warns of it."
    ),
)
