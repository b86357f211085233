"""What Dagster is told of the flow: sensors that look, count on from their cursor, and report what has grown.

Invariant: a report says only what is committed, and a row is counted once whatever restarts. A report of a table brings
its checks' results with it, for Dagster shows a check's result only as long as nothing newer was reported. What has
grown is reported at once while that changes much, and every few minutes afterwards: Dagster keeps each report for good.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import dagster as dg

from assets.audit import audit, unaudited_rows
from assets.chains import Extent, gaps, look
from assets.keys import BROKER, stream_key, table_key
from orchestration.checks import fresh, judged
from orchestration.jobs import REFRESH
from orchestration.specs import GENERATORS, NEVER_RESTING, SINKS, STALE_AFTER, TOPICS, generator_key
from sinks.reader import bases, slots
from streaming.errors import StreamgaugeError
from streaming.home import Home
from streaming.interfaces import Transport
from streaming.lab import Lab
from streaming.topology import Role, Stream
from streaming.transports.kafka import KafkaTransport

TICK_S: Final = 20
BROKER_TIMEOUT_S: Final = 3.0
GROWTH: Final = 0.01  # what a report must add to be worth it at once
REPORT_AFTER_S: Final = 300.0  # what any growth is reported after
REFRESH_AFTER_S: Final = 120.0
AUDITED_ROWS: Final = 2_000_000  # more than a tick has time for: the next refresh audits them
_UNFINISHED: Final = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]

Event = dg.AssetMaterialization | dg.AssetCheckEvaluation
Notes = dict[str, Any]  # what a sensor has reported of each name, as JSON can hold it


@dg.sensor(
    job_name=REFRESH,
    minimum_interval_seconds=TICK_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Reports each table that has grown, with its checks; has the summaries made anew at most every 2 min.",
)
def landed(context: dg.SensorEvaluationContext, home: dg.ResourceParam[Home]) -> dg.SensorResult | dg.SkipReason:
    """One AssetMaterialization for each table with news, and at most one run of `refresh`."""
    cursor: Notes = json.loads(context.cursor or "{}")
    known, now = cursor.setdefault("tables", {}), time.time()
    events = [event for role in SINKS for event in _news(context, home, role, known, now)]
    requests = list(_refresh(context, cursor, now))
    if not events and not requests:
        return dg.SkipReason("nothing has landed since the last report")
    return dg.SensorResult(asset_events=events, run_requests=requests, cursor=json.dumps(cursor))


def _news(context: dg.SensorEvaluationContext, home: Home, role: Role, known: Notes, now: float) -> Iterator[Event]:
    """A table's report, if there is one to make; notes in `known` what was said."""
    table = str(role.table)
    note = known.get(table, {"extent": {}, "at": 0.0, "is_stale": False})
    reported = Extent.load(note["extent"])
    extent = look(home, BROKER, table, reported).extent
    is_stale = bool(extent.files) and now - extent.committed_at > STALE_AFTER.total_seconds()
    if extent.version != reported.version and _is_due(extent.rows, reported.rows, now - note["at"]):
        known[table] = {"extent": extent.dump(), "at": now, "is_stale": is_stale}
        yield _table_report(home, table, extent, reported)
        yield from _check_report(context, home, role, extent)
    elif is_stale != note["is_stale"] and role.reads[0] in NEVER_RESTING:
        known[table] = {**note, "is_stale": is_stale}
        yield from _check_report(context, home, role, extent, [fresh.__name__])


def _is_due(count: int, reported: int, age_s: float) -> bool:
    return age_s >= REPORT_AFTER_S or abs(count - reported) >= GROWTH * reported


def _table_report(home: Home, table: str, extent: Extent, reported: Extent) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(
        table_key(table),
        metadata={
            "dagster/row_count": extent.rows,
            "new_rows": extent.rows - reported.rows,
            "files": extent.files,
            "size_bytes": extent.size_bytes,
            "gaps": len(gaps(home, BROKER, table, extent)),
            "newest_commit": dg.MetadataValue.timestamp(datetime.fromtimestamp(extent.committed_at, UTC)),
            "next_offsets": {str(partition): chain.next for partition, chain in sorted(extent.chains.items())},
            "dagster/uri": (home.warehouse(BROKER) / table).as_uri(),
        },
        tags={"dagster/data_version": extent.version},
    )


def _check_report(
    context: dg.SensorEvaluationContext, home: Home, role: Role, extent: Extent, names: Iterable[str] | None = None
) -> Iterator[dg.AssetCheckEvaluation]:
    """The results of the table's checks, as far as they can be had within a tick."""
    table = str(role.table)
    if unaudited_rows(home, BROKER, table, extent) > AUDITED_ROWS:
        context.log.info("%s: too much for a tick, the next refresh audits it", table)
        return
    for result in judged(home, role, audit(home, BROKER, table), names):
        yield dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(table_key(table)),
            check_name=str(result.check_name),
            passed=result.passed,
            metadata=result.metadata,
            severity=result.severity,
        )


