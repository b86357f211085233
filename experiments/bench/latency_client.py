"""One end of a latency run as a process of its own: `python -m experiments.bench.latency_client JOB`.

It prints "ready" when `WARM_UP` messages have passed from one end to the other, reads the moment (monotonic) at which
the first message is due, and reports as a line of JSON. Message n is due at `at` + n / rate, whatever became of those
before; a delay counts from then until poll() has returned the message in the other process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import numpy as np
from confluent_kafka import Consumer, KafkaException, Producer

from experiments import workload
from experiments.bench.rabbitmq_client import GROUP, PASSWORD, address_of, transport_of
from experiments.statistics import percentiles
from streaming.batch import Outgoing
from streaming.codecs.json import JsonCodec
from streaming.events import POSITIONS
from streaming.interfaces import Publisher, Transport
from streaming.transports.kafka import KafkaTransport
from streaming.transports.kafka.settings import CLASSIC_CONSUMER, PRODUCER

WARM_UP: Final = 200  # messages, with the numbers behind the measured ones
PATIENCE_S: Final = 60.0  # without anything new
LEFT_OUT: Final = 5  # the first fifth of the measured messages is in no percentile
QUANTILES: Final = (0.5, 0.95, 0.99)
_TICK_S: Final = 0.002
_CODEC: Final = JsonCodec(POSITIONS)

Put = Callable[[Sequence[bytes], Sequence[bytes]], None]


class Prompt:
    """Bare clients of Kafka that never wait for company: linger.ms 0, fetch.min.bytes 1; all else as the application's.

    Both a publisher and a source, as far as they are needed here.
    """

    def __init__(self, servers: str, topic: str) -> None:
        self._servers, self._topic = servers, topic

    def publisher(self, client: str) -> Prompt:
        """Itself, connected."""
        self._producer = Producer({
            **PRODUCER, "linger.ms": 0, "bootstrap.servers": self._servers, "client.id": client
        })  # fmt: skip
        return self

    def publish(self, outgoing: Outgoing) -> None:
        """Queue the messages."""
        for value, key in zip(outgoing.values, outgoing.keys, strict=True):
            self._producer.produce(self._topic, value, key)
        self._producer.poll(0)

    def flush(self, timeout_s: float) -> bool:
        """Whether all are confirmed in time."""
        return not self._producer.flush(timeout_s)

    def subscribe(self) -> Callable[[], list[bytes]]:
        """Values as they come."""
        settings = {**CLASSIC_CONSUMER, "fetch.min.bytes": 1, "auto.offset.reset": "earliest"}
        consumer = Consumer({**settings, "bootstrap.servers": self._servers, "group.id": "prompt-" + self._topic})
        consumer.subscribe([self._topic])

        def take() -> list[bytes]:
            message = consumer.poll(0.05)
            if message is None:
                return []
            found = [message, *consumer.consume(20_000, 0)]
            if failed := next((error for each in found if (error := each.error())), None):
                raise KafkaException(failed)
            return [each.value() or b"" for each in found]

        return take


class _Beginning:
    """A keeper who keeps nothing: reading starts with the oldest record."""

    def resume(self, _: int) -> int | None:
        """No position."""
        return None

    def release(self, partitions: Iterable[int], *, lost: bool) -> None:
        """Nothing was kept."""


def transport_for(job: dict[str, Any]) -> Transport | Prompt:
    """The application's transport of the job, or prompt clients."""
    if job["way"] == "prompt":
        return Prompt(job["servers"], job["prefix"] + "positions")
    if job["way"] == "kafka":
        return KafkaTransport(job["servers"], prefix=job["prefix"])
    return transport_of(job["way"], address_of(job["address"], os.environ[PASSWORD]))


def send(job: dict[str, Any]) -> None:
    """The sending end."""
    records, rate = job["records"], job["rate"]
    sent = workload.fleet(_CODEC).messages(records + WARM_UP)
    values, keys = sent.values, [vehicle.encode() for vehicle in sent.vehicles]
    publisher = transport_for(job).publisher("latency")

    def put(first: int, end: int) -> None:
        publisher.publish(Outgoing("positions", values[first:end], keys[first:end]))

    put(records, records + WARM_UP)
    _insist(publisher)
    at, place, behind = _start(), 0, 0.0
    time.sleep(max(0.0, at - time.monotonic()))
    while place < records:
        end = min(records, int(rate * (time.monotonic() - at)) + 1)
        put(place, end)
        behind = max(behind, time.monotonic() - at - place / rate)
        place = end
        time.sleep(max(_TICK_S, at + place / rate - time.monotonic()))
    _insist(publisher)
    print(json.dumps({"behind_ms": 1000 * behind, "confirmed_s": time.monotonic() - at}), flush=True)


def read(job: dict[str, Any]) -> None:
    """The receiving end: delays, and what was lost or doubled."""
    records, rate = job["records"], job["rate"]
    take = _taker(job)
    taken: list[tuple[float, list[bytes]]] = []

    def until(count: int) -> None:
        found, news_at = sum(len(each) for _, each in taken), time.monotonic()
        while found < count:
            values, now = take(), time.monotonic()
            if values:
                taken.append((now, values))
                found, news_at = found + len(values), now
            elif now - news_at > PATIENCE_S:
                return

    until(WARM_UP)
    at = _start()
    until(WARM_UP + records)
    values = [value for _, each in taken for value in each]
    numbers = _CODEC.decode(values).table["sequence"].to_numpy()
    came = np.concatenate([np.full(len(each), moment) for moment, each in taken])
    known, counts = np.unique(numbers, return_counts=True)
    is_counted = (numbers >= records // LEFT_OUT) & (numbers < records)
    delays = (came - at - numbers / rate)[is_counted]
    found = percentiles(delays, QUANTILES)
    report = {f"p{100 * quantile:g}_ms": 1000 * delay for quantile, delay in found.items()}
    lost, doubled = records + WARM_UP - len(known), int((counts - 1).sum())
    print(json.dumps({**report, "lost": lost, "doubled": doubled}), flush=True)


def _taker(job: dict[str, Any]) -> Callable[[], list[bytes]]:
    transport = transport_for(job)
    if isinstance(transport, Prompt):
        return transport.subscribe()
    source = transport.source("positions", GROUP, _Beginning())

    def take() -> list[bytes]:
        batches = source.poll(0.05)
        if job["way"] == "queues":  # elsewhere the position is not the broker's business
            source.acknowledge({each.partition: each.next_offset for each in batches})
        return [value for each in batches for value in each.values]

    return take


def _insist(publisher: Publisher | Prompt) -> None:
    if not publisher.flush(PATIENCE_S):
        sys.exit("not everything was confirmed")


def _start() -> float:
    print("ready", flush=True)
    return float(sys.stdin.readline())


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    {"send": send, "read": read}[told["does"]](told)
