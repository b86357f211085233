"""Streams and roles as plain data: what reads what, what writes what, under which settings.

This is the one declaration. The supervisor, the topics, Dagster's assets and lineage and the diagrams are rendered from
it or tested against it; nothing about the application's shape is written anywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

import pyarrow as pa

from streaming.errors import UsageError
from streaming.events import SCHEMAS

DAY_MS: Final = 24 * 3600 * 1000


class StreamKind(StrEnum):
    """What a stream is for."""

    SOURCE = "source"  # events as they were made
    REFERENCE = "reference"  # the last value per key counts (compacted)
    DERIVED = "derived"  # computed from other streams
    STATE = "state"  # a transformer's memory; nobody else reads it (compacted)


@dataclass(frozen=True, slots=True)
class Stream:
    """A named, partitioned sequence of records. `settings` are the broker's own names and values, for Kafka topics."""

    name: str
    kind: StreamKind
    says: str
    partitions: int = 6
    key: str = "vehicle"
    settings: MappingProxyType[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of its records; state streams carry opaque snapshots and have none."""
        try:
            return SCHEMAS[self.name]
        except KeyError:
            raise UsageError(f"{self.name} has no schema: it is a {self.kind} stream") from None


class RoleKind(StrEnum):
    """What a role does with streams."""

    GENERATOR = "generator"
    TRANSFORMER = "transformer"
    SINK = "sink"


@dataclass(frozen=True, slots=True)
class Role:
    """A long-running process of the application. Its name is its consumer group, client id and log file."""

    name: str
    kind: RoleKind
    says: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    looks_up: tuple[str, ...] = ()  # reference streams, read whole before the first record
    table: str | None = None  # sinks: the folder in the warehouse
    format: str | None = None  # sinks: parquet or csv


def _settings(**values: str | int) -> MappingProxyType[str, str]:
    return MappingProxyType({name.replace("_", "."): str(value) for name, value in values.items()})


_EVENTS = _settings(retention_ms=7 * DAY_MS, cleanup_policy="delete")
_COMPACTED = _settings(cleanup_policy="compact", segment_ms=600_000, min_cleanable_dirty_ratio="0.1")
_SNAPSHOTS = _settings(
    cleanup_policy="compact",
    segment_bytes=32 * 1024**2,
    max_message_bytes=16 * 1024**2,
    min_cleanable_dirty_ratio="0.1",
)

_STREAMS = (
    Stream("positions", StreamKind.SOURCE, "where each vehicle is, at least ten times a second", settings=_EVENTS),
    Stream(
        "diagnostics", StreamKind.SOURCE, "how each vehicle is: once a second, in bursts on faults", settings=_EVENTS
    ),
    Stream("vehicles", StreamKind.REFERENCE, "model, depot and limits of each vehicle", 1, settings=_COMPACTED),
    Stream("position_means", StreamKind.DERIVED, "2 s event-time tumbling means per vehicle", settings=_EVENTS),
    Stream(
        "late_positions", StreamKind.DERIVED, "positions that came after their window had closed", 3, settings=_EVENTS
    ),
    Stream("alerts", StreamKind.DERIVED, "means that were judged speeding, outside or anomalous", 3, settings=_EVENTS),
    Stream("means_state", StreamKind.STATE, "open windows and watermarks, a snapshot a partition", settings=_SNAPSHOTS),
    Stream(
        "alerts_state", StreamKind.STATE, "speed statistics per vehicle, a snapshot a partition", settings=_SNAPSHOTS
    ),
)
STREAMS: Final = MappingProxyType({stream.name: stream for stream in _STREAMS})


def _sink(stream: str, file_format: str) -> Role:
    return Role(
        f"{stream.replace('_', '-')}-{file_format}",
        RoleKind.SINK,
        f"lands {stream} in {file_format} files, exactly once",
        reads=(stream,),
        table=f"{stream}_{file_format}",
        format=file_format,
    )


_ROLES = (
    Role("vehicles-generator", RoleKind.GENERATOR, "publishes the fleet's reference data", writes=("vehicles",)),
    Role(
        "positions-generator", RoleKind.GENERATOR, "simulates the fleet's positions, open loop", writes=("positions",)
    ),
    Role("diagnostics-generator", RoleKind.GENERATOR, "simulates the fleet's diagnostics", writes=("diagnostics",)),
    Role(
        "recording-replay", RoleKind.GENERATOR, "replays a recorded drive beside the simulation", writes=("positions",)
    ),
    Role(
        "means-transformer",
        RoleKind.TRANSFORMER,
        "2 s event-time tumbling means per vehicle",
        reads=("positions",),
        writes=("position_means", "late_positions", "means_state"),
    ),
    Role(
        "alerts-transformer",
        RoleKind.TRANSFORMER,
        "joins means with vehicles and judges them",
        reads=("position_means",),
        writes=("alerts", "alerts_state"),
        looks_up=("vehicles",),
    ),
    *(_sink(stream.name, "parquet") for stream in _STREAMS if stream.kind is not StreamKind.STATE),
    _sink("position_means", "csv"),
    _sink("alerts", "csv"),
)
ROLES: Final = MappingProxyType({role.name: role for role in _ROLES})


def role(name: str) -> Role:
    """The role of this name; UsageError naming all roles if there is none."""
    try:
        return ROLES[name]
    except KeyError:
        raise UsageError(f"there is no role {name!r}; the roles are {', '.join(ROLES)}") from None


def stream(name: str) -> Stream:
    """The stream of this name; UsageError naming all streams if there is none."""
    try:
        return STREAMS[name]
    except KeyError:
        raise UsageError(f"there is no stream {name!r}; the streams are {', '.join(STREAMS)}") from None


def state_stream(of: Role) -> Stream:
    """The stream in which a transformer keeps its state."""
    return next(STREAMS[name] for name in of.writes if STREAMS[name].kind is StreamKind.STATE)
