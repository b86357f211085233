"""MeansStep: which rows belong together, when a window closes, what is late, and the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
import pytest

from streaming.events import MARK, POSITIONS, polars_schema
from streaming.transformers.windows import MeansState, MeansStep

START_US = 1_750_000_000_000_000


def position(at_s: float, vehicle: str = "a", **other: Any) -> dict[str, Any]:
    """A position `at_s` seconds after a window's start."""
    fix = {"vehicle": vehicle, "producer": "sim", "epoch": 1, "sequence": 0, "latitude": 50.0, "longitude": 8.0}
    return fix | {"event_time": START_US + round(at_s * 1e6), "speed_mps": 10.0} | other


def mark(at_s: float, **other: Any) -> dict[str, Any]:
    """A mark at that time."""
    return position(at_s, "", sequence=MARK, latitude=None, longitude=None, speed_mps=None) | other


def positions(*rows: dict[str, Any]) -> pl.DataFrame:
    """The rows in the schema of positions."""
    schema = polars_schema(POSITIONS)
    frame = pl.DataFrame(rows, schema={name: pl.Int64 if name == "event_time" else schema[name] for name in schema})
    return frame.cast({"event_time": schema["event_time"]})


def advance(*rows: dict[str, Any]) -> tuple[MeansState, Mapping[str, pl.DataFrame]]:
    """All rows in one batch from the beginning."""
    step = MeansStep()
    return step.advance(step.initial(0), positions(*rows))


def means(*rows: dict[str, Any]) -> list[dict[str, Any]]:
    """The means that the rows close."""
    return advance(*rows)[1]["position_means"].to_dicts()


def test_a_window_closes_with_the_row_that_reaches_its_end_plus_the_lateness() -> None:
    assert means(position(0.5), position(3.999999)) == []
    [mean] = means(position(0.5), position(4.0))
    assert (mean["vehicle"], mean["source"], mean["count"]) == ("a", "sim", 1)
    assert mean["window_start"].timestamp() * 1e6 == START_US
    assert mean["window_end"].timestamp() * 1e6 == START_US + 2_000_000


def test_a_mark_closes_windows_and_is_in_none() -> None:
    state, out = advance(position(0.5), mark(4.0))
    assert out["position_means"]["count"].to_list() == [1]
    assert len(state.open) == 0


def test_a_late_row_is_passed_on_unchanged_and_a_late_mark_is_not() -> None:
    late = position(1.9, sequence=7, altitude_m=3.0)
    _, out = advance(position(0.5), position(4.0), late, mark(0.1))
    assert out["late_positions"].equals(positions(late))
    assert out["position_means"]["count"].to_list() == [1]


def test_out_of_order_within_the_lateness_counts_in_its_window() -> None:
    [mean] = means(position(0.5), position(3.9), position(1.9, speed_mps=20.0), position(4.1))
    assert (mean["count"], mean["speed_mps"]) == (2, 15.0)


def test_one_producers_watermark_neither_closes_nor_delays_anothers_windows() -> None:
    state, out = advance(position(0.5), position(1000.0, producer="ahead"), position(1.0))
    assert out["position_means"].is_empty()
    assert out["late_positions"].is_empty()
    assert dict(state.watermarks.iter_rows()) == {"ahead": START_US + 1_000_000_000, "sim": START_US + 1_000_000}


def test_a_producers_watermark_outlives_its_epoch() -> None:
    _, out = advance(position(10.0), position(0.5, epoch=2))
    assert out["late_positions"]["epoch"].to_list() == [2]


def test_outputs_are_numbered_on_over_the_partition() -> None:
    step = MeansStep()
    state = step.initial(4)
    seen = []
    for batch in (positions(position(0), position(0, "b"), mark(4)), positions(position(5), mark(9))):
        state, out = step.advance(state, batch)
        seen += out["position_means"].select("producer", "epoch", "sequence", "vehicle").rows()
    assert seen == [("means-4", 0, 0, "a"), ("means-4", 0, 1, "b"), ("means-4", 0, 2, "a")]


def test_windows_come_in_the_order_in_which_they_were_closed_not_in_that_of_time() -> None:
    rows = (position(20, producer="ahead"), position(0), mark(24, producer="ahead"), mark(4))
    assert [mean["source"] for mean in means(*rows)] == ["ahead", "sim"]


def test_what_is_missing_or_impossible_is_left_out_of_the_mean_but_counted() -> None:
    [mean] = means(
        position(0.1, latitude=None, speed_mps=None),
        position(0.2, latitude=float("nan"), speed_mps=float("inf")),
        position(0.3, latitude=91.0, longitude=None, speed_mps=2.0),
        position(0.4, latitude=10.0, speed_mps=4.0),
        mark(4),
    )
    assert (mean["count"], mean["latitude"], mean["longitude"], mean["speed_mps"]) == (4, 10.0, 8.0, 3.0)
    assert mean["distance_m"] == 0.0
    [nothing] = means(position(0.1, latitude=None, longitude=None, speed_mps=None), mark(4))
    assert (nothing["latitude"], nothing["longitude"], nothing["speed_mps"], nothing["distance_m"]) == (
        None,
        None,
        None,
        0.0,
    )


def test_distance_follows_the_way_in_event_time_order_to_the_millimetre() -> None:
    north = 0.001  # degrees of latitude: 111.195 m on the mean sphere
    [mean] = means(
        position(0.3, latitude=50 + 2 * north),
        position(0.1, latitude=50.0),
        position(0.15, latitude=None),
        position(0.2, latitude=50 + north),
        position(0.1, "b", latitude=0.0),
        mark(4),
    )[:1]
    assert mean["distance_m"] == pytest.approx(2 * 111.195, abs=0.001)
    assert mean["distance_m"] == round(mean["distance_m"], 3)


def test_longitudes_on_both_sides_of_the_180th_meridian_average_the_short_way() -> None:
    [mean] = means(position(0.1, longitude=179.5), position(0.2, longitude=-179.1), mark(4))
    assert mean["longitude"] == pytest.approx(-179.8)
    [mean] = means(position(0.1, longitude=179.1), position(0.2, longitude=-179.5), mark(4))
    assert mean["longitude"] == pytest.approx(179.8)
    [mean] = means(position(0.1, longitude=-0.5), position(0.2, longitude=0.7), mark(4))
    assert mean["longitude"] == pytest.approx(0.1)


def test_a_clock_that_runs_ahead_makes_its_own_producer_late_and_loses_nothing() -> None:
    _, out = advance(position(1e8), position(1.0), position(1.0, producer="other"), mark(9, producer="other"))
    assert out["late_positions"]["producer"].to_list() == ["sim"]
    assert out["position_means"]["source"].to_list() == ["other"]


def test_the_state_holds_no_more_than_window_and_lateness_of_rows() -> None:
    step, state = MeansStep(), MeansStep().initial(0)
    for second in range(60):
        rows = positions(*(position(second + tenth / 10) for tenth in range(10)))
        state, _ = step.advance(state, rows)
        assert len(state.open) <= 40
