"""Real brokers as processes: what they promise, and that they can be stopped, killed, paused and thrown away."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its stubs re-export nothing
    AdminClient,
    ConfigResource,
    NewTopic,
)

from streaming.cluster import kafka as cluster
from streaming.cluster.kafka import DisposableCluster

pytestmark = pytest.mark.brokers

STARTS_A_CLUSTER = """
import sys, signal
from pathlib import Path
from streaming.cluster.kafka import DisposableCluster
with DisposableCluster() as cluster:
    print(cluster.folder, *(cluster.pid(number) for number in (1, 2, 3)), flush=True)
    signal.pause()
"""


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.1)


@pytest.fixture
def topic(kafka: DisposableCluster) -> str:
    name = f"cluster-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    admin.create_topics([NewTopic(name, num_partitions=3, replication_factor=3)])[name].result(30)
    return name


def produce(kafka: DisposableCluster, topic: str, values: range) -> None:
    """All acknowledged by every replica in sync, or the test fails."""
    safely = {"acks": "all", "enable.idempotence": True, "request.timeout.ms": 5000}  # a paused broker answers nothing
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, **safely})
    errors: list[object] = []
    for value in values:
        producer.produce(topic, str(value), on_delivery=lambda error, _: errors.append(error) if error else None)
    assert producer.flush(60) == 0
    assert not errors


def read(kafka: DisposableCluster, topic: str, count: int, protocol: str = "classic") -> list[int]:
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap_servers,
            "group.id": f"{topic}-{protocol}-{uuid.uuid4().hex[:4]}",
            "group.protocol": protocol,
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe([topic])
    found: list[int] = []
    deadline = time.monotonic() + 60
    while len(found) < count and time.monotonic() < deadline:
        found += [int(message.value() or b"-1") for message in consumer.consume(1000, 1.0) if not message.error()]
    consumer.close()
    return sorted(found)


def test_the_brokers_keep_every_record_three_times_and_refuse_what_only_one_would_have(
    kafka: DisposableCluster, topic: str
) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    settings = admin.describe_configs([resource])[resource].result(30)
    assert settings["min.insync.replicas"].value == "2"
    assert settings["unclean.leader.election.enable"].value == "false"
    described = admin.list_topics(topic, 30).topics[topic]
    assert {len(partition.isrs) for partition in described.partitions.values()} == {3}


def test_no_topic_is_made_by_writing_to_it(kafka: DisposableCluster) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "message.timeout.ms": 3000})
    errors: list[object] = []
    producer.produce("never-made", b"x", on_delivery=lambda error, _: errors.append(error))
    producer.flush(30)
    assert len(errors) == 1
    assert errors[0] is not None
    with pytest.raises(KafkaException):
        producer.init_transactions(1)  # not configured: the producer is real, the refusal above was the broker's


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_both_group_protocols_read_what_was_written(kafka: DisposableCluster, topic: str, protocol: str) -> None:
    produce(kafka, topic, range(1000))
    assert read(kafka, topic, 1000, protocol) == list(range(1000))


def test_a_killed_a_stopped_and_a_paused_broker_lose_nothing_and_come_back(
    kafka: DisposableCluster, topic: str
) -> None:
    produce(kafka, topic, range(100))
    kafka.kill(1)
    produce(kafka, topic, range(100, 200))
    kafka.start(1)
    until(lambda: cluster.is_ready(kafka.brokers))
    kafka.stop(2)
    produce(kafka, topic, range(200, 300))
    kafka.start(2)
    until(lambda: cluster.is_ready(kafka.brokers))
    kafka.pause(3)
    try:
        until(lambda: psutil.Process(kafka.pid(3)).status() == psutil.STATUS_STOPPED)
        produce(kafka, topic, range(300, 400))
    finally:
        kafka.resume(3)
    until(lambda: cluster.is_ready(kafka.brokers))
    assert read(kafka, topic, 400) == list(range(400))


def test_preparing_again_changes_neither_the_cluster_nor_its_data(kafka: DisposableCluster) -> None:
    stamps = [broker.folder / "data" / "meta.properties" for broker in kafka.brokers]
    before = [stamp.read_text() for stamp in stamps]
    cluster.prepare(kafka.brokers)
    assert [stamp.read_text() for stamp in stamps] == before


def test_a_brokers_log_goes_to_its_file_and_its_console_stays_quiet(kafka: DisposableCluster) -> None:
    for broker in kafka.brokers:
        assert "started" in broker.log.read_text()
        console = (broker.folder / "console.log").read_text().splitlines()
        assert [line for line in console if "JDK_JAVA_OPTIONS" not in line] == []  # Java tells of tests' own option


def test_the_brokers_of_a_killed_process_end() -> None:
    with subprocess.Popen([sys.executable, "-c", STARTS_A_CLUSTER], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        folder, *pids = parent.stdout.readline().split()
        brokers = [psutil.Process(int(pid)) for pid in pids]
        parent.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(brokers, timeout=10)
    assert not alive
    subprocess.run(["rm", "-rf", "--", folder], check=True)


def test_a_given_folder_keeps_its_data_for_the_next_cluster(tmp_path: Path) -> None:
    with DisposableCluster(tmp_path / "brokers") as first:
        admin = AdminClient({"bootstrap.servers": first.bootstrap_servers})
        admin.create_topics([NewTopic("kept", num_partitions=1, replication_factor=3)])["kept"].result(30)
        produce(first, "kept", range(10))
    with DisposableCluster(tmp_path / "brokers") as second:
        assert read(second, "kept", 10) == list(range(10))
    assert (tmp_path / "brokers" / "cluster-id").exists()
