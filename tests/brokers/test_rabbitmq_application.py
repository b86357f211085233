"""The whole application on Kafka, queues and streams: the same recording, the same result, also under faults.

Each broker's positions, means and alerts are compared, value by value, with what the same steps make of the recording
without any broker; so they are equal to each other.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from orchestration.offline import differences, landed
from orchestration.ordeal import Application
from orchestration.trial import SEED, VEHICLES, Plan, new_lab, offline, record, undergo
from streaming.cluster.kafka import DisposableCluster
from streaming.lab import KAFKA, QUEUES, RABBITMQ_STREAMS, Lab
from tests.brokers import role_processes

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(600)]
MESSAGES = 12_000


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "recording.parquet"
    record(path, MESSAGES)
    return path


@pytest.mark.parametrize("broker", [QUEUES, RABBITMQ_STREAMS])
def test_on_rabbitmq_kills_cuts_a_dead_node_and_an_alarm_change_nothing(
    tmp_path: Path, recording: Path, broker: str
) -> None:
    """`make rabbit-million` in a small form: what is counted must have happened, or it is among the problems."""
    home, lab = new_lab(tmp_path / "home", (broker,))
    counted, _ = undergo(home, lab, broker, Plan(MESSAGES, kills=2, drops=3, still_s=4.0, wait="120s"), recording)
    assert counted.problems == []
    assert (counted.lost, counted.duplicated) == (0, 0)
    assert counted.rows["positions_parquet"] == MESSAGES
    assert counted.redelivered > 0
    assert counted.drops >= 3


def test_kafka_makes_the_same_of_it(tmp_path: Path, recording: Path) -> None:
    with DisposableCluster() as cluster:
        servers = cluster.bootstrap_servers
        home = role_processes.new_lab(tmp_path / "home", servers, vehicles=VEHICLES, seed=SEED)
        with Application(home, KAFKA) as application:
            assert application.replay(recording).wait(240) == 0
            code, report = application.verified()
        assert code == 0, report
        wanted = offline(home, Lab.load(home), KAFKA, recording)
    assert [name for name, table in wanted.items() if table.is_empty()] == []
    found = landed(home, KAFKA)
    assert differences(found, wanted) == []
    _assert_the_comparison_notices(found, wanted)


def _assert_the_comparison_notices(found: dict[str, pl.DataFrame], wanted: dict[str, pl.DataFrame]) -> None:
    """Its own control: a row less, one twice, one value changed."""
    for stream, table in found.items():
        first = table.head(1)
        changed = first.with_columns(vehicle=pl.lit("another"))
        for spoilt in (table[1:], pl.concat([first, table]), pl.concat([changed, table[1:]])):
            assert [said.partition(":")[0] for said in differences(found | {stream: spoilt}, wanted)] == [stream]