def _refresh(context: dg.SensorEvaluationContext, cursor: Notes, now: float) -> Iterator[dg.RunRequest]:
    """A run of `refresh` if there were reports since the last, that was a while ago, and none is on its way."""
    versions = {table: Extent.load(note["extent"]).version for table, note in sorted(cursor["tables"].items())}
    last = cursor.get("refresh", {"versions": {}, "at": 0.0})
    if versions == last["versions"] or now - last["at"] < REFRESH_AFTER_S:
        return
    if context.instance.get_run_records(dg.RunsFilter(job_name=REFRESH, statuses=_UNFINISHED), limit=1):
        return
    cursor["refresh"] = {"versions": versions, "at": now}
    yield dg.RunRequest(run_key="-".join(versions.values()))


@dg.sensor(
    minimum_interval_seconds=TICK_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Reports what generators have sent, each topic's ends and pace, and how far behind its sinks are.",
)
def flowing(context: dg.SensorEvaluationContext, home: dg.ResourceParam[Home]) -> dg.SensorResult | dg.SkipReason:
    """One AssetMaterialization for each generator and topic that has moved; without a broker, for generators only."""
    known: Notes = json.loads(context.cursor or "{}")
    events = [event for role in GENERATORS if (event := _generator_report(home, role, known))]
    lab = Lab.load(home)
    try:
        transport = KafkaTransport(lab.kafka, timeout_s=BROKER_TIMEOUT_S)
        events += [event for stream in TOPICS if (event := _topic_report(home, lab, transport, stream, known))]
    except StreamgaugeError as error:
        context.log.warning("the topics can't be looked at: %s", error)
        if not events:
            return dg.SkipReason(f"the topics can't be looked at: {error}")
    if not events:
        return dg.SkipReason("nothing has moved since the last report")
    return dg.SensorResult(asset_events=events, cursor=json.dumps(known))


def _generator_report(home: Home, role: Role, known: Notes) -> dg.AssetMaterialization | None:
    """What the generator's process says of itself; None when it says nothing new."""
    try:
        said = json.loads((home.run / f"{role.name}.json").read_bytes())
    except (OSError, ValueError):
        return None
    if not _moved(known, role.name, said["committed"], said["written_at"]):
        return None
    return dg.AssetMaterialization(
        generator_key(role),
        metadata={
            "records_sent": said["records"],
            "records_confirmed": said["committed"],
            "records_per_s": said["rate_hz"],
            "process_started": dg.MetadataValue.timestamp(said["started_at"]),
        },
    )


def _topic_report(
    home: Home, lab: Lab, transport: Transport, stream: Stream, known: Notes
) -> dg.AssetMaterialization | None:
    """Offsets count control records of transactions and marks, too: they are no numbers of rows."""
    at, extents = time.time(), transport.extents(stream.name)
    ends = {partition: extent.high for partition, extent in sorted(extents.items())}
    before, total = known.get(stream.name), sum(ends.values())
    if not _moved(known, stream.name, total, at):
        return None
    pace = {"offsets_per_s": round((total - before["count"]) / (at - before["at"]), 2)} if before else {}
    return dg.AssetMaterialization(
        stream_key(stream.name),
        metadata={
            **pace,
            "end_offsets_sum": total,
            "offsets_held": total - sum(extent.low for extent in extents.values()),
            **{f"lag of {role.name}": lag(home, role, ends) for role in SINKS if stream.name in role.reads},
            "end_offsets": {str(partition): end for partition, end in ends.items()},
            "dagster/uri": f"kafka://{lab.kafka}/{stream.name}",
        },
        tags={"dagster/data_version": str(total)},
    )


def _moved(known: Notes, name: str, count: int, at: float) -> bool:
    """Whether a count is worth a report now; if so, it is noted as reported."""
    before = known.get(name, {"count": 0, "at": 0.0})
    if count == before["count"] or not _is_due(count, before["count"], at - before["at"]):
        return False
    known[name] = {"count": count, "at": at}
    return True


def lag(home: Home, role: Role, ends: Mapping[int, int]) -> int:
    """Offsets of a topic that lie behind the committed files of one of its sinks."""
    table = str(role.table)
    last = {partition: found[-1] for partition, found in bases(home, BROKER, table).items()}
    landed_to = {slot.partition: slot.next for slot in slots(home, BROKER, table, last)}
    return sum(max(0, end - landed_to.get(partition, 0)) for partition, end in ends.items())
