"""What Dagster is told of what has landed: two sensors that look, count on from their cursor, and report.

Invariant: a report says only what is committed. `landed` reads files, so it works without a broker, and a row is
counted once whatever restarts. A table that has grown is reported at once while it is small, and every few minutes when
a report would change little: Dagster keeps each report for good.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import dagster as dg

from assets.chains import Extent, gaps, look
from assets.keys import BROKER, stream_key, table_key
from orchestration.jobs import REFRESH
from orchestration.specs import SINKS, TOPICS
from sinks.reader import bases, slots
from streaming.errors import StreamgaugeError
from streaming.home import Home
from streaming.lab import Lab
from streaming.topology import Role
from streaming.transports.kafka import KafkaTransport

TICK_S: Final = 20
BROKER_TIMEOUT_S: Final = 3.0
GROWTH: Final = 0.01  # what a report must add to be worth it at once
REPORT_AFTER_S: Final = 300.0  # what any growth is reported after
REFRESH_AFTER_S: Final = 120.0
_UNFINISHED: Final = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]


@dg.sensor(
    job_name=REFRESH,
    minimum_interval_seconds=TICK_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Reports each table that has grown, and has the summaries made anew when the last time is a while ago.",
)
def landed(context: dg.SensorEvaluationContext, home: dg.ResourceParam[Home]) -> dg.SensorResult | dg.SkipReason:
    """One AssetMaterialization for each table with news; a run of `refresh` at most every two minutes."""
    cursor = json.loads(context.cursor or "{}")
    known: dict[str, Any] = cursor.setdefault("tables", {})
    now = time.time()
    events = [event for role in SINKS if (event := _news(home, role, known, now))]
    requests = list(_refresh(context, cursor, now))
    if not events and not requests:
        return dg.SkipReason("nothing has landed since the last report")
    return dg.SensorResult(asset_events=events, run_requests=requests, cursor=json.dumps(cursor))


def _news(home: Home, role: Role, known: dict[str, Any], now: float) -> dg.AssetMaterialization | None:
    """The report of a table, if it is due; notes in `known` what it says."""
    table = str(role.table)
    before = known.get(table, {"extent": {}, "reported_at": 0.0})
    reported = Extent.load(before["extent"])
    extent = look(home, BROKER, table, reported).extent
    if not _is_due(extent, reported, now - before["reported_at"]):
        return None
    known[table] = {"extent": extent.dump(), "reported_at": now}
    return dg.AssetMaterialization(
        table_key(table),
        metadata={**_numbers(home, table, extent), "new_rows": extent.rows - reported.rows},
        tags={"dagster/data_version": extent.version},
    )


def _is_due(extent: Extent, reported: Extent, age_s: float) -> bool:
    if extent.version == reported.version or not extent.files:
        return False
    return age_s >= REPORT_AFTER_S or abs(extent.rows - reported.rows) >= GROWTH * reported.rows


def _numbers(home: Home, table: str, extent: Extent) -> dict[str, Any]:
    return {
        "dagster/row_count": extent.rows,
        "files": extent.files,
        "size_bytes": extent.size_bytes,
        "next_offsets": {str(partition): chain.next for partition, chain in sorted(extent.chains.items())},
        "gaps": len(gaps(home, BROKER, table, extent)),
        "newest_commit": dg.MetadataValue.timestamp(datetime.fromtimestamp(extent.committed_at, UTC)),
        "dagster/uri": (home.warehouse(BROKER) / table).as_uri(),
    }


def _refresh(context: dg.SensorEvaluationContext, cursor: dict[str, Any], now: float) -> Iterable[dg.RunRequest]:
    """A run of `refresh` if tables were reported since the last, that was a while ago and none is on its way."""
    versions = {table: Extent.load(seen["extent"]).version for table, seen in sorted(cursor["tables"].items())}
    last = cursor.get("refresh", {"versions": {}, "at": 0.0})
    if versions == last["versions"] or now - last["at"] < REFRESH_AFTER_S:
        return
    filters = dg.RunsFilter(job_name=REFRESH, statuses=_UNFINISHED)
    if context.instance.get_run_records(filters, limit=1):
        return
    cursor["refresh"] = {"versions": versions, "at": now}
    yield dg.RunRequest(run_key="-".join(versions.values()))


@dg.sensor(
    minimum_interval_seconds=TICK_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Reports each topic's end offsets and rate, and how far behind its sinks are.",
    target=None,
)
def topics(context: dg.SensorEvaluationContext, home: dg.ResourceParam[Home]) -> dg.SensorResult | dg.SkipReason:
    """One AssetObservation for each topic that has moved; skips while no broker answers."""
    lab = Lab.load(home)
    known: dict[str, Any] = json.loads(context.cursor or "{}")
    try:
        transport = KafkaTransport(lab.kafka, timeout_s=BROKER_TIMEOUT_S)
        seen = {stream.name: Seen.now(transport, stream.name) for stream in TOPICS}
    except StreamgaugeError as error:
        return dg.SkipReason(f"the topics can't be looked at: {error}")
    events = [event for name, each in seen.items() if (event := _observation(home, lab, name, each, known))]
    if not events:
        return dg.SkipReason("no topic has moved")
    return dg.SensorResult(asset_events=events, cursor=json.dumps(known))


@dataclass(frozen=True, slots=True)
class Seen:
    """A topic's ends at a moment. Ends count offsets; control records of transactions have offsets, too."""

    at: float
    ends: Mapping[int, int]
    held: int  # offsets between the oldest record kept and the ends

    @classmethod
    def now(cls, transport: KafkaTransport, stream: str) -> Seen:
        """Ask the broker. StreamgaugeError when it does not answer, or does not know the topic."""
        extents = transport.extents(stream)
        return cls(
            time.time(),
            {partition: extent.high for partition, extent in extents.items()},
            sum(extent.high - extent.low for extent in extents.values()),
        )

    @property
    def total(self) -> int:
        """All partitions' ends together."""
        return sum(self.ends.values())


def _observation(home: Home, lab: Lab, name: str, seen: Seen, known: dict[str, Any]) -> dg.AssetObservation | None:
    before = known.get(name)
    if before and not _has_moved(seen, before):
        return None
    known[name] = {"at": seen.at, "total": seen.total}
    pace = {"offsets_per_s": (seen.total - before["total"]) / (seen.at - before["at"])} if before else {}
    return dg.AssetObservation(
        stream_key(name),
        metadata={
            "end_offsets": {str(partition): end for partition, end in sorted(seen.ends.items())},
            "end_offsets_sum": seen.total,
            "offsets_held": seen.held,
            **pace,
            **{f"lag of {role.name}": lag(home, role, seen.ends) for role in SINKS if name in role.reads},
            "dagster/uri": f"kafka://{lab.kafka}/{name}",
        },
        tags={"dagster/data_version": str(seen.total)},
    )


def _has_moved(seen: Seen, before: Mapping[str, Any]) -> bool:
    moved: int = abs(seen.total - before["total"])
    is_much: bool = moved >= GROWTH * before["total"] or seen.at - before["at"] >= REPORT_AFTER_S
    return moved > 0 and is_much


def lag(home: Home, role: Role, ends: Mapping[int, int]) -> int:
    """Offsets of a topic that lie behind the committed files of one of its sinks."""
    table = str(role.table)
    last = {partition: found[-1] for partition, found in bases(home, BROKER, table).items()}
    landed_to = {slot.partition: slot.next for slot in slots(home, BROKER, table, last)}
    return sum(max(0, end - landed_to.get(partition, 0)) for partition, end in ends.items())
