"""The benchmark itself, small, on real brokers: every contender comes to its end, and what is lost or added is seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.bench import latency, rabbitmq_rounds, results
from experiments.bench.rabbitmq_client import transport_of
from experiments.bench.rabbitmq_rounds import RabbitBench
from experiments.bench.results import CONTENDERS, Run
from experiments.bench.rounds import BARE, Bench
from streaming.batch import Outgoing
from streaming.cluster import jars
from streaming.cluster.kafka import DisposableCluster
from streaming.cluster.rabbitmq import DisposableRabbitMQ
from streaming.errors import UsageError
from streaming.transports.kafka import KafkaTransport

RECORDS = 30_000  # more than one poll takes in, for the clock begins with the first


@pytest.mark.brokers
def test_every_contender_is_measured_and_its_topics_are_deleted(kafka: DisposableCluster, tmp_path: Path) -> None:
    bench = Bench(kafka.bootstrap_servers, tmp_path, RECORDS, 1, name="smoke", warm_up_records=0)
    runs = list(bench.run())
    assert [problem for run in runs for problem in run.problems] == []
    assert {run.contender for run in runs} == {each.name for each in CONTENDERS}
    assert all(run.rate_hz > 0 and run.peak_mb > 0 for run in runs)
    assert list(tmp_path.iterdir()) == []
    for prefix in ("smoke-1-", BARE + "smoke-1-"):
        with pytest.raises(UsageError):
            KafkaTransport(kafka.bootstrap_servers, prefix=prefix).identity("positions")


@pytest.fixture(scope="module")
def perf_test() -> None:
    jars.install(pinned=jars.locked(jars.PERF_TEST_LOCK))


def names_in(node: DisposableRabbitMQ) -> set[str]:
    return {each["name"] for kind in ("queues", "exchanges") for each in node.ask(f"/{kind}?columns=name")}


def add_one(bench: RabbitBench, pattern: str, prefix: str) -> None:
    transport = transport_of(pattern, bench.address(pattern, prefix))
    publisher = transport.publisher("one-too-many")
    publisher.publish(Outgoing("positions", [b"{}"], [b"v"]))
    assert publisher.flush(60)
    publisher.close()
    transport.close()


@pytest.mark.brokers
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("perf_test")
def test_on_rabbitmq_all_eight_are_measured_without_a_loss_and_leave_nothing(
    rabbitmq: DisposableRabbitMQ, tmp_path: Path
) -> None:
    before = names_in(rabbitmq)
    runs = list(RabbitBench(rabbitmq, tmp_path, 4_000, 30_000, 1, name="small", warm_up_records=0).run())
    assert [problem for run in runs for problem in run.problems] == []
    assert {run.contender for run in runs} == {each.name for each in rabbitmq_rounds.CONTENDERS}
    assert all(run.rate_hz > 0 and run.cpu_us > 0 for run in runs)
    table = results.table(runs, rabbitmq_rounds.CONTENDERS)
    assert table.row_count == 8
    assert all(results.ratio(runs, each) for each in rabbitmq_rounds.CONTENDERS)
    assert list(tmp_path.iterdir()) == []
    assert names_in(rabbitmq) == before


@pytest.mark.brokers
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("perf_test")
def test_on_rabbitmq_one_message_too_many_voids_who_sent_and_who_would_read(
    rabbitmq: DisposableRabbitMQ, tmp_path: Path
) -> None:
    bench = RabbitBench(rabbitmq, tmp_path, 1_000, 1_000, 1, name="added", warm_up_records=0)
    runs: list[Run] = []
    for run in bench.round(1):
        if not runs:  # PerfTest has published, the application has not
            add_one(bench, "queues", BARE + "added-1-")
            add_one(bench, "queues", "added-1-")
            add_one(bench, "streams", BARE + "added-1-")
            add_one(bench, "streams", "added-1-")
        runs.append(run)
    assert {run.contender: run.problems for run in runs} == {
        "perf-publish": (),
        "queue-publish": ("the queue has 1001 messages instead of 1000",),
        "perf-consume": ("the queue has 1 messages instead of 0",),
        "queue-sink": ("queue-publish was void: nothing sound to read",),
        "stream-send": ("the stream has 1001 records, 1000 were sent",),
        "stream-publish": ("the stream has 1001 records, 1000 were sent",),
        "stream-read": ("stream-publish was void: nothing sound to read",),
        "stream-sink": ("stream-publish was void: nothing sound to read",),
    }


@pytest.mark.brokers
@pytest.mark.parametrize("way", ["kafka", "prompt"])
def test_on_kafka_a_message_is_timed_from_when_it_was_due(kafka: DisposableCluster, way: str) -> None:
    bench = latency.Bench((way,), (500,), 2.0, 1, servers=kafka.bootstrap_servers)
    (run,) = bench.run()
    assert not run.problem
    assert 0 < run.found["p50_ms"] < 1000 * run.found["confirmed_s"]
    with pytest.raises(UsageError):
        KafkaTransport(kafka.bootstrap_servers, prefix=f"latency-{way}-500-1-").identity("positions")


@pytest.mark.brokers
@pytest.mark.timeout(280)
def test_on_rabbitmq_a_message_is_timed_from_when_it_was_due() -> None:
    with DisposableRabbitMQ(count=3) as node:
        before = names_in(node)
        bench = latency.Bench(("queues", "streams"), (500,), 2.0, 1, node=node)
        runs = list(bench.run())
        assert [run.problem for run in runs] == ["", ""]
        assert all(0 < run.found["p50_ms"] < 1000 * run.found["confirmed_s"] for run in runs)
        assert latency.table(runs).row_count == 2
        assert names_in(node) == before


def test_an_end_that_ends_too_soon_makes_the_run_void() -> None:
    found, problem = latency._between({"way": "prompt"}, {})
    assert found == {}
    assert "KeyError" in problem
