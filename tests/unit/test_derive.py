"""Derived columns of positions, against values that are known elsewhere."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinks.derive import derive, geohash, table_descriptions, table_schema
from streaming.events import POSITIONS, SCHEMAS, polars_schema
from streaming.topology import ROLES, RoleKind

SINKS = [role for role in ROLES.values() if role.kind is RoleKind.SINK]
ALPHABET = "0123456789bcdefghjkmnpqrstuvwxyz"


def by_halving(latitude: float, longitude: float) -> str:
    """The textbook's way: halve the longitude's and the latitude's range in turn."""
    bounds, bits = [[-180.0, 180.0], [-90.0, 90.0]], ""
    for turn in range(35):
        low, high = bounds[turn % 2]
        middle, value = (low + high) / 2, (longitude, latitude)[turn % 2]
        bits += "1" if value >= middle else "0"
        bounds[turn % 2] = [middle, high] if value >= middle else [low, middle]
    return "".join(ALPHABET[int(bits[at : at + 5], 2)] for at in range(0, 35, 5))


@pytest.mark.parametrize(
    ("latitude", "longitude", "expected"),
    [
        (57.64911, 10.40744, "u4pruyd"),  # the example of the format's inventor
        (42.605, -5.603, "ezs42"),  # the encyclopaedia's
        (48.8584, 2.2945, "u09tunq"),
        (-33.8568, 151.2153, "r3gx2ux"),
        (-25.382708, -49.265506, "6gkzwgj"),
        (0.0, 0.0, "s000000"),
        (90.0, 180.0, "zzzzzzz"),
        (-90.0, -180.0, "0000000"),
    ],
)
def test_geohashes_of_known_places(latitude: float, longitude: float, expected: str) -> None:
    assert geohash(pl.Series([latitude]), pl.Series([longitude])).str.starts_with(expected).to_list() == [True]


def degrees(bound: int) -> st.SearchStrategy[float]:
    """Whole millionths: a value next to a cell's edge by less than that may round to either side."""
    return st.integers(-bound * 1_000_000, bound * 1_000_000 - 1).map(lambda millionths: millionths / 1e6)


@given(st.lists(st.tuples(degrees(90), degrees(180)), min_size=1, max_size=20))
def test_geohashes_are_those_of_the_textbook(places: list[tuple[float, float]]) -> None:
    latitudes, longitudes = zip(*places, strict=True)
    assert geohash(pl.Series(latitudes), pl.Series(longitudes)).to_list() == [by_halving(*place) for place in places]


@pytest.mark.parametrize("place", [(None, 1.0), (1.0, None), (float("nan"), 1.0), (91.0, 0.0), (0.0, -1e300)])
def test_there_is_no_geohash_of_no_place(place: tuple[float | None, float | None]) -> None:
    found = geohash(pl.Series([place[0], 1.0], dtype=pl.Float64), pl.Series([place[1], 1.0], dtype=pl.Float64))
    assert found.to_list() == [None, "s00twy0"]


def test_positions_gain_hour_geohash_and_speed() -> None:
    moment = datetime(2026, 11, 25, 10, 59, 59, 999_999, tzinfo=UTC)
    values = ["v", "p", 1, 2, moment, 57.64911, 10.40744, None, 10.0, None, None]
    found = derive("positions", pl.DataFrame([values], schema=polars_schema(POSITIONS), orient="row"))
    added = found.select("hour", "geohash", "speed_kmh").row(0)
    assert added == (datetime(2026, 11, 25, 10, tzinfo=UTC), "u4pruyd", 36.0)


@pytest.mark.parametrize("role", SINKS, ids=[role.name for role in SINKS])
def test_every_table_has_the_columns_its_schema_promises_each_described(role: object) -> None:
    assert role in SINKS
    [sink] = [each for each in SINKS if each is role]
    empty = pl.DataFrame(schema=polars_schema(SCHEMAS[sink.reads[0]]))
    place = {"_partition": pl.Series([], dtype=pl.Int32), "_offset": pl.Series([], dtype=pl.Int64)}
    made = derive(sink.reads[0], empty).with_columns(**place).select(table_schema(sink).names())
    assert made.schema == table_schema(sink)
    assert list(table_descriptions(sink)) == table_schema(sink).names()
    assert all(table_descriptions(sink).values())
