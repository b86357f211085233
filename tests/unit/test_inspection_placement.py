"""A topic's page in Dagster: leader, ISR, offsets and lag per partition, and news when only a leader moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg

from orchestration import sensors
from streaming.batch import Outgoing
from streaming.home import Home
from streaming.lab import Lab
from streaming.topology import STREAMS
from streaming.transports.kafka.inspection import Partition
from streaming.transports.memory import MemoryTransport
from tests.orchestration.landing_scenes import land, positions


def rows(report: dg.AssetMaterialization | None) -> list[dict[str, Any]]:
    assert report is not None
    table = report.metadata["partitions_now"]
    assert isinstance(table, dg.TableMetadataValue)
    return [dict(record.data) for record in table.records]


def test_a_topics_page_shows_each_partition_and_a_leader_that_moves_is_news(tmp_path: Path) -> None:
    home, lab, transport, stream = Home(tmp_path / "home"), Lab(), MemoryTransport(), STREAMS["positions"]
    transport.create([stream], replication=1)
    publisher = transport.publisher("test")
    publisher.publish(Outgoing("positions", [b"x"] * 10, [b""] * 10, [0] * 10))
    assert publisher.flush(10)
    land(home, "positions-parquet", positions(4))
    whole = [Partition("positions", number, 1, (1, 2), (1, 2)) for number in range(stream.partitions)]
    known: dict[str, Any] = {}

    first = sensors._topic_report(home, lab, transport, stream, known, whole)
    expected = {"partition": 0, "leader": "1", "replicas": "1,2", "ISR": "1,2", "earliest": 0, "latest": 10}
    assert rows(first)[0] == {**expected, "lag of positions-parquet": 6}
    assert [row["partition"] for row in rows(first)] == list(range(stream.partitions))
    assert first is not None
    assert first.metadata["under_replicated_partitions"].value == 0
    assert sensors._topic_report(home, lab, transport, stream, known, whole) is None, "nothing has moved"

    poor = [Partition("positions", 0, None, (1, 2), (2,)), *whole[1:]]
    second = sensors._topic_report(home, lab, transport, stream, known, poor)
    assert (rows(second)[0]["leader"], rows(second)[0]["ISR"]) == ("nobody", "2")
    assert second is not None
    assert second.metadata["under_replicated_partitions"].value == 1
    assert sensors._topic_report(home, lab, transport, stream, known, poor) is None
