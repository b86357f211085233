"""Limits: the rate that can be kept up, latency below it, what settings change, where sizes end, how backlogs drain."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import polars as pl
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition
from matplotlib.figure import Figure as Drawing
from numpy.typing import NDArray

from experiments import figures, worker
from experiments.experiment import Experiment, Figure, Scene, factor, fixed
from experiments.figures import BLUE, GREEN, GREY, ORANGE, PURPLE
from experiments.findings import Claim, Judgement, always, compare, paired, per_repetition
from experiments.lab import Records
from experiments.ledger import reconcile
from experiments.measurements import Measured, NotMeasured
from experiments.offering import APPLICATION, BARE, NOTHING, Generator, Offered, Offering
from experiments.statistics import median_interval, percentiles, ratio_interval
from experiments.trial import Trial
from streaming.cluster.kafka import java
from streaming.progress import Progress

PRODUCER, APP_PRODUCER, PAIR = "bare producer", "application's publisher", "bare producer and consumer"
CONSUMER, SINK, LIVE = "bare consumer", "application's sink", "bare consumer, load going on"
PARTITIONS: Final = 3
SHARES: Final = (10, 50, 80, 90)  # percent of the sustainable rate
CAUTION: Final = (1.0, 0.9, 0.8, 0.65, 0.5, 0.3, 0.1)  # what of the found rate is tried until a longer probe holds
ENOUGH: Final = 2_600  # records for a 95th percentile, a fifth left out
WARM_UP: Final = 500  # records through a new topic, so that no probe pays for a client that must find its leaders
ROUNDS: Final = 4  # turns of each side when two settings are compared
TRIES: Final = 2  # of a probe: one pause of a broker that collects garbage does not say that a rate can't be kept up
STEPS: Final = 4  # of the search, each halving (in the logarithm) what is left between a quarter and full speed
SETTINGS = MappingProxyType(
    {
        "acks": "all",
        "enable.idempotence": True,
        "linger.ms": 5,
        "compression.type": "lz4",
        "batch.size": 1_000_000,
        "batch.num.messages": 20_000,
        "queue.buffering.max.messages": 200_000,
    }
)
NOT_IDEMPOTENT = MappingProxyType({"enable.idempotence": False})


@dataclass(frozen=True, slots=True)
class Variant:
    """One setting that differs from the usual ones."""

    settings: MappingProxyType[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    size: int = 200  # bytes of a record
    producers: int = 1


USUAL, ZSTD = "usual", "zstd"
VARIANTS = MappingProxyType(
    {
        USUAL: Variant(),
        "linger 0": Variant(MappingProxyType({"linger.ms": 0})),
        "batches of 16 KiB": Variant(MappingProxyType({"batch.size": 16_384})),
        "no compression": Variant(MappingProxyType({"compression.type": "none"})),
        ZSTD: Variant(MappingProxyType({"compression.type": "zstd"})),
        "acks 1": Variant(MappingProxyType({"acks": 1, **NOT_IDEMPOTENT})),
        "two producers": Variant(producers=2),
        "10 KB a record": Variant(size=10_000),
    }
)


# -- what can be kept up -----------------------------------------------------------------------------------------------


def sustainable(trial: Trial) -> None:
    """Search the highest offered rate whose backlog stays bounded; then (for the pair) the latency below it."""
    trial.lab.shared("warm brokers", lambda: _warm(trial))
    bench = _Bench(trial, trial.text("what"))
    full = bench.full_speed()
    found = _search(bench.holds, full)
    rate, offered = _confirmed(bench, found)
    trial.record("full_speed", full, "records/s")
    trial.record("sustainable", rate, "records/s")
    trial.record("generator_cpu", offered.cpu, "of a core")
    trial.record("schedule_limit", _schedule_limit(trial, bench.file), "records/s")
    if bench.reader is not None:
        for share in SHARES:
            bench.latency(share, rate * share / 100)


@contextlib.contextmanager
def _warm(trial: Trial) -> Iterator[None]:
    """Full speed for a while before the first trial: Java compiles what is called often."""
    count, topic = trial.count("warm_up"), trial.lab.topic("throw-away", PARTITIONS)
    generator = _generator(trial, BARE, _file(trial, BARE, min(count, trial.count("pool"))))
    _together([generator], topic, 0, count, time.monotonic())
    yield


def _search(holds: Callable[[float], bool], top: float) -> float:
    """By bisection in the logarithm, between a quarter of full speed and a little above it."""
    low, high = 0.25 * top, 1.05 * top
    for _ in range(STEPS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if holds(middle) else (low, middle)
    return float(low)


def _confirmed(bench: _Bench, rate: float) -> tuple[float, Offered]:
    """The rate, or one a tenth lower (and so on), at which a longer probe with the ledger holds too."""
    for part in (each for each in CAUTION for _ in range(TRIES)):
        if (offered := bench.confirm(part * rate)) is not None:
            return part * rate, offered
    raise RuntimeError(f"{rate:,.0f} records a second were found, but not even a tenth of it could be kept up")


def _schedule_limit(trial: Trial, file: Path) -> float:
    """How many records a second the generator gives out when nothing takes time."""
    generator = _generator(trial, NOTHING, file).wait_ready()
    generator.order("", 0, 2_000_000, 0, time.monotonic())
    return 2_000_000 / generator.answer().took_s


class _Bench:
    """A generator, its topic, and a reader if the reader is part of what is measured."""

    def __init__(self, trial: Trial, what: str) -> None:
        self.trial, lab = trial, trial.lab
        self.pool = trial.count("pool")
        kind = APPLICATION if what == APP_PRODUCER else BARE
        self.file = _file(trial, kind, self.pool)
        self.generator = _generator(trial, kind, self.file)
        self.topic = lab.topic("load", PARTITIONS)
        self.sent = 0
        self.reader = _Reader(trial, self.topic) if what == PAIR else None
        self._offer(WARM_UP, 0)  # the client knows its brokers now

    def full_speed(self) -> float:
        """As fast as the client takes records, bounded by its own queue only."""
        count = self.trial.count("full_records")
        offered, done_s = self._offer(count, 0)
        return count / max(done_s, offered.took_s)

    def holds(self, rate: float) -> bool:
        """Whether all that a probe offers is done `slack_s` after the last record was due, at one of `TRIES`."""
        return any(self._probe(rate) for _ in range(TRIES))

    def _probe(self, rate: float) -> bool:
        count = int(rate * self.trial.number("probe_s"))
        _, done_s = self._offer(count, rate)
        return done_s <= count / rate + self.trial.number("slack_s")

    def confirm(self, rate: float) -> Offered | None:
        """A longer probe into a topic of its own, every record accounted for; None when the rate is not kept up."""
        trial, seconds = self.trial, self.trial.number("confirm_s")
        self.topic, self.sent = trial.lab.topic("confirmed", PARTITIONS), 0
        if self.reader is not None:
            self.reader.follow(self.topic)
        self._offer(WARM_UP, 0)
        count = min(int(rate * seconds), self.pool - WARM_UP)
        offered, done_s = self._offer(count, rate)
        if done_s > count / rate + trial.number("slack_s"):
            return None
        read = trial.lab.read(self.topic)
        sequences = trial.lab.workload.sequences(read.values)
        trial.account(reconcile(self.sent, range(self.sent), sequences, lanes=read.partitions))
        return offered

    def latency(self, share: int, rate: float) -> None:
        """From when a record was due until the reader has it, at a share of the sustainable rate."""
        assert self.reader is not None  # noqa: S101 - asked for the pair only
        count = max(int(rate * self.trial.number("latency_s")), ENOUGH)
        first = self.sent
        at = time.monotonic() + 0.05
        self.generator.order(self.topic, first, count, rate, at)
        self.sent += count
        self.reader.until(self.sent)
        offered = self.generator.answer()
        delays = self.reader.delays(first, at, rate)[count // 5 :]  # the first fifth warms up
        for quantile, delay in percentiles(delays, (0.5, 0.95)).items():
            self.trial.record(f"p{100 * quantile:g}_at_{share}", 1000 * delay, "ms")
        self.trial.record(f"behind_at_{share}", 1000 * offered.behind_s, "ms")

    def _offer(self, count: int, rate: float) -> tuple[Offered, float]:
        """What became of it, and when all was done: confirmed, and read if there is a reader."""
        at = time.monotonic() + 0.02
        self.generator.order(self.topic, self.sent, count, rate, at)
        self.sent += count
        read_s = 0.0
        if self.reader is not None:
            read_s = self.reader.until(self.sent) - at
        offered = self.generator.answer()
        if offered.failed:
            raise RuntimeError(f"{offered.failed} of {count} records were not confirmed")
        return offered, max(offered.took_s, read_s)


class _Reader:
    """A bare consumer in this process. Counts only; the places of what came last are kept for latencies."""

    def __init__(self, trial: Trial, topic: str) -> None:
        self._trial = trial
        self._consumer = trial.lab.consumer("bare consumer", "unused", **READING)
        trial.lab.keep(self._consumer.close)
        self._taken: list[tuple[float, list[Message]]] = []
        self.follow(topic)

    def follow(self, topic: str) -> None:
        """Read this topic from its beginning."""
        self._consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
        self._read = 0

    def until(self, records: int) -> float:
        """Read until so many have come in all; the moment when the last one had."""
        self._taken = []
        now = time.monotonic()
        while self._read < records:
            messages = self._consumer.consume(10_000, 0.05)
            now = time.monotonic()
            if messages:
                self._read += len(messages)
                self._taken.append((now, messages))
            self._trial.remaining_s  # noqa: B018 - raises when the trial's time is over
        if failed := next((error for _, each in self._taken for one in each if (error := one.error())), None):
            raise KafkaException(failed)
        return now

    def delays(self, first: int, at: float, rate: float) -> NDArray[np.float64]:
        """Of what until() took, in the order of sending. Record n lies at offset n // partitions of n % partitions."""
        numbers = [(one.offset() or 0) * PARTITIONS + (one.partition() or 0) for _, each in self._taken for one in each]
        came = np.concatenate([np.full(len(each), moment) for moment, each in self._taken])
        place = np.asarray(numbers) - first
        delays: NDArray[np.float64] = (came - at - place / rate)[np.argsort(place)]
        return delays


