"""The application's publisher, and produce() in a loop: `python -m experiments.bench.producing JOB` (see rounds.Job).

Both send the same messages, made and encoded before the clock runs, under the same settings, until all are confirmed.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import polars as pl
from confluent_kafka import Producer

from experiments import workload
from experiments.bench.stopwatch import Stopwatch, forget_peak
from streaming.batch import Outgoing
from streaming.codecs import codec
from streaming.events import MARK
from streaming.generators.run import SETTLE_US, blank_row
from streaming.topology import stream
from streaming.transports.kafka import KafkaTransport
from streaming.transports.kafka.settings import PRODUCER

CHUNK_RECORDS = 20_000  # as the unpaced generator sends them
FLUSH_S = 120.0


def send(job: dict[str, Any]) -> None:
    """Send the job's messages one way or the other, and report; memory is what sending added to the messages'."""
    made = workload.fleet(codec(job["codec"], stream("positions").schema), vehicles=job["vehicles"])
    sent = made.messages(job["records"])
    keys = [vehicle.encode() for vehicle in sent.vehicles]
    before = forget_peak()
    clock = _publish(job, sent.values, keys) if job["is_published"] else _produce(job, sent.values, keys)
    clock.report(above_bytes=before)
    if job["is_published"]:
        _close_windows(job, made)


def _publish(job: dict[str, Any], values: list[bytes], keys: list[bytes]) -> Stopwatch:
    clock = Stopwatch()
    publisher = KafkaTransport(job["bootstrap_servers"], prefix=job["prefix"]).publisher("bench-publisher")
    clock.begin()
    for start in range(0, len(values), CHUNK_RECORDS):
        chosen = slice(start, start + CHUNK_RECORDS)
        publisher.publish(Outgoing("positions", values[chosen], keys[chosen]))
    if not publisher.flush(FLUSH_S):
        sys.exit(f"{publisher.outstanding} records are not confirmed")
    clock.finishes(len(values))
    publisher.close()
    return clock


def _produce(job: dict[str, Any], values: list[bytes], keys: list[bytes]) -> Stopwatch:
    clock = Stopwatch()
    producer = Producer({**PRODUCER, "bootstrap.servers": job["bootstrap_servers"], "client.id": "bench-producer"})
    topic = job["topic"]
    producer.list_topics(timeout=10)
    clock.begin()
    for value, key in zip(values, keys, strict=True):
        while True:
            try:
                producer.produce(topic, value, key)
                break
            except BufferError:
                producer.poll(0.05)
    if producer.flush(FLUSH_S):
        sys.exit(f"{len(producer)} records are not confirmed")
    clock.finishes(len(values))
    return clock


def _close_windows(job: dict[str, Any], made: workload.Workload) -> None:
    """A mark to each partition, as a generator sends it at its end, so that every mean is complete."""
    table = made.table(job["records"])
    after = table["event_time"].dt.offset_by(f"{SETTLE_US}us").tail(1)
    row = blank_row(stream("positions").schema).with_columns(
        event_time=after, producer=pl.lit(workload.PRODUCER), epoch=pl.lit(1, pl.Int64), sequence=pl.lit(MARK, pl.Int64)
    )
    count = stream("positions").partitions
    publisher = KafkaTransport(job["bootstrap_servers"], prefix=job["prefix"]).publisher("bench-marks")
    value = made.codec.encode(row)[0]
    publisher.publish(Outgoing("positions", [value] * count, [b""] * count, range(count)))
    if not publisher.flush(FLUSH_S):
        sys.exit("the marks are not confirmed")
    publisher.close()


if __name__ == "__main__":
    send(json.loads(sys.argv[1]))
