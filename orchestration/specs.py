"""The application as Dagster sees it from outside: generators, topics and tables, rendered from streaming/topology.py.

Invariant: every edge comes from a role. A stream depends on what its writers read and look up, or on the generators
that make it; a table depends on the stream its sink reads. Nothing here runs: supervised processes do the work, and
sensors.py reports what they committed. State streams are a transformer's own memory and are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Final

import dagster as dg
import pyarrow as pa

from assets.keys import BROKER, in_keys, stream_key, table_key
from sinks.derive import table_descriptions, table_schema
from streaming.errors import SetupError
from streaming.home import Home
from streaming.lab import KAFKA, QUEUES, RABBITMQ_STREAMS, Lab
from streaming.topology import ROLES, STREAMS, Role, RoleKind, Stream, StreamKind

NEVER_RESTING: Final = frozenset({"positions", "diagnostics", "position_means"})
"""Streams that flow whenever the lab is up. The others wait for something to happen, so silence is not staleness."""
STALE_AFTER: Final = timedelta(minutes=10)
SUSPECT_AFTER: Final = timedelta(minutes=3)

SINKS: Final = tuple(role for role in ROLES.values() if role.kind is RoleKind.SINK)
GENERATORS: Final = tuple(role for role in ROLES.values() if role.kind is RoleKind.GENERATOR)
_CALLED: Final = {KAFKA: "Topic", QUEUES: "Queues of", RABBITMQ_STREAMS: "Stream"}
_KINDS: Final = {KAFKA: "kafka", QUEUES: "rabbitmq", RABBITMQ_STREAMS: "rabbitmq"}
TOPICS: Final = tuple(stream for stream in STREAMS.values() if stream.kind is not StreamKind.STATE)


def generator_key(role: Role, broker: str = BROKER) -> dg.AssetKey:
    """The asset of a generator."""
    return dg.AssetKey([in_keys(broker), "generators", role.name.replace("-", "_")])


def column_schema(schema: pa.Schema) -> dg.TableSchema:
    """An Arrow schema, with its fields' descriptions, in Dagster's words."""
    return dg.TableSchema([_column(field) for field in schema])


def _column(field: pa.Field) -> dg.TableColumn:
    says = (field.metadata or {}).get(b"description", b"").decode()
    return dg.TableColumn(
        field.name, str(field.type), says or None, constraints=dg.TableColumnConstraints(nullable=field.nullable)
    )


def _origins(stream: Stream, broker: str) -> Iterable[dg.AssetKey]:
    for role in (role for role in ROLES.values() if stream.name in role.writes):
        if role.kind is RoleKind.GENERATOR:
            yield generator_key(role, broker)
        yield from (dg.AssetKey(stream_key(name, broker)) for name in (*role.reads, *role.looks_up))


def _generator(role: Role, broker: str) -> dg.AssetSpec:
    return dg.AssetSpec(
        generator_key(role, broker),
        description=f"{role.name} {role.says}: a supervised process, outside Dagster.",
        group_name="generators",
        kinds={"python"},
        owners=["team:streaming"],
    )


def _topic(stream: Stream, broker: str) -> dg.AssetSpec:
    writers = ", ".join(role.name for role in ROLES.values() if stream.name in role.writes)
    return dg.AssetSpec(
        stream_key(stream.name, broker),
        deps=sorted(set(_origins(stream, broker)), key=str),
        description=f"{_CALLED[broker]} {stream.name}: {stream.says}. Written by {writers}.",
        group_name="streams",
        kinds={_KINDS[broker]},
        owners=["team:streaming"],
        tags={"kind_of_stream": stream.kind.value},
        metadata={
            "dagster/column_schema": column_schema(stream.schema),
            "partitions": stream.partitions if broker == BROKER else 1,
            "key": stream.key,
            **(stream.settings if broker == BROKER else {}),
        },
    )


def _table(role: Role, broker: str) -> dg.AssetSpec:
    (stream,) = role.reads
    return dg.AssetSpec(
        table_key(str(role.table), broker),
        deps=[stream_key(stream, broker)],
        description=f"{role.name} {role.says}: one file a slot of the chain, visible whole or not at all.",
        group_name="tables",
        kinds={_KINDS[broker], str(role.format)},
        owners=["team:sinks"],
        metadata={"dagster/table_name": f"{broker}.{role.table}", "dagster/column_schema": _landed_schema(role)},
        freshness_policy=dg.FreshnessPolicy.time_window(fail_window=STALE_AFTER, warn_window=SUSPECT_AFTER)
        if stream in NEVER_RESTING
        else None,
    ).with_io_manager_key("warehouse")


def _landed_schema(role: Role) -> dg.TableSchema:
    """The stream's columns, the derived ones, and the record's place."""
    says, fields = table_descriptions(role), STREAMS[role.reads[0]].schema
    return dg.TableSchema(
        [
            _column(fields.field(name)) if name in fields.names else dg.TableColumn(name, str(kind), says[name])
            for name, kind in table_schema(role).items()
        ]
    )


def shown_brokers(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Kafka, and whatever else the lab of this environment runs on. A lab that can't be read shows Kafka alone."""
    try:
        lab = Lab.load(Home.locate(environ))
    except SetupError:
        return (BROKER,)
    return (BROKER, *(broker for broker in lab.brokers if broker != BROKER))


def external_assets(brokers: Iterable[str] = (BROKER,)) -> list[dg.AssetSpec]:
    """Every generator, topic and table of these brokers, with its lineage: the same shape under each broker's name."""
    return [
        spec
        for broker in brokers
        for spec in (
            *(_generator(role, broker) for role in GENERATORS),
            *(_topic(stream, broker) for stream in TOPICS),
            *(_table(role, broker) for role in SINKS),
        )
    ]
