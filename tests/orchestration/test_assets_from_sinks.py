"""Summaries: their numbers are those of plain polars over what has landed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from PIL import Image
from polars.testing import assert_frame_equal

from assets.chains import Extent, look
from assets.quality import quality
from assets.rates import rates
from assets.store import summary_path
from assets.tracks import beginnings, segments, tracks
from assets.vehicle_hours import summarised, vehicle_hours
from orchestration.resources import FIGURE_LIMIT_BYTES, RESOURCES
from orchestration.specs import external_assets
from sinks.reader import scan, slots
from streaming.home import Home
from tests.orchestration.landing_scenes import START, alerts, land, land_fleet, means, positions


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def made(home: Home, *chosen: dg.AssetsDefinition) -> dict[str, dict[str, Any]]:
    """Materialise some summaries; their metadata by name."""
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            [*external_assets(), *chosen],
            selection=dg.AssetSelection.groups("summaries"),
            instance=instance,
            resources={**RESOURCES, "home": home},
        )
    assert result.success
    events = result.get_asset_materialization_events()
    return {str(event.asset_key and event.asset_key.path[-1]): dict(event.materialization.metadata) for event in events}


def test_an_hour_of_a_vehicle_adds_up(home: Home) -> None:
    land_fleet(home)
    metadata = made(home, vehicle_hours)["vehicle_hours"]
    rows = pl.read_parquet(summary_path(home, "vehicle_hours"))
    assert metadata["dagster/row_count"].value == len(rows) == 4  # two vehicles, from 11:59:30 on
    landed = scan(home, "kafka", "positions_parquet").collect()
    assert_frame_equal(
        rows.select("vehicle", "hour", "positions", "speed_max_kmh", "first", "last"),
        landed.group_by("vehicle", pl.col("event_time").dt.truncate("1h").alias("hour"))
        .agg(
            positions=pl.len().cast(pl.Int64),
            speed_max_kmh=pl.col("speed_mps").max() * 3.6,
            first=pl.col("event_time").min(),
            last=pl.col("event_time").max(),
        )
        .sort("hour", "vehicle"),
    )
    whole = rows.filter(vehicle="v1").row(1, named=True)  # from 12:00:00, at 10 m/s all along
    assert whole["distance_km"] == pytest.approx((whole["last"] - whole["first"]).total_seconds() * 0.01, abs=0.011)
    assert whole["speed_mean_kmh"] == pytest.approx(36.0)


def test_a_recording_that_begins_again_has_not_driven_home(home: Home) -> None:
    twice = [positions(600, first=0), positions(600, first=0).with_columns(sequence=pl.col("sequence") + 600)]
    again = twice[1].with_columns(pl.col("event_time") + timedelta(seconds=61))
    land(home, "positions-parquet", pl.concat([twice[0], again]))
    [drive] = summarised(scan(home, "kafka", "positions_parquet")).group_by("vehicle").agg(pl.sum("distance_km")).rows()
    assert drive[1] == pytest.approx(2 * 0.594, abs=0.03)


def test_hours_made_step_by_step_equal_hours_made_at_once(home: Home) -> None:
    for part in range(4):
        rows = positions(9000, first=9000 * part, vehicle=f"v{part % 2}")
        land(home, "positions-parquet", rows[:5000], rows[5000:], partition=part % 2)
        made(home, vehicle_hours)
        step_by_step = pl.read_parquet(summary_path(home, "vehicle_hours"))
        assert_frame_equal(step_by_step, summarised(scan(home, "kafka", "positions_parquet")))
    slots(home, "kafka", "positions_parquet")[1].path.unlink()
    made(home, vehicle_hours)
    assert_frame_equal(
        pl.read_parquet(summary_path(home, "vehicle_hours")), summarised(scan(home, "kafka", "positions_parquet"))
    )


def test_only_hours_that_newer_slots_touch_are_made_anew(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    land(home, "positions-parquet", positions(1500), positions(30_000, first=1500))
    made(home, vehicle_hours)
    seen: list[set[Any]] = []

    def watched(rows: pl.LazyFrame) -> pl.DataFrame:
        seen.append(set(rows.select("hour").unique().collect()["hour"]))
        return summarised(rows)

    monkeypatch.setattr("assets.vehicle_hours.summarised", watched)
    land(home, "positions-parquet", positions(100, first=31_500))
    made(home, vehicle_hours)
    made(home, vehicle_hours)
    assert seen == [{START.replace(hour=12, minute=0, second=0)}]


def test_quality_counts_what_is_there(home: Home) -> None:
    land_fleet(home)
    land(home, "late-positions-parquet", positions(0), bad=3)
    doubled = positions(10, first=4495)
    land(home, "positions-parquet", doubled)
    made(home, quality)
    rows = {row["table"]: row for row in pl.read_parquet(summary_path(home, "quality")).to_dicts()}
    assert len(rows) == 8
    for table, row in rows.items():
        there = slots(home, "kafka", table)
        assert row["rows"] == scan(home, "kafka", table).select(pl.len()).collect().item()
        assert (row["files"], row["size_bytes"]) == (len(there), sum(slot.path.stat().st_size for slot in there))
        assert row["gaps"] == 0
    assert rows["positions_parquet"]["duplicates"] == 5
    assert rows["late_positions_parquet"]["quarantined"] == 3
    assert rows["positions_parquet"]["vehicles_timed"] == 1  # the recording has a rate of its own
    assert rows["positions_parquet"]["rate_min_hz"] == pytest.approx(10.1)
    assert rows["late_positions_parquet"]["rate_min_hz"] is None


def test_the_figure_of_tracks_is_small_enough_to_be_kept_and_shown(home: Home) -> None:
    land_fleet(home)
    metadata = made(home, tracks)["tracks"]
    path = summary_path(home, "tracks", "png")
    assert path.stat().st_size * 4 / 3 < FIGURE_LIMIT_BYTES
    assert metadata["figure"].md_str.startswith("![tracks](data:image/png;base64,")
    assert len(Image.open(path).getcolors(maxcolors=1000)) > 20  # type: ignore[arg-type]  # something is drawn


def test_before_anything_has_landed_every_summary_is_empty_and_fine(home: Home) -> None:
    assert set(made(home, vehicle_hours, tracks, quality)) == {"vehicle_hours", "tracks", "quality"}
    assert pl.read_parquet(summary_path(home, "vehicle_hours")).is_empty()


def test_a_pause_breaks_the_track_and_a_step_has_the_speed_it_was_driven_at() -> None:
    windows = means(100)
    steps = segments(pl.concat([windows[:30], windows[70:]]))
    assert len(steps) == 29 + 29
    assert steps["kmh"].min() == pytest.approx(36.0) == steps["kmh"].max()


def test_a_spell_of_alerts_is_marked_once_where_it_began() -> None:
    windows = means(100)
    begun = beginnings(pl.concat([alerts(windows[10:20]), alerts(windows[80:85])]), windows)
    assert begun["latitude"].to_list() == windows["latitude"].gather([10, 80]).to_list()


@pytest.mark.parametrize("hz", [2.0, 9.75, 10.0, 10.1, 50.0])
def test_a_steady_rate_is_measured_exactly(hz: float) -> None:
    [row] = rates(positions(int(hz * 400), hz=hz).lazy()).to_dicts()
    assert row["minutes"] == 5
    assert row["rate_hz"] == row["slowest_hz"] == pytest.approx(hz, abs=1 / 60 / 5)
    assert row["gap_median_ms"] == pytest.approx(1000 / hz, abs=0.001)
    assert row["jitter_p99_ms"] < 0.01


def test_a_silent_minute_counts_against_the_rate() -> None:
    events = positions(4040)
    silent = pl.col("event_time").is_between(START + timedelta(seconds=90), START + timedelta(seconds=150))
    [row] = rates(events.filter(~silent).lazy()).to_dicts()
    assert row["slowest_hz"] == 0.0
    assert row["rate_hz"] == pytest.approx(10.1 * 4 / 5, abs=0.01)


def test_who_has_no_whole_minute_has_no_rate() -> None:
    assert rates(positions(800).lazy()).is_empty()  # 11:59:30 to 12:00:49


def test_an_extent_survives_being_written_down(home: Home) -> None:
    land_fleet(home)
    slots(home, "kafka", "positions_parquet")[1].path.unlink()
    extent = look(home, "kafka", "positions_parquet").extent
    assert Extent.load(extent.dump()) == extent
    assert extent.chains[0].missing