READING = MappingProxyType(
    {"fetch_wait_max_ms": 100, "fetch_queue_backoff_ms": 20, "queued_min_messages": 100_000, "check_crcs": True}
)


def _file(trial: Trial, kind: str, count: int) -> Path:
    """The workload's first records as a generator wants them, for this trial."""
    if kind != APPLICATION:
        return _lines(trial, trial.lab.workload.messages(count).values)
    path = _new_file(trial)
    trial.lab.workload.table(count).write_parquet(path)
    return path


def _lines(trial: Trial, values: Sequence[bytes]) -> Path:
    path = _new_file(trial)
    path.write_bytes(b"\n".join(values))
    return path


def _new_file(trial: Trial) -> Path:
    """Empty, and gone with the trial."""
    with tempfile.NamedTemporaryFile(prefix="sg-load-", delete=False) as file:
        path = Path(file.name)
    trial.lab.keep(path.unlink)
    return path


def _generator(trial: Trial, kind: str, file: Path, settings: MappingProxyType[str, Any] = SETTINGS) -> Generator:
    servers = trial.lab.bootstrap_servers
    client = trial.lab.client(f"{kind} producer", dict(settings)) if kind == BARE else {}
    generator = Generator(Offering(kind, str(file), servers, PARTITIONS, client))
    trial.lab.keep(generator.close)
    return generator


