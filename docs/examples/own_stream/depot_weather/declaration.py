"""What this package adds to the application: two streams and a state, four roles. Data only, no work at import."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from streaming.declarations import EVENTS, SNAPSHOTS, Declaration, Role, RoleKind, Stream, StreamKind, sink
from streaming.events import EVENT_TIME


def _field(name: str, kind: pa.DataType, says: str) -> pa.Field:
    return pa.field(name, kind, nullable=False, metadata={"description": says})


_ORIGIN = [
    _field("depot", pa.string(), "the depot's name, the stream's key; empty for a mark"),
    _field("producer", pa.string(), "who made the event"),
    _field("epoch", pa.int64(), "which life of the producer"),
    _field("sequence", pa.int64(), "0, 1, 2, … within the epoch; -1 for a mark"),
]
WEATHER: Final = pa.schema(
    [
        *_ORIGIN,
        _field("event_time", EVENT_TIME, "when the thermometer was read"),
        _field("temperature_c", pa.float64(), "air temperature, °C"),
    ]
)
FROSTS: Final = pa.schema(
    [
        *_ORIGIN,
        _field("event_time", EVENT_TIME, "the first reading on the other side of 0 °C"),
        _field("is_freezing", pa.bool_(), "whether frost begins (true) or ends"),
        _field("temperature_c", pa.float64(), "that reading, °C"),
    ]
)

DECLARATION: Final = Declaration(
    streams=(
        Stream(
            "depot_weather", StreamKind.SOURCE, "the temperature at each depot", 3, "depot", EVENTS, carries=WEATHER
        ),
        Stream("frosts", StreamKind.DERIVED, "frost begins or ends at a depot", 3, "depot", EVENTS, carries=FROSTS),
        Stream("frosts_state", StreamKind.STATE, "whether it freezes, by depot", 3, settings=SNAPSHOTS),
    ),
    roles=(
        Role(
            "depot_weather-generator",
            RoleKind.GENERATOR,
            "reads the depots' thermometers, ten times a second",
            writes=("depot_weather",),
            made_by="depot_weather.generator:thermometers",
        ),
        Role(
            "frosts-transformer",
            RoleKind.TRANSFORMER,
            "tells when frost begins and ends",
            reads=("depot_weather",),
            writes=("frosts", "frosts_state"),
            made_by="depot_weather.transformer:FrostStep",
        ),
        sink("depot_weather", "parquet"),
        sink("frosts", "parquet"),
        sink("frosts", "csv"),
    ),
)
