"""A transformer on real Kafka: each input counts once, while its process is replaced and a broker dies."""

from __future__ import annotations

import threading
import uuid
from typing import Any

import pytest

from streaming.batch import Outgoing
from streaming.errors import BrokerUnavailable, RestartRequired
from streaming.interfaces import Publisher
from streaming.progress import Progress
from streaming.service import Limits, run_flow
from streaming.topology import STREAMS, role
from streaming.transports.kafka import KafkaTransport
from tests.unit.test_service_flow import CODECS, RunningTotal, expected, landed

pytestmark = pytest.mark.brokers
ROLE = role("means-transformer")
COUNT = 60_000


class Transformer(threading.Thread):
    """run_flow() again and again, as a supervisor would, until told to stop."""

    def __init__(self, transport: KafkaTransport) -> None:
        super().__init__()
        self.stop = threading.Event()
        self.lives = 0
        self.failure: Exception | None = None
        self._transport = transport

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                self.lives += 1
                self._live()
        except Exception as failure:  # noqa: BLE001
            self.failure = failure

    def _live(self) -> None:
        progress = Progress(ROLE.name)
        try:
            run_flow(
                self._transport, ROLE, RunningTotal(), CODECS, stop=self.stop, progress=progress,
                limits=Limits(messages=15_000), records_per_commit=4_000, commit_every_s=0.2,
            )  # fmt: skip
        except (BrokerUnavailable, RestartRequired):
            return


def publish(publisher: Publisher, numbers: range) -> None:
    keys = [b"v%d" % (n % 37) for n in numbers]
    publisher.publish(Outgoing("positions", [b"%s %d" % (key, n) for key, n in zip(keys, numbers, strict=True)], keys))


def test_each_input_counts_once_while_processes_are_replaced_and_a_broker_dies(kafka: Any) -> None:
    transport = KafkaTransport(kafka.bootstrap_servers, prefix=f"f{uuid.uuid4().hex[:8]}-")
    transport.create(STREAMS.values(), replication=3)
    publisher = transport.publisher("tests")
    transformer = Transformer(transport)
    transformer.start()
    try:
        for start in range(0, COUNT, 2_000):
            publish(publisher, range(start, start + 2_000))
            publisher.flush(30)
            if start == 20_000:
                kafka.kill(2)
            if start == 40_000:
                kafka.start(2)
        publisher.close()
        kafka.wait_until_ready()
        while len(landed(transport)) < COUNT and transformer.is_alive():
            threading.Event().wait(0.5)
    finally:
        transformer.stop.set()
        transformer.join(60)
    assert transformer.failure is None
    assert transformer.lives > 2
    assert landed(transport) == expected(transport)
