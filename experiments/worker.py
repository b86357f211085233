"""A worker in a process of its own, made to be killed: `python -m experiments.worker DUTY` (JSON of a duty below).

It either copies a topic record by record into another one, under one of three guarantees, or lands a topic with the
application's own sink and kills itself at a given point of its commits. SIGTERM ends it between two batches. Started
dozens of times, so it imports nothing heavy before it needs it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import Consumer, Message, Producer, TopicPartition

from streaming.cluster import tether

if TYPE_CHECKING:
    import polars as pl

    from streaming.progress import Progress

POLL_S: Final = 0.05
BROKER_S: Final = 20.0
BEFORE, AFTER, TRANSACTION = "commit before work", "commit after work", "transaction"


@dataclass(frozen=True, slots=True)
class Copying:
    """Read `topic`, work on each record for `work_s`, write it to `output`; commit every `batch` records.

    `commit`: before the batch's work, after its output is confirmed, or both in one transaction.
    """

    topic: str
    output: str
    consumer: dict[str, Any]
    producer: dict[str, Any]
    commit: str
    batch: int
    work_s: float


@dataclass(frozen=True, slots=True)
class Landing:
    """Land `<prefix>positions` with the application's Parquet sink until `records` rows are in the home's table.

    SIGKILL at the `dies_at`-th named point of its commits (0: never); over after `for_s` in any case.
    """

    bootstrap_servers: str
    prefix: str
    home: str
    records: int
    dies_at: int = 0
    for_s: float = BROKER_S


def start(duty: Copying | Landing) -> subprocess.Popen[bytes]:
    """The worker's process; it ends with this one at the latest."""
    words = [sys.executable, "-m", "experiments.worker", json.dumps({"kind": type(duty).__name__, **asdict(duty)})]
    ties, null = tether.environment(), subprocess.DEVNULL
    return subprocess.Popen(tether.tethered(words), env=ties, stdin=null, stdout=null, stderr=subprocess.PIPE)


def copy(duty: Copying) -> None:
    """Copy until SIGTERM."""
    is_over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: is_over.set())
    producer = Producer(duty.producer)
    if duty.commit == TRANSACTION:
        producer.init_transactions(BROKER_S)  # aborts what a killed predecessor has left open
    consumer = Consumer(duty.consumer)
    consumer.subscribe([duty.topic])
    while not is_over.is_set():
        messages = [each for each in consumer.consume(duty.batch, POLL_S) if each.error() is None]
        if messages:
            _copy_batch(duty, consumer, producer, messages)
    consumer.close()


def _copy_batch(duty: Copying, consumer: Consumer, producer: Producer, messages: list[Message]) -> None:
    last = messages[-1]
    end = [TopicPartition(duty.topic, last.partition() or 0, (last.offset() or 0) + 1)]
    if duty.commit == BEFORE:
        consumer.commit(offsets=end, asynchronous=False)
    if duty.commit == TRANSACTION:
        producer.begin_transaction()
    for message in messages:
        time.sleep(duty.work_s)
        producer.produce(duty.output, value=message.value())
        producer.poll(0)
    if duty.commit == TRANSACTION:
        producer.send_offsets_to_transaction(end, consumer.consumer_group_metadata(), BROKER_S)
        producer.commit_transaction(BROKER_S)
        return
    if producer.flush(BROKER_S):
        raise TimeoutError(f"{duty.output}: output not confirmed within {BROKER_S:g} s")
    if duty.commit == AFTER:
        consumer.commit(offsets=end, asynchronous=False)


def land(duty: Landing, progress: Progress | None = None) -> None:
    """Land what is missing; without `dies_at` also usable within a process, which may watch its progress."""
    import polars as pl  # noqa: PLC0415 - heavy, and not needed for copying

    from sinks.files import FileSink  # noqa: PLC0415
    from streaming.codecs.json import JsonCodec  # noqa: PLC0415
    from streaming.events import POSITIONS  # noqa: PLC0415
    from streaming.home import Home  # noqa: PLC0415
    from streaming.progress import Progress  # noqa: PLC0415
    from streaming.service import Limits, run_sink  # noqa: PLC0415
    from streaming.topology import role  # noqa: PLC0415
    from streaming.transports.kafka import KafkaTransport  # noqa: PLC0415

    home, chosen, passed = Home(Path(duty.home)), role("positions-parquet"), 0

    def die_there(_: str) -> None:
        nonlocal passed
        passed += 1
        if passed == duty.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    missing = duty.records - landed(duty).select(pl.len()).collect().item()
    if missing <= 0:
        return
    transport = KafkaTransport(duty.bootstrap_servers, prefix=duty.prefix)
    identity = transport.identity("positions")
    sink = FileSink(home, "kafka", chosen, JsonCodec(POSITIONS), identity, writer="experiment", checkpoint=die_there)
    limits = Limits(duty.for_s, missing)
    progress = progress or Progress(chosen.name)
    run_sink(transport, chosen, sink, stop=threading.Event(), progress=progress, limits=limits)


def landed(duty: Landing) -> pl.LazyFrame:
    """The home's table as it is now."""
    from sinks import reader  # noqa: PLC0415
    from streaming.home import Home  # noqa: PLC0415

    return reader.scan(Home(Path(duty.home)), "kafka", "positions_parquet")


def main() -> None:
    """Do the duty that is given."""
    duty = json.loads(sys.argv[1])
    kind = duty.pop("kind")
    if kind == Copying.__name__:
        copy(Copying(**duty))
    else:
        land(Landing(**duty))


if __name__ == "__main__":
    main()
