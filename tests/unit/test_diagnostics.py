"""Diagnostics belong to the same drive as the positions, come once a second, and in bursts on faults."""

from __future__ import annotations

import threading

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from streaming.events import DIAGNOSTICS, ORIGIN, polars_schema
from streaming.generators.diagnostics import Diagnostics, Gauges
from streaming.generators.fleet import Fleet
from streaming.generators.pacing import ManualClock

HOUR = 36_000  # ticks


@pytest.fixture(scope="module")
def hour() -> pl.DataFrame:
    return Gauges(Fleet(1, 20)).rows(0, HOUR).with_columns(time_s=pl.col("event_time").to_physical() / 1e6)


def test_rows_have_the_streams_types(hour: pl.DataFrame) -> None:
    wanted = {name: kind for name, kind in polars_schema(DIAGNOSTICS).items() if name not in ORIGIN}
    assert dict(hour.drop("time_s").schema) == wanted
    assert Gauges(Fleet(1, 3)).rows(3, 3).schema == hour.drop("time_s").schema


def test_the_same_seed_gives_the_same_rows_however_they_are_cut(hour: pl.DataFrame) -> None:
    gauges = Gauges(Fleet(1, 20))
    parts = [gauges.rows(start, end) for start, end in ((0, 1), (1, 333), (333, 334), (334, 3000))]
    assert_frame_equal(pl.concat(parts), hour.drop("time_s").filter(hour["time_s"] < 299.95))


def test_every_vehicle_reports_once_a_second_and_more_often_while_a_fault_is_new(hour: pl.DataFrame) -> None:
    regular = hour.group_by("vehicle", (pl.col("time_s")).floor()).len()
    assert regular.height == 20 * 3600
    assert set(regular["len"]) >= {1, 10}
    bursts = regular.filter(pl.col("len") > 1)
    assert 0 < bursts.height < 0.02 * regular.height
    coded = hour.filter(pl.col("trouble_codes").list.len() > 0)
    assert bursts.join(coded.with_columns(pl.col("time_s").floor()), on=["vehicle", "time_s"], how="anti").is_empty()


def test_revolutions_load_and_way_follow_the_fleets_speed(hour: pl.DataFrame) -> None:
    fleet = Fleet(1, 20)
    number = hour["vehicle"].str.slice(-3).cast(pl.Int64).to_numpy() - 1
    speed = fleet.state(hour["time_s"].to_numpy(), number).speed_mps
    engine = hour["engine"].struct.unnest().with_columns(speed=speed).drop_nulls()
    assert engine.select(pl.corr("rpm", "speed")).item() > 0.6
    assert engine.filter(pl.col("speed") < 0.1)["rpm"].max() == 850
    one = hour.with_columns(speed=speed).filter(vehicle="vehicle-001", trip=pl.col("trip")).unnest("trip")
    first = one.filter(pl.col("trip_id") == one["trip_id"].drop_nulls()[0])
    driven = np.trapezoid(first["speed"].to_numpy(), first["time_s"].to_numpy())
    assert first["distance_m"][-1] - first["distance_m"][0] == pytest.approx(driven, rel=0.02)


def test_the_engine_warms_up_and_is_absent_while_parked(hour: pl.DataFrame) -> None:
    assert 0 < hour["engine"].null_count() == hour["trip"].null_count() < hour.height / 2
    assert hour["battery"].null_count() == 0
    one = hour.filter(vehicle="vehicle-001").unnest("engine").drop_nulls("coolant_c")
    assert one["coolant_c"][0] < 30
    assert one["coolant_c"].max() > 80  # type: ignore[operator]


def test_a_tyre_fault_shows_in_one_tyre_and_in_the_code(hour: pl.DataFrame) -> None:
    pressures = hour.with_columns(
        lowest=pl.col("tyres").list.eval(pl.element().struct.field("pressure_kpa")).list.min(),
        is_coded=pl.col("trouble_codes").list.contains("C0750"),
    )
    assert pressures.filter("is_coded").height > 0
    assert pressures.filter("is_coded")["lowest"].max() < 200  # type: ignore[operator]
    assert pressures.filter(~pl.col("is_coded"))["lowest"].min() > 225  # type: ignore[operator]


def test_wheels_are_named_in_order(hour: pl.DataFrame) -> None:
    wheels = hour["tyres"].list.eval(pl.element().struct.field("wheel")).unique()
    assert wheels.to_list() == [["front_left", "front_right", "rear_left", "rear_right"]]


def test_paced_diagnostics_say_when_they_were_made() -> None:
    clock = ManualClock()
    chunks = Diagnostics(1, 20, clock=clock).chunks(0, threading.Event())
    assert next(chunks).rows["event_time"].to_physical().unique().to_list() == [clock.started_us]
    assert next(chunks).rows["event_time"].to_physical().unique().to_list() == [clock.started_us + 100_000]
