"""What a lab reads of a topic, on real brokers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition

from experiments.lab import Lab
from experiments.workload import fleet
from streaming.cluster.kafka import DisposableCluster
from streaming.codecs.json import JsonCodec
from streaming.events import POSITIONS

pytestmark = pytest.mark.brokers


def test_a_sealed_reading_waits_for_transactions_that_are_not_over_and_can_be_made_again(
    kafka: DisposableCluster, tmp_path: Path
) -> None:
    with Lab("sealed", kafka.bootstrap_servers, tmp_path, fleet(JsonCodec(POSITIONS))) as lab:
        topic = lab.topic("results")
        producer = lab.producer("writer", **{"transactional.id": topic})
        producer.init_transactions(20)
        watcher = lab.consumer("watcher", "unused", isolation_level="read_uncommitted")
        lab.keep(watcher.close)

        def reaches(end: int) -> bool:
            return bool(watcher.get_watermark_offsets(TopicPartition(topic, 0), timeout=20)[1] == end)

        with ThreadPoolExecutor(1) as pool:
            for turn in range(2):
                producer.begin_transaction()
                producer.produce(topic, b"%d" % turn)
                assert producer.flush(20) == 0
                reading = pool.submit(lab.read, topic, sealed=True, isolation_level="read_committed")
                lab.wait_for(partial(reaches, 3 * turn + 2), "the mark")  # a record, the commit, a mark
                producer.commit_transaction(20)
                assert reading.result(60).values == [b"%d" % each for each in range(turn + 1)]
