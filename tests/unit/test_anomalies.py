"""Scores: warm-up, what is unusual, and statistics of each vehicle by itself."""

from __future__ import annotations

import math

import polars as pl

from streaming.transformers.anomalies import LEAST_SPREAD_MPS, SPEEDS, WARM_UP, WEIGHT, scored


def _means(*speeds: tuple[str, float | None]) -> pl.DataFrame:
    frame = pl.DataFrame(speeds, schema={"vehicle": pl.String, "speed_mps": pl.Float64}, orient="row")
    return frame.with_columns(source=pl.lit("sim"))


def _none() -> pl.DataFrame:
    return pl.DataFrame(schema=SPEEDS)


def test_nothing_is_scored_before_the_warm_up_and_a_jump_is_unusual_after_it() -> None:
    scores, _ = scored(_means(*[("a", 10.0)] * WARM_UP, ("a", 10.0), ("a", 15.0)), _none())
    assert scores[:WARM_UP].null_count() == WARM_UP
    assert scores[WARM_UP:].to_list() == [0.0, 5.0 / LEAST_SPREAD_MPS]


def test_statistics_equal_the_recurrence_written_out() -> None:
    speeds = [10.0, 12.0, 9.0, 30.0, 11.0] * 5
    scores, after = scored(_means(*(("a", speed) for speed in speeds)), _none())
    mean, variance = speeds[0], 0.0
    for place, speed in enumerate(speeds[1:], start=1):
        off = speed - mean
        expected = abs(off) / max(math.sqrt(variance), LEAST_SPREAD_MPS) if place >= WARM_UP else None
        assert scores[place] == expected
        mean, variance = mean + WEIGHT * off, (1 - WEIGHT) * (variance + off * (WEIGHT * off))
    assert after.rows() == [("sim", "a", len(speeds), mean, variance)]


def test_vehicles_do_not_touch_each_other_and_missing_speeds_change_nothing() -> None:
    mixed = _means(("b", 1.0), ("a", 10.0), ("b", None), ("a", 12.0), ("b", float("nan")), ("b", 3.0))
    scores, after = scored(mixed, _none())
    alone = pl.concat(scored(mixed.filter(pl.col("vehicle") == name).drop_nulls(), _none())[1] for name in ("a", "b"))
    assert after.equals(alone)
    assert scores.len() == 6
