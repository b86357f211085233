"""What Dagster is told of the flow: sensors that look, count on from their cursor, and report what has grown.

Invariant: a report says only what is committed, and a row is counted once whatever restarts. A report of a table brings
its checks' results with it, for Dagster shows a check's result only as long as nothing newer was reported. What has
grown is reported at once while that changes much, and every few minutes afterwards: Dagster keeps each report for good.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import dagster as dg

from assets.audit import audit, unaudited_rows
from assets.chains import Extent, gaps, look
from assets.keys import BROKER, stream_key, table_key
from orchestration.brokers import address_of, transport_of
from orchestration.checks import fresh, judged
from orchestration.jobs import REFRESH
from orchestration.landed import landed_to
from orchestration.placement import fingerprint, placement
from orchestration.specs import GENERATORS, NEVER_RESTING, SINKS, STALE_AFTER, TOPICS, generator_key
from streaming.cluster.rabbitmq import OPERATOR
from streaming.errors import StreamgaugeError
from streaming.home import Home
from streaming.interfaces import Replayable, Transport
from streaming.lab import Lab, service_name
from streaming.topology import Role, Stream
from streaming.transports.kafka import KafkaTransport
from streaming.transports.kafka.inspection import Cluster, Partition
from streaming.transports.rabbitmq.queues import RabbitQueues

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
    brokers = Lab.load(home).brokers
    events = [event for at in brokers for role in SINKS for event in _news(context, home, role, known, now, at)]
    requests = list(_refresh(context, cursor, now))
    if not events and not requests:
        return dg.SkipReason("nothing has landed since the last report")
    return dg.SensorResult(asset_events=events, run_requests=requests, cursor=json.dumps(cursor))


def _news(
    context: dg.SensorEvaluationContext, home: Home, role: Role, known: Notes, now: float, broker: str
) -> Iterator[Event]:
    """A table's report, if there is one to make; notes in `known` what was said."""
    table, noted_as = str(role.table), noted(broker, str(role.table))
    note = known.get(noted_as, {"extent": {}, "at": 0.0, "is_stale": False})
    reported = Extent.load(note["extent"])
    extent = look(home, broker, table, reported).extent
    is_stale = bool(extent.files) and now - extent.committed_at > STALE_AFTER.total_seconds()
    if extent.version != reported.version and _is_due(extent.rows, reported.rows, now - note["at"]):
        known[noted_as] = {"extent": extent.dump(), "at": now, "is_stale": is_stale}
        yield _table_report(home, broker, table, extent, reported)
        yield from _check_report(context, home, broker, role, extent)
    elif is_stale != note["is_stale"] and role.reads[0] in NEVER_RESTING:
        known[noted_as] = {**note, "is_stale": is_stale}
        yield from _check_report(context, home, broker, role, extent, [fresh.__name__])


def noted(broker: str, name: str) -> str:
    """Under which name a cursor remembers something: Kafka's by themselves, the others' with their broker's."""
    return name if broker == BROKER else f"{broker}/{name}"


def _is_due(count: int, reported: int, age_s: float) -> bool:
    return age_s >= REPORT_AFTER_S or abs(count - reported) >= GROWTH * reported


def _table_report(home: Home, broker: str, table: str, extent: Extent, reported: Extent) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(
        table_key(table, broker),
        metadata={
            "dagster/row_count": extent.rows,
            "new_rows": extent.rows - reported.rows,
            "files": extent.files,
            "size_bytes": extent.size_bytes,
            "gaps": len(gaps(extent)),
            "newest_commit": dg.MetadataValue.timestamp(datetime.fromtimestamp(extent.committed_at, UTC)),
            "next_offsets": {str(partition): chain.next for partition, chain in sorted(extent.chains.items())},
            "dagster/uri": (home.warehouse(broker) / table).as_uri(),
        },
        tags={"dagster/data_version": extent.version},
    )


def _check_report(
    context: dg.SensorEvaluationContext,
    home: Home,
    broker: str,
    role: Role,
    extent: Extent,
    names: Iterable[str] | None = None,
) -> Iterator[dg.AssetCheckEvaluation]:
    """The results of the table's checks, as far as they can be had within a tick."""
    table = str(role.table)
    if unaudited_rows(home, broker, table, extent) > AUDITED_ROWS:
        context.log.info("%s: too much for a tick, the next refresh audits it", table)
        return
    for result in judged(home, role, audit(home, broker, table), names, broker):
        yield dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(table_key(table, broker)),
            check_name=str(result.check_name),
            passed=result.passed,
            metadata=result.metadata,
            severity=result.severity,
        )


