"""Streams and roles as plain data: what reads what, what writes what, under which settings.

This is the one declaration. The supervisor, the topics, Dagster's assets and lineage and the diagrams are rendered from
it or tested against it; nothing about the application's shape is written anywhere else. Installed packages add streams
and roles of their own (see declarations.py).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from streaming.declarations import (
    COMPACTED,
    EVENTS,
    SNAPSHOTS,
    Role,
    RoleKind,
    Stream,
    StreamKind,
    declared,
    sink,
)
from streaming.errors import UsageError

__all__ = ["ROLES", "STREAMS", "Role", "RoleKind", "Stream", "StreamKind", "role", "state_stream", "stream"]

_STREAMS = (
    Stream("positions", StreamKind.SOURCE, "where each vehicle is, at least ten times a second", settings=EVENTS),
    Stream(
        "diagnostics", StreamKind.SOURCE, "how each vehicle is: once a second, in bursts on faults", settings=EVENTS
    ),
    Stream("vehicles", StreamKind.REFERENCE, "model, depot and limits of each vehicle", 1, settings=COMPACTED),
    Stream("position_means", StreamKind.DERIVED, "2 s event-time tumbling means per vehicle", settings=EVENTS),
    Stream(
        "late_positions", StreamKind.DERIVED, "positions that came after their window had closed", 3, settings=EVENTS
    ),
    Stream("alerts", StreamKind.DERIVED, "means that were judged speeding, outside or anomalous", 3, settings=EVENTS),
    Stream("means_state", StreamKind.STATE, "open windows and watermarks, a snapshot a partition", settings=SNAPSHOTS),
    Stream(
        "alerts_state", StreamKind.STATE, "speed statistics per vehicle, a snapshot a partition", settings=SNAPSHOTS
    ),
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
    *(sink(stream.name, "parquet") for stream in _STREAMS if stream.kind is not StreamKind.STATE),
    sink("position_means", "csv"),
    sink("alerts", "csv"),
)
_WHOLE: Final = declared(_STREAMS, _ROLES)
STREAMS: Final = MappingProxyType({stream.name: stream for stream in _WHOLE.streams})
ROLES: Final = MappingProxyType({role.name: role for role in _WHOLE.roles})


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
