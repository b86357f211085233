"""What a stream and a role are, as plain data, and what a person's own package declares of them.

A package adds streams and roles without touching this program: an installed distribution names a Declaration in its
entry points, group `streamgauge.streams`. Invariant: a declaration that does not fit is refused when it is loaded, by
the package's name, never later. docs/own-stream.md shows a whole one.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, Final

import pyarrow as pa

from streaming.errors import UsageError
from streaming.events import EVENT_TIME, ORIGIN, SCHEMAS

GROUP: Final = "streamgauge.streams"
DAY_MS: Final = 24 * 3600 * 1000
Settings = MappingProxyType[str, str]


class StreamKind(StrEnum):
    """What a stream is for."""

    SOURCE = "source"  # events as they were made
    REFERENCE = "reference"  # the last value per key counts (compacted)
    DERIVED = "derived"  # computed from other streams
    STATE = "state"  # a transformer's memory; nobody else reads it (compacted)


@dataclass(frozen=True, slots=True)
class Stream:
    """A named, partitioned sequence of records. `settings` are the broker's own names and values, for Kafka topics.

    `carries` is the schema of a stream that is not in streaming/events.py.
    """

    name: str
    kind: StreamKind
    says: str
    partitions: int = 6
    key: str = "vehicle"
    settings: Settings = field(default_factory=lambda: MappingProxyType({}))
    carries: pa.Schema | None = None

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of its records; state streams carry opaque snapshots and have none."""
        schema = SCHEMAS.get(self.name) if self.carries is None else self.carries
        if schema is None:
            raise UsageError(f"{self.name} has no schema: it is a {self.kind} stream")
        return schema

    def shaped(self, partitions: int | None) -> Stream:
        """This stream with so many partitions, if a number is given; reference data keeps its own."""
        return self if partitions is None or self.kind is StreamKind.REFERENCE else replace(self, partitions=partitions)


class RoleKind(StrEnum):
    """What a role does with streams."""

    GENERATOR = "generator"
    TRANSFORMER = "transformer"
    SINK = "sink"


@dataclass(frozen=True, slots=True)
class Role:
    """A long-running process of the application. Its name is its consumer group, client id and log file.

    `made_by` names, as "module:callable", who makes an own role's part: a generator from (lab, is_paced=…), a
    transformer's step from nothing. A sink needs none.
    """

    name: str
    kind: RoleKind
    says: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    looks_up: tuple[str, ...] = ()  # reference streams, read whole before the first record
    table: str | None = None  # sinks: the folder in the warehouse
    format: str | None = None  # sinks: parquet or csv
    made_by: str | None = None


def settings(**values: str | int) -> Settings:
    """Topic settings in the broker's names, with _ for the dots."""
    return MappingProxyType({name.replace("_", "."): str(value) for name, value in values.items()})


EVENTS: Final = settings(retention_ms=7 * DAY_MS, cleanup_policy="delete")
COMPACTED: Final = settings(cleanup_policy="compact", segment_ms=600_000, min_cleanable_dirty_ratio="0.1")
SNAPSHOTS: Final = settings(
    cleanup_policy="compact",
    segment_bytes=32 * 1024**2,
    max_message_bytes=16 * 1024**2,
    min_cleanable_dirty_ratio="0.1",
)


def sink(stream: str, file_format: str) -> Role:
    """The sink that lands a stream in `parquet` or `csv` files."""
    return Role(
        f"{stream.replace('_', '-')}-{file_format}",
        RoleKind.SINK,
        f"lands {stream} in {file_format} files, exactly once",
        reads=(stream,),
        table=f"{stream}_{file_format}",
        format=file_format,
    )


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a package adds to the application."""

    streams: tuple[Stream, ...]
    roles: tuple[Role, ...]


def declared(streams: Iterable[Stream], roles: Iterable[Role]) -> Declaration:
    """These streams and roles and those of all installed packages, each checked against what is there before it."""
    whole = Declaration(tuple(streams), tuple(roles))
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        added = point.load()
        if not isinstance(added, Declaration):
            raise UsageError(f"{point.value} is no Declaration")
        check(point.name, whole, added)
        whole = Declaration((*whole.streams, *added.streams), (*whole.roles, *added.roles))
    return whole


def check(package: str, whole: Declaration, added: Declaration) -> None:
    """UsageError with all that does not fit about a package's declaration."""
    wrong = [*_clashes(whole, added), *_of_streams(added)]
    streams = {stream.name: stream for stream in (*whole.streams, *added.streams)}
    wrong += [f"{role.name}: {says}" for role in added.roles for says in _of_role(role, streams)]
    if wrong:
        raise UsageError(f"the declaration of {package!r} does not fit: {'; '.join(wrong)}")


def made(reference: str, *arguments: Any, **options: Any) -> Any:
    """Call a role's `made_by`. UsageError when there is no such callable."""
    module, _, name = reference.partition(":")
    try:
        maker: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{reference} can't be loaded: {error}") from error
    return maker(*arguments, **options)


def _clashes(whole: Declaration, added: Declaration) -> Iterable[str]:
    taken = set(_names(whole))
    for name in _names(added):
        if name in taken:
            yield f"{name} is there already"
        taken.add(name)


def _names(declaration: Declaration) -> list[str]:
    return [*(stream.name for stream in declaration.streams), *(role.name for role in declaration.roles)]


def _of_streams(added: Declaration) -> Iterable[str]:
    for stream in added.streams:
        if not re.fullmatch("[a-z][a-z0-9_]*", stream.name):
            yield f"{stream.name}: small letters, digits and _ only"
        if stream.kind is StreamKind.STATE:
            continue
        if stream.carries is None:
            yield f"{stream.name} carries no schema"
            continue
        if missing := [name for name in (stream.key, *ORIGIN, "event_time") if name not in stream.carries.names]:
            yield f"{stream.name} has no column {', '.join(missing)}"
        if stream.carries.field("event_time").type != EVENT_TIME:
            yield f"{stream.name}: event_time is no {EVENT_TIME}"
        if plain := [each.name for each in stream.carries if not (each.metadata or {}).get(b"description")]:
            yield f"{stream.name}: no description of {', '.join(plain)}"


def _of_role(role: Role, streams: Mapping[str, Stream]) -> Iterable[str]:
    if unknown := [name for name in (*role.reads, *role.writes) if name not in streams]:
        yield f"there is no stream {', '.join(unknown)}"
        return
    if role.looks_up:
        yield "own roles look nothing up"
    if role.kind is RoleKind.SINK:
        if len(role.reads) != 1 or role.writes or role.table is None or role.format not in {"parquet", "csv"}:
            yield "a sink is made by sink(stream, 'parquet' or 'csv')"
        return
    if role.made_by is None:
        yield "made_by says who makes it"
    if not role.name.endswith(f"-{role.kind}"):
        yield f"its name ends in -{role.kind}"
    yield from _of_flow(role, streams)


def _of_flow(role: Role, streams: Mapping[str, Stream]) -> Iterable[str]:
    writes = [streams[name].kind for name in role.writes]
    if role.kind is RoleKind.GENERATOR:
        if role.reads or writes != [StreamKind.SOURCE]:
            yield "a generator writes one source stream"
    elif len(role.reads) != 1 or writes != [StreamKind.DERIVED, StreamKind.STATE]:
        yield "a transformer reads one stream and writes a derived and a state stream"
    elif streams[role.reads[0]].partitions != streams[role.writes[1]].partitions:
        yield f"{role.writes[1]} needs as many partitions as {role.reads[0]}"