# -- backlogs ----------------------------------------------------------------------------------------------------------


def backlog(trial: Trial) -> None:
    """Records come while nobody reads; then somebody does: how fast is it gone?"""
    lab, count, what = trial.lab, trial.count("records"), trial.text("what")
    topic = lab.topic("positions", PARTITIONS)
    generator = _generator(trial, BARE, _file(trial, BARE, count))
    _together([generator], topic, 0, WARM_UP, time.monotonic())
    (offered,) = _together([generator], topic, WARM_UP, count - WARM_UP, time.monotonic())
    trial.record("built_up_at", offered.records / offered.took_s, "records/s")
    if what == SINK:
        took, sequences = _land(trial, topic, count)
        came = count
    else:
        live = trial.number("live_rate") if what == LIVE else 0.0
        took, came, sequences = _drain(trial, topic, generator, count, live)
    trial.record("drain_time", took, "s")
    trial.record("drain_rate", came / took, "records/s")
    found = reconcile(count, range(count - offered.failed), sequences, lanes=sequences % PARTITIONS)
    trial.account(found)


def _drain(
    trial: Trial, topic: str, generator: Generator, count: int, live: float
) -> tuple[float, int, NDArray[np.int64]]:
    """Seconds until no backlog was left, how many records that took, and who the backlog's were."""
    consumer = trial.lab.consumer("bare consumer", "unused", **READING)
    trial.lab.keep(consumer.close)
    values: list[list[Message]] = []
    more = int(live * trial.number("live_s"))
    began = time.monotonic()
    if more:
        generator.order(topic, count, more, live, began)
    consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
    read, took, at_end = 0, 0.0, 0
    while read < count + more:
        messages = consumer.consume(10_000, 0.05)
        now = time.monotonic() - began
        read += len(messages)
        values.append(messages)
        come = count + min(more, int(live * now))
        if not took and read >= come - live * 0.05:  # what came in the last twentieth of a second is no backlog
            took, at_end = now, read
        trial.remaining_s  # noqa: B018 - raises when the trial's time is over
    if more:
        generator.answer()
    found = [message for each in values for message in each]
    if failed := next((error for message in found if (error := message.error())), None):
        raise KafkaException(failed)
    numbers = np.array([(each.offset() or 0) * PARTITIONS + (each.partition() or 0) for each in found])
    kept = [message.value() or b"" for message, number in zip(found, numbers, strict=True) if number < count]
    return took, at_end, trial.lab.workload.sequences(kept)


@dataclass(slots=True)
class _Clock(Progress):
    """The sink's counters, which remember when the first records were taken."""

    first_at: float = 0.0

    def took(self, records: int) -> None:
        """Records were taken in."""
        Progress.took(self, records)
        if records and not self.first_at:
            self.first_at = time.monotonic()


def _land(trial: Trial, topic: str, count: int) -> tuple[float, NDArray[np.int64]]:
    """Seconds from the first records that the application's sink took to its last commit, and what landed."""
    folder = tempfile.TemporaryDirectory(prefix="sg-limits-")
    trial.lab.keep(folder.cleanup)
    clock = _Clock("positions-parquet")
    duty = worker.Landing(trial.lab.bootstrap_servers, topic.removesuffix("positions"), folder.name, count)
    worker.land(duty, clock)
    took = time.monotonic() - clock.first_at
    return took, worker.landed(duty).select("sequence").collect()["sequence"].to_numpy()


# -- settings ----------------------------------------------------------------------------------------------------------


def settings(trial: Trial) -> None:
    """Full speed under one setting and under the usual ones, by turns: what the machine does meanwhile meets both."""
    usual, other = sides = [_Side(trial, name, VARIANTS[name]) for name in (USUAL, trial.text("setting"))]
    for side in sides:  # both get ready at once
        side.wait_ready()
    for number in range(ROUNDS):
        for side in sides[:: 1 if number % 2 else -1]:
            side.send()
    content = trial.lab.read_all([side.topic for side in sides], sealed=True)
    for side in sides:
        side.account(content[side.topic])
    trial.record("rate", other.rate, "records/s")
    trial.record("usual_rate", usual.rate, "records/s")
    trial.record("bytes", other.rate * other.variant.size / 1e6, "MB/s")
    trial.record("usual_bytes", usual.rate * usual.variant.size / 1e6, "MB/s")
    trial.record("cpu", other.cpu, "cores")