def _refresh(context: dg.SensorEvaluationContext, cursor: Notes, now: float) -> Iterator[dg.RunRequest]:
    """A run of `refresh` if Kafka's tables were reported since the last, some time ago, and none is on its way."""
    versions = {
        table: Extent.load(note["extent"]).version
        for table, note in sorted(cursor["tables"].items())
        if "/" not in table
    }
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
    lab = Lab.load(home)
    made = [(broker, role) for broker in lab.brokers for role in GENERATORS]
    events = [event for broker, role in made if (event := _generator_report(home, broker, role, known))]
    problems = []
    for broker in lab.brokers:
        try:
            events += _stream_reports(home, lab, broker, known)
        except StreamgaugeError as error:
            problems.append(f"the topics can't be looked at: {error}")
            context.log.warning("%s: %s", broker, problems[-1])
    if not events:
        return dg.SkipReason("; ".join(problems) or "nothing has moved since the last report")
    return dg.SensorResult(asset_events=events, cursor=json.dumps(known))


def _stream_reports(home: Home, lab: Lab, broker: str, known: Notes) -> Iterator[dg.AssetMaterialization]:
    """What is to be said of a broker's streams."""
    layout: list[Partition] = []
    if broker == BROKER:
        transport: Transport = KafkaTransport(lab.kafka, timeout_s=BROKER_TIMEOUT_S, prefix=lab.prefix)
        layout = Cluster(lab.kafka, timeout_s=BROKER_TIMEOUT_S).layout()
    else:
        transport = transport_of(home, lab, broker)
    for stream in TOPICS:
        if isinstance(transport, Replayable):
            placed = [each for each in layout if each.topic == lab.prefix + stream.name]
            event = _topic_report(home, lab, transport, stream, known, placed, broker)
        elif isinstance(transport, RabbitQueues):
            event = _queue_report(transport, stream, known)
        if event:
            yield event


def _generator_report(home: Home, broker: str, role: Role, known: Notes) -> dg.AssetMaterialization | None:
    """What the generator's process says of itself; None when it says nothing new."""
    try:
        said = json.loads((home.run / f"{service_name(broker, role.name)}.json").read_bytes())
    except (OSError, ValueError):
        return None
    if not _moved(known, noted(broker, role.name), said["committed"], said["written_at"]):
        return None
    return dg.AssetMaterialization(
        generator_key(role, broker),
        metadata={
            "records_sent": said["records"],
            "records_confirmed": said["committed"],
            "records_per_s": said["rate_hz"],
            "process_started": dg.MetadataValue.timestamp(said["started_at"]),
        },
    )


def _queue_report(transport: RabbitQueues, stream: Stream, known: Notes) -> dg.AssetMaterialization | None:
    """What waits in each group's queue, as the broker's books say, which are some seconds old."""
    at, queues = time.time(), transport.queues(stream.name)
    published = max((queue.published for queue in queues), default=0)
    before = known.get(noted(transport.name, stream.name))
    if not _moved(known, noted(transport.name, stream.name), published, at):
        return None
    pace = {"messages_per_s": round((published - before["count"]) / (at - before["at"]), 2)} if before else {}
    waiting = {f"{word} of {queue.group}": getattr(queue, word) for queue in queues for word in ("ready", "unacked")}
    return dg.AssetMaterialization(
        stream_key(stream.name, transport.name),
        metadata={**pace, "published": published, **waiting, "dagster/uri": f"amqp://{transport.address}"},
        tags={"dagster/data_version": str(published)},
    )


def _topic_report(
    home: Home,
    lab: Lab,
    transport: Replayable,
    stream: Stream,
    known: Notes,
    layout: Sequence[Partition] = (),
    broker: str = BROKER,
) -> dg.AssetMaterialization | None:
    """Offsets count control records of transactions and marks, too: they are no numbers of rows."""
    at, extents = time.time(), transport.extents(stream.name)
    ends = {partition: extent.high for partition, extent in sorted(extents.items())}
    noted_as = noted(broker, stream.name)
    before, total = known.get(noted_as), sum(ends.values())
    placed = fingerprint(layout)
    if not _moved(known, noted_as, total, at) and (before is None or before.get("placed", placed) == placed):
        return None
    known[noted_as] = {"count": total, "at": at, "placed": placed}
    pace = {"offsets_per_s": round((total - before["count"]) / (at - before["at"]), 2)} if before else {}
    where = lab.kafka if broker == BROKER else str(address_of(home, lab, broker, OPERATOR))
    return dg.AssetMaterialization(
        stream_key(stream.name, broker),
        metadata={
            **pace,
            "end_offsets_sum": total,
            "offsets_held": total - sum(extent.low for extent in extents.values()),
            **{f"lag of {role.name}": lag(home, role, ends, broker) for role in SINKS if stream.name in role.reads},
            **placement(home, broker, stream.name, layout, extents),
            "end_offsets": {str(partition): end for partition, end in ends.items()},
            "dagster/uri": f"{broker}://{where}/{stream.name}",
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


def lag(home: Home, role: Role, ends: Mapping[int, int], broker: str = BROKER) -> int:
    """Offsets of a topic that lie behind the committed files of one of its sinks."""
    reached = landed_to(home, broker, role)
    return sum(max(0, end - reached.get(partition, 0)) for partition, end in ends.items())
