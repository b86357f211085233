"""The domain: what each stream carries, as one Arrow schema with units. Read this first.

A vehicle fleet reports where it is (`positions`, simple and fast) and how it is (`diagnostics`, nested and bursty);
`vehicles` says what each vehicle is allowed. From these come 2 s means and alerts. Every event names who made it:
`producer` (a stable name), `epoch` (which life of that producer, counted up at each start) and `sequence` (0, 1, 2, …
within the epoch). That triple is the event's identity on every transport and in every file.

A *mark* is not an event: `sequence` is MARK, `vehicle` is empty, and it says only that its producer will send nothing
older than `event_time` to this partition. Marks move watermarks; sinks drop them, the ledger does not count them.
"""

from __future__ import annotations

from typing import Final

import polars as pl
import pyarrow as pa

MARK: Final = -1
ORIGIN: Final = ("producer", "epoch", "sequence")
EVENT_TIME: Final = pa.timestamp("us", tz="UTC")


def _field(name: str, kind: pa.DataType, says: str, *, optional: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=optional, metadata={"description": says})


_ORIGIN = [
    _field("producer", pa.string(), "who made the event: a stable name, unique among running producers"),
    _field("epoch", pa.int64(), "which life of the producer: rises by one at each start"),
    _field("sequence", pa.int64(), "0, 1, 2, … within the epoch; -1 for a mark"),
]
_VEHICLE = _field("vehicle", pa.string(), "the vehicle's name, the stream's key; empty for a mark")

POSITIONS = pa.schema(
    [
        _VEHICLE,
        *_ORIGIN,
        _field("event_time", EVENT_TIME, "when the fix was taken"),
        _field("latitude", pa.float64(), "degrees north, WGS 84", optional=True),
        _field("longitude", pa.float64(), "degrees east, WGS 84", optional=True),
        _field("altitude_m", pa.float64(), "metres above the ellipsoid", optional=True),
        _field("speed_mps", pa.float64(), "metres per second over ground", optional=True),
        _field("heading_deg", pa.float64(), "degrees clockwise from north, 0 ≤ heading < 360", optional=True),
        _field("dilution", pa.float64(), "horizontal dilution of precision, dimensionless", optional=True),
    ]
)

DIAGNOSTICS = pa.schema(
    [
        _VEHICLE,
        *_ORIGIN,
        _field("event_time", EVENT_TIME, "when the values were read"),
        _field(
            "engine",
            pa.struct(
                [
                    _field("rpm", pa.float64(), "revolutions per minute"),
                    _field("coolant_c", pa.float64(), "coolant temperature, °C"),
                    _field("load", pa.float64(), "0 to 1"),
                ]
            ),
            "the engine's state; null while it is off",
            optional=True,
        ),
        _field(
            "battery",
            pa.struct(
                [
                    _field("voltage_v", pa.float64(), "volts"),
                    _field("charge", pa.float64(), "state of charge, 0 to 1", optional=True),
                ]
            ),
            "the battery's state",
        ),
        _field(
            "tyres",
            pa.list_(
                pa.struct(
                    [
                        _field("wheel", pa.string(), "front_left, front_right, rear_left or rear_right"),
                        _field("pressure_kpa", pa.float64(), "kilopascals"),
                        _field("temperature_c", pa.float64(), "°C", optional=True),
                    ]
                )
            ),
            "one entry a wheel",
        ),
        _field("trouble_codes", pa.list_(pa.string()), "OBD-II codes that are set, often none"),
        _field(
            "trip",
            pa.struct(
                [
                    _field("trip_id", pa.string(), "this drive's name"),
                    _field("distance_m", pa.float64(), "metres since its start"),
                ]
            ),
            "the drive; null while parked",
            optional=True,
        ),
    ]
)

VEHICLES = pa.schema(
    [
        _VEHICLE,
        *_ORIGIN,
        _field("event_time", EVENT_TIME, "since when this holds"),
        _field("model", pa.string(), "make and model"),
        _field("depot", pa.string(), "name of the home depot"),
        _field("depot_latitude", pa.float64(), "degrees north"),
        _field("depot_longitude", pa.float64(), "degrees east"),
        _field("speed_limit_mps", pa.float64(), "metres per second the vehicle may drive"),
        _field("range_limit_m", pa.float64(), "metres it may be away from the depot: its geofence"),
    ]
)

_WINDOW = [
    _VEHICLE,
    *_ORIGIN,
    _field("source", pa.string(), "the producer of the positions in this window"),
    _field("window_start", EVENT_TIME, "first moment of the 2 s tumbling window"),
    _field("window_end", EVENT_TIME, "first moment after it"),
]

POSITION_MEANS = pa.schema(
    [
        *_WINDOW,
        _field("count", pa.int64(), "positions in the window"),
        _field("latitude", pa.float64(), "mean, degrees north", optional=True),
        _field("longitude", pa.float64(), "mean, degrees east", optional=True),
        _field("speed_mps", pa.float64(), "mean, metres per second", optional=True),
        _field("distance_m", pa.float64(), "metres along the positions of the window, in event-time order"),
    ]
)

ALERTS = pa.schema(
    [
        *_WINDOW,
        _field("kind", pa.string(), "speeding, geofence or anomaly"),
        _field("value", pa.float64(), "what was measured: m/s, metres from the depot, or standard deviations"),
        _field("limit", pa.float64(), "what it was held against, same unit"),
        _field("model", pa.string(), "from vehicles", optional=True),
        _field("depot", pa.string(), "from vehicles", optional=True),
        _field("vehicles_version", pa.int64(), "offset-based version of the vehicles table that judged"),
    ]
)

SCHEMAS: Final[dict[str, pa.Schema]] = {
    "positions": POSITIONS,
    "diagnostics": DIAGNOSTICS,
    "vehicles": VEHICLES,
    "position_means": POSITION_MEANS,
    "alerts": ALERTS,
    "late_positions": POSITIONS,
}


def polars_schema(schema: pa.Schema) -> pl.Schema:
    """The same schema in polars' types."""
    frame = pl.from_arrow(schema.empty_table())
    if not isinstance(frame, pl.DataFrame):
        raise TypeError(schema)
    return frame.schema