class _Side:
    """The producers of one variant, their topic, and what they have done."""

    def __init__(self, trial: Trial, name: str, variant: Variant) -> None:
        self.trial, self.name, self.variant = trial, name, variant
        at_most = min(trial.count("records"), trial.count("megabytes") * 10**6 // variant.size)
        self.turn = at_most // ROUNDS // variant.producers
        self.share = WARM_UP + ROUNDS * self.turn  # of one producer
        self.topic = trial.lab.topic("bulk", PARTITIONS)
        values = _sized(trial.lab.workload.messages(self.share * variant.producers).values, variant.size)
        chosen = MappingProxyType({**SETTINGS, **variant.settings})
        self.generators = [
            _generator(trial, BARE, _lines(trial, values[number * self.share : (number + 1) * self.share]), chosen)
            for number in range(variant.producers)
        ]
        self.turns: list[list[Offered]] = []
        self.failed = 0
        for each in self.generators:
            each.order(self.topic, 0, WARM_UP, 0, time.monotonic())

    def wait_ready(self) -> None:
        """Return when its producers have sent their first records, so that none pays for a cold client."""
        self.failed = sum(each.answer().failed for each in self.generators)

    def send(self) -> None:
        """A turn at full speed."""
        first = WARM_UP + len(self.turns) * self.turn
        self.turns.append(_together(self.generators, self.topic, first, self.turn, time.monotonic() + 0.05))

    @property
    def sent(self) -> int:
        """Records, by all its producers."""
        return self.share * len(self.generators)

    @property
    def rate(self) -> float:
        """Records a second of all its producers together, over all turns."""
        took = sum(max(each.took_s for each in turn) for turn in self.turns)
        return len(self.turns) * self.turn * self.variant.producers / took

    @property
    def cpu(self) -> float:
        """Cores that its producers took, on average."""
        return sum(each.cpu for turn in self.turns for each in turn) / len(self.turns)

    def account(self, read: Records) -> None:
        """Every record, by its number, in what the topic holds."""
        failed = self.failed + sum(each.failed for turn in self.turns for each in turn)
        numbers = np.array([int(value[:_DIGITS]) for value in read.values])
        lanes = read.partitions * self.variant.producers + numbers // self.share
        found = reconcile(self.sent, range(self.sent - failed), numbers, lanes=lanes)
        self.trial.account(found, "usual_" if self.name == USUAL else "")


def _together(generators: Sequence[Generator], topic: str, first: int, records: int, at: float) -> list[Offered]:
    for generator in generators:
        generator.order(topic, first, records, 0, at)
    return [generator.answer() for generator in generators]


_DIGITS: Final = 12


def _sized(values: Sequence[bytes], size: int) -> list[bytes]:
    """Records of `size` bytes made of the application's messages, a number of their own in front."""
    filling = itertools.cycle(values)
    sized = []
    for number in range(len(values)):
        body = b""
        while len(body) < size - _DIGITS:
            body += next(filling)
        sized.append(b"%012d" % number + body[: size - _DIGITS])
    return sized


# -- sizes -------------------------------------------------------------------------------------------------------------

CLIENT, BROKER, PACKED, BATCH, FETCH, JAVA = (
    "client's limit",
    "topic's limit",
    "topic's limit, compressed",
    "topic's limit, small records",
    "consumer's limit",
    "Java's max.request.size",
)
SIZES = (CLIENT, BROKER, PACKED, BATCH, FETCH, JAVA)


def sizes(trial: Trial) -> None:
    """What is refused at a limit of so many bytes, by whom, and how?"""
    {CLIENT: _largest, BROKER: _largest, PACKED: _packed, BATCH: _batch, FETCH: _fetch, JAVA: _java}[
        trial.text("limit")
    ](trial)


def _largest(trial: Trial) -> None:
    """The largest record that passes, to the byte; who refuses the next larger one?"""
    limit, is_client = trial.count("bytes"), trial.text("limit") == CLIENT
    topic = trial.lab.topic("large", 1, max_message_bytes=str(10 * limit if is_client else limit))
    sender = _Sender(trial, topic, message_max_bytes=limit if is_client else 10 * limit, compression_type="none")
    low, high = limit // 2, limit + 1_000
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if sender.sends(bytes(middle)) else (low, middle)
    _tell(trial, sender)
    trial.record("largest", low, "bytes")


def _packed(trial: Trial) -> None:
    """A record five times as large as the topic allows, which compresses well."""
    limit = trial.count("bytes")
    topic = trial.lab.topic("large", 1, max_message_bytes=str(limit))
    sender = _Sender(trial, topic, message_max_bytes=10 * limit, compression_type="lz4")
    sender.sends(bytes(5 * limit))
    _tell(trial, sender)


def _batch(trial: Trial) -> None:
    """Small records, each far below the topic's limit, in a batch above it."""
    limit = trial.count("bytes")
    topic = trial.lab.topic("small", 1, max_message_bytes=str(limit))
    sender = _Sender(trial, topic, message_max_bytes=10 * limit, compression_type="none", linger_ms=200)
    sender.sends(*[bytes(limit // 100)] * 200)
    _tell(trial, sender)


def _fetch(trial: Trial) -> None:
    """A consumer whose limits are a tenth of the record."""
    limit = trial.count("bytes")
    topic = trial.lab.topic("large", 1, max_message_bytes=str(20 * limit))
    sender = _Sender(trial, topic, message_max_bytes=20 * limit, compression_type="none")
    sender.sends(bytes(10 * limit))
    consumer = trial.lab.consumer(
        "small fetches", "unused", fetch_max_bytes=limit, max_partition_fetch_bytes=limit, message_max_bytes=limit
    )
    trial.lab.keep(consumer.close)
    consumer.assign([TopicPartition(topic, 0, 0)])
    delivered = [message for message in consumer.consume(1, timeout=5) if message.error() is None]
    trial.record("delivered", len(delivered), "records")
    _tell(trial, sender)


def _java(trial: Trial) -> None:
    """Java's console producer with a small max.request.size, a record below it and one above it."""
    limit = trial.count("bytes")
    topic = trial.lab.topic("java", 1, max_message_bytes=str(10 * limit))
    options = ["--bootstrap-server", trial.lab.bootstrap_servers, "--topic", topic]
    command = [*java(128), "org.apache.kafka.tools.ConsoleProducer", *options, "--sync"]
    command += ["--command-property", f"max.request.size={limit}"]
    lines = b"a" * (limit // 2) + b"\n" + b"b" * (2 * limit) + b"\n"
    done = subprocess.run(command, input=lines, capture_output=True, check=False, timeout=trial.remaining_s)
    said = (done.stdout + done.stderr).decode(errors="replace")
    arrived = [len(value) for value in trial.lab.read(topic).values]
    sent = [limit // 2, 2 * limit]
    received = [sent.index(size) if size in sent else len(sent) for size in arrived]
    trial.account(reconcile(2, [0], received))  # the one below the limit must be there
    trial.record("accepted", len(arrived), "records")
    trial.record("refused_by_client", "the max.request.size configuration" in said, "records")
    trial.record("refused_by_broker", "the server will accept" in said, "records")


class _Sender:
    """Sends single records and notes who refuses them: produce() at once, or the broker by its report."""

    def __init__(self, trial: Trial, topic: str, **given: Any) -> None:
        self.accepted = self.by_client = self.by_broker = 0
        self._trial, self._topic = trial, topic
        self._producer = trial.lab.producer("sender", batch_size=10_000_000, **{"linger_ms": 0, **given})

    def sends(self, *values: bytes) -> bool:
        """Whether all of them were accepted."""
        before = self.accepted
        for value in values:
            try:
                self._producer.produce(self._topic, value=value, on_delivery=self._note)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                    raise
                self.by_client += 1
        self._producer.flush(self._trial.remaining_s)
        return self.accepted - before == len(values)

    def _note(self, error: KafkaError | None, _: Message) -> None:
        if error is None:
            self.accepted += 1
        elif error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            self.by_broker += 1
        else:
            raise KafkaException(error)


def _tell(trial: Trial, sender: _Sender) -> None:
    """What was refused, and that exactly what was accepted is there."""
    topic_has = len(trial.lab.read(sender._topic).values)
    trial.account(reconcile(sender.accepted, range(sender.accepted), range(topic_has)))
    trial.record("accepted", sender.accepted, "records")
    trial.record("refused_by_client", sender.by_client, "records")
    trial.record("refused_by_broker", sender.by_broker, "records")


# -- claims ------------------------------------------------------------------------------------------------------------


def _what(name: str) -> pl.Expr:
    return pl.col("what") == name


def _trials_of(measured: Measured, scene: str, name: str) -> pl.DataFrame:
    trials = measured.trials(scene).filter(_what(name))
    if trials.is_empty():
        raise NotMeasured(f"no sound trial of {name}")
    return trials


def full_speed_can_be_kept(measured: Measured) -> Judgement:
    """Judge: sustainable against full speed."""
    trials = _trials_of(measured, "sustainable", PRODUCER)
    shares = (trials["sustainable"] / trials["full_speed"]).to_numpy()
    return compare(median_interval(shares), "× full speed", "The sustainable rate of a bare producer", above=0.9)


def application_keeps_half(measured: Measured) -> Judgement:
    """Judge: the application's publisher against the bare producer."""
    pairs = paired(measured.trials("sustainable"), "sustainable", _what(APP_PRODUCER), _what(PRODUCER))
    return compare(ratio_interval(*pairs), "×", "Sustainable rate, the application's publisher against bare", above=0.5)


def _drain_against_producer(measured: Measured, name: str, says: str) -> Judgement:
    trials = _trials_of(measured, "backlog", name)
    ratios = (trials["drain_rate"] / trials["built_up_at"]).to_numpy()
    return compare(median_interval(ratios), "×", says, above=1)


def consumers_are_faster(measured: Measured) -> Judgement:
    """Judge: a bare consumer's rate over a backlog against the rate at which it was built up."""
    return _drain_against_producer(measured, CONSUMER, "A backlog's drain against its build-up, bare consumer")


def sink_is_faster(measured: Measured) -> Judgement:
    """Judge: the same for the application's sink, decoding, writing and syncing included."""
    return _drain_against_producer(measured, SINK, "A backlog's drain against its build-up, application's sink")


def drains_beside_load(measured: Measured) -> Judgement:
    """Judge: a backlog drained while records keep coming."""
    pairs = paired(measured.trials("backlog"), "drain_time", _what(LIVE), _what(CONSUMER))
    return compare(ratio_interval(*pairs), "×", "Drain time, load going on against none", below=1.5)


def _latency_ratio(measured: Measured, high: int, low: int) -> tuple[Any, str]:
    trials = measured.trials("sustainable").filter(_what(PAIR))
    pairs = trials.select(f"p95_at_{high}", f"p95_at_{low}").drop_nulls()
    if pairs.is_empty():
        raise NotMeasured("no 95th percentile in this run")
    says = f"95th percentile of latency at {high} % against {low} % of the sustainable rate"
    return ratio_interval(pairs[f"p95_at_{high}"], pairs[f"p95_at_{low}"]), says


def latency_is_flat(measured: Measured) -> Judgement:
    """Judge: latency at 50 % against 10 %."""
    interval, says = _latency_ratio(measured, 50, 10)
    return compare(interval, "×", says, below=2)


def latency_rises(measured: Measured) -> Judgement:
    """Judge: latency at 90 % against 10 %."""
    interval, says = _latency_ratio(measured, 90, 10)
    return compare(interval, "×", says, above=2)


def _against_usual(measured: Measured, setting: str, metric: str, says: str, **bounds: float) -> Judgement:
    trials = measured.trials("settings").filter(pl.col("setting") == setting)
    if trials.is_empty():
        raise NotMeasured(f"no sound trial of {setting}")
    return compare(ratio_interval(trials[metric], trials[f"usual_{metric}"]), "×", says, **bounds)


def linger_helps(measured: Measured) -> Judgement:
    """Judge: rate without linger."""
    return _against_usual(measured, "linger 0", "rate", "Rate with linger.ms 0 against 5", below=0.9)


def batches_help(measured: Measured) -> Judgement:
    """Judge: rate with small batches."""
    return _against_usual(measured, "batches of 16 KiB", "rate", "Rate with batches of 16 KiB against 1 MB", below=0.9)


def compression_pays(measured: Measured) -> Judgement:
    """Judge: rate without compression."""
    return _against_usual(measured, "no compression", "rate", "Rate without compression against lz4", below=1)


def acks_one_is_faster(measured: Measured) -> Judgement:
    """Judge: rate under acks=1."""
    return _against_usual(measured, "acks 1", "rate", "Rate with acks=1 against all", above=1.1)


def producers_add_up(measured: Measured) -> Judgement:
    """Judge: rate of two producers."""
    return _against_usual(measured, "two producers", "rate", "Rate of two producers against one", above=1.5)


def bytes_grow(measured: Measured) -> Judgement:
    """Judge: bytes a second with large records."""
    return _against_usual(
        measured, "10 KB a record", "bytes", "Bytes a second, records of 10 KB against 200 B", above=3
    )


def _limit(measured: Measured, name: str) -> pl.DataFrame:
    return measured.trials("sizes").filter(pl.col("limit") == name)


def limit_is_inclusive(measured: Measured) -> Judgement:
    """Judge: whether a value of exactly the limit passes."""
    trials = measured.trials("sizes").filter(pl.col("limit").is_in([CLIENT, BROKER]))
    is_inclusive = pl.col("largest") >= pl.col("bytes")
    return always(per_repetition(trials, is_inclusive), "A value of exactly the limit's bytes passed")


def large_ones_only(measured: Measured) -> Judgement:
    """Judge: small records in a large batch."""
    trials = _limit(measured, BATCH)
    is_spared = (pl.col("refused_by_broker") == 0) & (pl.col("refused_by_client") == 0)
    return always(per_repetition(trials, is_spared), "Records far below the limit were all accepted")


def compressed_counts(measured: Measured) -> Judgement:
    """Judge: a large record that compresses."""
    is_accepted = per_repetition(_limit(measured, PACKED), pl.col("accepted") == 1)
    return always(is_accepted, "A record five times the topic's limit passed when compressed")


def client_refuses_at_once(measured: Measured) -> Judgement:
    """Judge: who refuses at the client's limit, and at the topic's."""
    by_client = pl.when(pl.col("limit") == BROKER).then(0).otherwise(pl.col("refused_by_client"))
    by_broker = pl.when(pl.col("limit") == BROKER).then(pl.col("refused_by_broker")).otherwise(0)
    trials = measured.trials("sizes").filter(pl.col("limit").is_in([CLIENT, BROKER, JAVA]))
    others = pl.col("refused_by_client") + pl.col("refused_by_broker") - by_client - by_broker
    is_so = (by_client + by_broker > 0) & (others == 0)
    return always(per_repetition(trials, is_so), "Each limit was enforced by its own side only")


def small_fetches_stick(measured: Measured) -> Judgement:
    """Judge: a record larger than the consumer's fetch limits."""
    is_stuck = per_repetition(_limit(measured, FETCH), pl.col("delivered") == 0)
    return always(is_stuck, "The consumer got stuck before a record larger than its limits")


# -- figures -----------------------------------------------------------------------------------------------------------


def draw_rates(measured: Measured) -> Drawing:
    """Full speed and what can be kept up; how backlogs drain."""
    trials, gone = measured.trials("sustainable"), measured.trials("backlog")
    figure, axes = figures.panels(2, width=10.5, height=3.0)
    whats = [each for each in (PRODUCER, APP_PRODUCER, PAIR) if each in set(trials["what"])]
    labels = [
        f"{what.replace(' and', chr(10) + 'and')}: {kind}" for what in whats for kind in ("full speed", "kept up")
    ]
    groups = [
        trials.filter(_what(what))[metric].to_list() for what in whats for metric in ("full_speed", "sustainable")
    ]
    figures.bars(axes[0], labels, groups, [GREY, BLUE] * len(whats), form="{:,.0f}")
    drained = [each for each in (CONSUMER, SINK, LIVE) if each in set(gone["what"])]
    built = gone["built_up_at"].to_list()
    rates = [gone.filter(_what(each))["drain_rate"].to_list() for each in drained]
    names = ["built up by a producer", *(each.replace(", ", ",\n") for each in drained)]
    figures.bars(axes[1], names, [built, *rates], [GREY, *[GREEN] * len(drained)], form="{:,.0f}")
    for axis, title in zip(axes, ("Sending", "A backlog"), strict=True):
        figures.rates(axis, "x")
        axis.set_title(title)
        axis.set_xlabel("records a second")
    return figure


def draw_latency(measured: Measured) -> Drawing:
    """Latency by share of the sustainable rate."""
    trials = measured.trials("sustainable").filter(_what(PAIR))
    figure, axes = figures.panels(1, width=6.2)
    for name, colour, label in (("p50", BLUE, "median"), ("p95", ORANGE, "95th percentile")):
        columns = [f"{name}_at_{share}" for share in SHARES if f"{name}_at_{share}" in trials.columns]
        if not columns:
            continue
        long = trials.select(columns).unpivot(variable_name="share", value_name="ms").drop_nulls()
        if len(long):
            long = long.with_columns(pl.col("share").str.split("_").list.last().cast(pl.Int64))
            figures.points_and_medians(axes[0], long, "share", "ms", colour, label)
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_formatter("{x:g}")
    axes[0].set_xticks(SHARES)
    axes[0].set_title("From when a record was due until it was read")
    axes[0].set_xlabel("offered rate, % of the sustainable rate")
    axes[0].set_ylabel("milliseconds")
    axes[0].legend()
    return figure


def draw_settings(measured: Measured) -> Drawing:
    """Rate in records and in bytes, by setting."""
    trials = measured.trials("settings")
    chosen = [USUAL, *(each for each in VARIANTS if each in set(trials["setting"]))]
    figure, axes = figures.panels(2, width=10.0, height=0.9 + 0.33 * len(chosen))
    colours = [GREY if each == USUAL else BLUE for each in chosen]
    for axis, metric, form in ((axes[0], "rate", "{:,.0f}"), (axes[1], "bytes", "{:.3g}")):
        groups = [trials[f"usual_{metric}"].to_list()]
        groups += [trials.filter(pl.col("setting") == each)[metric].to_list() for each in chosen[1:]]
        figures.bars(axis, chosen, groups, colours, form=form)
    figures.rates(axes[0], "x")
    axes[0].set_title("Records")
    axes[0].set_xlabel("records a second, full speed")
    axes[1].set_title("Bytes")
    axes[1].set_xlabel("MB a second, full speed, before compression")
    axes[1].set_yticklabels([])
    return figure


def draw_sizes(measured: Measured) -> Drawing:
    """Who refuses what at each limit."""
    trials = measured.trials("sizes")
    chosen = [each for each in SIZES if each in set(trials["limit"])]
    figure, axes = figures.panels(1, width=7.0, height=0.9 + 0.36 * len(chosen))
    places = np.arange(len(chosen))[::-1]
    left = np.zeros(len(chosen))
    parts = (("accepted", GREEN), ("refused_by_client", ORANGE), ("refused_by_broker", PURPLE))
    counts = np.array([
        [trials.filter(pl.col("limit") == each)[metric].to_numpy().mean() for metric, _ in parts] for each in chosen
    ])  # fmt: skip
    shares = 100 * counts / counts.sum(axis=1, keepdims=True)
    for (metric, colour), part in zip(parts, shares.T, strict=True):
        axes[0].barh(places, part, left=left, color=colour, height=0.6, label=metric.replace("_", " "))
        left += part
    axes[0].set_yticks(places, chosen)
    axes[0].grid(visible=False, axis="y")
    axes[0].set_xlabel("% of the records that were tried at this limit")
    axes[0].set_title("Who refuses")
    axes[0].legend(loc="upper center", bbox_to_anchor=(0.4, -0.22), ncols=3)
    return figure


# -- the experiment ----------------------------------------------------------------------------------------------------

_WHATS = (PRODUCER, APP_PRODUCER, PAIR)

LIMITS = Experiment(
    name="limits",
    title="Limits of sending and receiving",
    demand="D2",
    question=(
        "Which rate can the application and a bare client keep up, what latency is had below it, which settings move "
        "it, what exactly fails at the limits of size, and how fast does a backlog build up and drain?"
    ),
    scenes=(
        Scene(
            "sustainable",
            "A generator in a process of its own offers the application's messages open loop: record k is due at k / "
            "rate, whatever became of those before. Full speed (bounded by the client's queue only) is measured first; "
            f"then {STEPS} probes of `probe_s` halve the range between a quarter of it and a little above, each tried "
            f"{TRIES} times if need be. A rate is "
            "kept up when all is confirmed (and read, if the reader is part of it) `slack_s` after the last record was "
            "due, so the backlog is less than that much of input; a probe of `confirm_s` into a topic of its own, by "
            "the ledger, confirms it, or a lower one. For the pair the latency "
            f"from the due time to the reader's hands follows at {', '.join(map(str, SHARES))} % of that rate, the "
            "first fifth left out. The generator's own limit is the rate at which it keeps its schedule when nothing "
            "takes the records; it shares the machine with the brokers.",
            sustainable,
            (
                factor("what", "is to keep up", (APP_PRODUCER, PAIR), _WHATS),
                fixed("probe_s", "seconds a probe", 0.15, 0.4, 10.0),
                fixed("confirm_s", "seconds of the confirmation", 0.3, 1.0, 60.0),
                fixed("slack_s", "seconds of input that may wait at the end", 0.3, 0.1, 1.0),
                fixed("latency_s", "seconds at each share", 0.3, 1.5, 30.0),
                fixed("full_records", "to measure full speed by", 10_000, 50_000, 500_000),
                fixed("warm_up", "records at full speed before the first trial", 5_000, 1_500_000),
                fixed("pool", "different records, offered again and again", 20_000, 150_000, 2_000_000),
            ),
            trial_s=11.3,
            timeout_s=300.0,
            columns=(
                "full_speed",
                "sustainable",
                "generator_cpu",
                "schedule_limit",
                *(f"{name}_at_{share}" for share in SHARES for name in ("p50", "p95", "behind")),
            ),
        ),
        Scene(
            "backlog",
            "A bare producer builds up a backlog at full speed while nobody reads. Then it is drained by a bare "
            "consumer, by the application's Parquet sink (decoded, written, synced and committed), or by a bare "
            "consumer while `live_rate` records a second keep coming. Consumers are measured so because no generator "
            "on the same machine can offer what they can take.",
            backlog,
            (
                factor("what", "drains it", (CONSUMER, SINK, LIVE), (CONSUMER, SINK, LIVE)),
                fixed("records", "in the backlog", 20_000, 150_000, 1_000_000),
                fixed("live_rate", "records a second beside it", 20_000.0),
                fixed("live_s", "seconds of that", 0.5, 1.0, 10.0),
            ),
            trial_s=2.4,
            columns=("built_up_at", "drain_rate", "drain_time", "lost", "duplicated"),
        ),
        Scene(
            "settings",
            "Bare producers send records (the application's messages, cut or joined to a size, with a number in front) "
            "at full speed into three partitions with three copies. Usual: 200 bytes, acks=all, idempotent, linger.ms "
            f"5, lz4, batches up to 1 MB, one producer; a design differs in one of them. {ROUNDS} turns under it and "
            "under the usual settings follow each other within a trial, so that both meet the same machine.",
            settings,
            (
                factor(
                    "setting",
                    "what differs",
                    ("two producers",),
                    tuple(each for each in VARIANTS if each not in (USUAL, ZSTD)),
                    tuple(each for each in VARIANTS if each != USUAL),
                ),
                fixed("records", "sent at most, under each", 10_000, 80_000, 1_000_000),
                fixed("megabytes", "sent at most, under each", 10, 80, 1_000),
            ),
            trial_s=3.7,
            columns=("rate", "usual_rate", "bytes", "usual_bytes", "cpu", "lost", "duplicated"),
        ),
        Scene(
            "sizes",
            "Limits of `bytes`: the client's (librdkafka's message.max.bytes) and the topic's (max.message.bytes; "
            "message.max.bytes is the broker's default for it) are searched to the byte for the largest value without "
            "a key that passes. "
            "Then a record five times the topic's limit that compresses well; small records in a batch above the "
            "limit; a record ten times the consumer's limits (fetch.max.bytes, max.partition.fetch.bytes); and Java's "
            "console producer with max.request.size. Noted: what was accepted, and refused by whom.",
            sizes,
            (
                factor("limit", "which", SIZES[:-1], SIZES),
                fixed("bytes", "the limit", 20_000),
            ),
            trial_s=0.5,
            columns=("largest", "accepted", "refused_by_client", "refused_by_broker", "delivered"),
        ),
    ),
    claims=(
        Claim(
            "full-speed-can-be-kept-up",
            "What a producer sends at full throttle, as performance tests report it, it can keep up with a bounded "
            "backlog (nine tenths at least).",
            "folklore: peak throughput as capacity; Treat, “Everything you know about latency is wrong”, against it",
            full_speed_can_be_kept,
        ),
        Claim(
            "the-application-keeps-half",
            "The application's publisher, encoding included, keeps up at least half of a bare producer's rate.",
            "this project; frameworks of the field publish a few percent of the bare client's rate",
            application_keeps_half,
        ),
        Claim(
            "consumers-are-faster",
            "One consumer takes records faster than one producer sends them.",
            "Kreps, “Benchmarking Apache Kafka” (2014): 940,521 a second against 821,557",
            consumers_are_faster,
        ),
        Claim(
            "the-sink-is-faster-too",
            "So does the application's sink, which decodes, writes and syncs what it takes.",
            "this project",
            sink_is_faster,
        ),
        Claim(
            "a-backlog-drains-beside-load",
            "A backlog drains in less than one and a half times its time while records keep coming.",
            "queueing theory: backlog / (capacity - rate)",
            drains_beside_load,
        ),
        Claim(
            "latency-is-flat-to-half",
            "Up to half of the sustainable rate latency does not depend on the rate (95th percentile below twice that "
            "at a tenth).",
            "folklore: a log is sequential, so load costs no latency until it saturates",
            latency_is_flat,
        ),
        Claim(
            "latency-rises-near-the-limit",
            "At 90 % of the sustainable rate the 95th percentile of latency is more than twice that at 10 %.",
            "queueing theory; Gregg, “Systems Performance”: utilisation and response time",
            latency_rises,
        ),
        Claim(
            "linger-brings-rate",
            "Without linger a tenth of the rate and more is lost.",
            "Apache Kafka documentation, linger.ms; KIP-1030 has made 5 the default",
            linger_helps,
        ),
        Claim(
            "large-batches-bring-rate",
            "With batches of 16 KiB (Java's default) a tenth of the rate and more is lost.",
            "Confluent, “Optimize Kafka producers for throughput”: raise batch.size to 100,000-200,000",
            batches_help,
        ),
        Claim(
            "compression-pays",
            "Compressing with lz4 costs no rate; it brings some.",
            "Confluent, “Optimize Kafka producers for throughput”: compression.type=lz4",
            compression_pays,
        ),
        Claim(
            "acks-1-is-faster",
            "acks=1 sends at least a tenth more than acks=all.",
            "folklore; Kreps (2014): 786,980 against 421,823 a second",
            acks_one_is_faster,
        ),
        Claim(
            "producers-add-up",
            "Two producers send at least one and a half times what one does.",
            "Kreps (2014): three producers on three machines sent 2.6 times as much",
            producers_add_up,
        ),
        Claim(
            "large-records-bring-bytes",
            "Records of 10 KB bring at least three times the bytes a second of records of 200 bytes.",
            "Kreps (2014), “Effect of message size”",
            bytes_grow,
        ),
        Claim(
            "limits-are-of-the-value",
            "A value of exactly the limit's size passes.",
            "folklore; the limits count the record, its batch and its headers",
            limit_is_inclusive,
        ),
        Claim(
            "only-large-records-are-refused",
            "A topic's limit refuses large records only; small ones pass, however they are batched.",
            "folklore; the documentation: “the largest record batch size allowed”",
            large_ones_only,
        ),
        Claim(
            "the-limit-counts-compressed",
            "The topic's limit counts compressed bytes.",
            "Apache Kafka documentation, max.message.bytes: “after compression if compression is enabled”",
            compressed_counts,
        ),
        Claim(
            "each-side-enforces-its-limit",
            "What is above the client's limit (message.max.bytes, Java: max.request.size) fails in the client before "
            "it is sent; what is above the topic's comes back from the broker.",
            "Apache Kafka documentation, max.request.size and max.message.bytes",
            client_refuses_at_once,
        ),
        Claim(
            "small-fetches-stick",
            "A consumer gets stuck before a record larger than its fetch limits.",
            "folklore, true before KIP-74",
            small_fetches_stick,
        ),
    ),
    figures=(
        Figure("rates", "What is sent at full speed and what can be kept up; what drains a backlog.", draw_rates),
        Figure(
            "latency", "Latency below the sustainable rate, open loop, from when each record was due.", draw_latency
        ),
        Figure("settings", "Full speed by setting, one differing from the usual ones at a time.", draw_settings),
        Figure("sizes", "What is refused at a limit of size, and by whom.", draw_sizes),
    ),
    use_cases=(
        "Plan with the sustainable rate, not with full speed, and leave a third of it free: it is what drains the "
        "backlog after an outage (backlog divided by what is left), and below it latency stays what it is. Size "
        "consumers by what they do with a record, not by the client, which takes more than any one producer sends. "
        "Let the producer linger some milliseconds and gather large batches with lz4 where rate counts; give that up "
        "only where a millisecond counts and the rate is low. Keep acks=all. Keep the client's limit of size at or "
        "below the topic's, so that a record that is too large fails where it is made, with an error at the call; "
        "bound a batch below the topic's limit too, because a batch is refused as a whole; and put what is larger than "
        "a megabyte into a store, with its address in the record."
    ),
)
