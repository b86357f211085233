"""Who leads and keeps a topic's partitions, as Dagster shows it on the topic's page: the table of `streamgauge topics`.

Invariant: a topic is worth a report when a leader or an ISR is another than at the last one, even while it rests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dagster as dg

from orchestration.landed import landed_to
from orchestration.specs import SINKS
from streaming.home import Home
from streaming.interfaces import Extent
from streaming.transports.kafka.inspection import Partition


def fingerprint(layout: Sequence[Partition]) -> list[list[Any]]:
    """Leader and ISR of each partition, as a sensor's cursor can hold it."""
    return [[each.leader, list(each.in_sync)] for each in layout]


def placement(
    home: Home, broker: str, stream: str, layout: Sequence[Partition], extents: Mapping[int, Extent]
) -> dict[str, dg.MetadataValue]:
    """Metadata: a row a partition with leader, replicas, ISR, offsets, and the lag of each sink's committed files."""
    if not layout:
        return {}
    sinks = [role for role in SINKS if stream in role.reads]
    landed = {role.name: landed_to(home, broker, role) for role in sinks}
    rows = [_row(each, extents.get(each.number, Extent(0, 0)), landed) for each in layout]
    under = sum(each.is_under_replicated for each in layout)
    return {
        "under_replicated_partitions": dg.MetadataValue.int(under),
        "partitions_now": dg.MetadataValue.table(rows),
    }


def _row(partition: Partition, extent: Extent, landed: Mapping[str, Mapping[int, int]]) -> dg.TableRecord:
    behind = {name: max(0, extent.high - reached.get(partition.number, 0)) for name, reached in landed.items()}
    return dg.TableRecord(
        {
            "partition": partition.number,
            "leader": "nobody" if partition.leader is None else str(partition.leader),
            "replicas": _joined(partition.replicas),
            "ISR": _joined(partition.in_sync),
            "earliest": extent.low,
            "latest": extent.high,
            **{f"lag of {name}": lag for name, lag in behind.items()},
        }
    )


def _joined(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))
