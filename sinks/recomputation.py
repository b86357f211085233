"""Means and alerts worked out anew from landed files, to check what the transformers published.

Invariant: nothing here calls a step. Windows, lateness, order and judgement are written a second time, plainly, over
whole tables; only the formula for a distance, the constants and the reference columns are shared.

A mark leaves no trace in the files. So the watermarks here may lag behind the transformer's: what they close must have
been published, what they call late must have been late, and more of both may have been.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import polars as pl

from sinks.ends import End, is_below
from streaming.events import ORIGIN
from streaming.transformers.anomalies import FASTEST_MPS, LEAST_SPREAD_MPS, THRESHOLD, WARM_UP, WEIGHT
from streaming.transformers.enrichment import enriched
from streaming.transformers.geodesy import haversine_m
from streaming.transformers.windows import LATENESS_US, WINDOW_US

WINDOW: Final = ["source", "vehicle", "window_start"]
MEANS_VALUES: Final = ["window_end", "count", "latitude", "longitude", "speed_mps", "distance_m"]
ALERT_VALUES: Final = ["window_end", "value", "limit", "model", "depot"]


def with_lateness(positions: pl.DataFrame, due: End) -> pl.DataFrame:
    """One partition's positions, in offset order, plus window_start, window_end, is_late and is_due.

    is_late: the window had closed before this row came; is_due: it has closed by the last row below `due`.
    """
    window, wait = pl.duration(microseconds=WINDOW_US), pl.duration(microseconds=LATENESS_US)
    start = pl.col("event_time").dt.truncate(f"{WINDOW_US}us")
    watermark = pl.col("event_time").cum_max().shift(1).over("producer")
    last = pl.col("event_time").filter(pl.col("is_due")).max().over("producer")
    return positions.with_columns(window_start=start, window_end=start + window, is_due=is_below(due)).with_columns(
        is_late=(pl.col("window_end") + wait <= watermark).fill_null(value=False),
        is_due=(pl.col("window_end") + wait <= last).fill_null(value=False),
    )


def recompute_means(positions: pl.DataFrame, late: pl.DataFrame) -> pl.DataFrame:
    """The mean of every window of one partition, closed or not: WINDOW, MEANS_VALUES and is_due.

    `positions` in offset order, with their lateness; `late` holds the identities (ORIGIN) that were published as late.
    """
    in_time = positions.filter(~pl.col("is_late")).join(late, on=ORIGIN, how="anti", maintain_order="left")
    units = in_time.select(
        *ORIGIN,
        "vehicle",
        "event_time",
        "window_start",
        "window_end",
        "is_due",
        latitude=_units("latitude", 1e9, 90),
        longitude=_units("longitude", 1e9, 180),
        speed=_units("speed_mps", 1e6, FASTEST_MPS),
    ).rename({"producer": "source"})
    turn = 360 * 10**9
    crosses = pl.col("longitude").max() - pl.col("longitude").min() > turn // 2
    eastward = pl.when(pl.col("longitude") < 0).then(pl.col("longitude") + turn).otherwise(pl.col("longitude"))
    around = eastward.sum() / (pl.col("longitude").count().cast(pl.Int64) * 10**9)
    means = units.group_by(WINDOW).agg(
        pl.col("window_end", "is_due").first(),
        count=pl.len().cast(pl.Int64),
        latitude=_mean("latitude", 10**9),
        longitude=pl.when(crosses)
        .then(pl.when(around >= 180).then(around - 360).otherwise(around))
        .otherwise(_mean("longitude", 10**9)),
        speed_mps=_mean("speed", 10**6),
    )
    return means.join(_distances(units), on=WINDOW, how="left").with_columns(pl.col("distance_m").fill_null(0.0))


def _units(column: str, scale: float, bound: float) -> pl.Expr:
    usable = pl.col(column).is_finite() & (pl.col(column).abs() <= bound)
    return pl.when(usable).then((pl.col(column) * scale).round().cast(pl.Int64, strict=False))


def _mean(column: str, scale: int) -> pl.Expr:
    count = pl.col(column).count().cast(pl.Int64)
    return pl.when(count > 0).then(pl.col(column).sum() / (count * scale))


def _distances(units: pl.DataFrame) -> pl.DataFrame:
    """Metres along each window's fixes, hop by hop in whole millimetres."""
    fixes = units.drop_nulls(["latitude", "longitude"]).sort("event_time", "epoch", "sequence")
    degrees = [pl.col(name) / (pl.lit(10**9) + pl.col(name) * 0) for name in ("latitude", "longitude")]
    hops = haversine_m(*(column.shift(1) for column in degrees), *degrees)  # within a group: from the fix before
    way = fixes.group_by(WINDOW).agg(mm=(hops * 1000).round().cast(pl.Int64).sum())
    return way.select(*WINDOW, distance_m=pl.col("mm") / (pl.col("mm") * 0 + 1000))


def with_scores(means: pl.DataFrame) -> pl.DataFrame:
    """One partition's means, in offset order, plus score: how unusual the speed is; null where that is not judged."""
    return means.with_columns(score=pl.Series(list(_scores(means)), dtype=pl.Float64))


def recompute_alerts(means: pl.DataFrame, vehicles: pl.DataFrame) -> pl.DataFrame:
    """Every alert of scored means under this `vehicles` table: WINDOW, kind, ALERT_VALUES."""
    judged = enriched(means, vehicles)
    against = {
        "speeding": ("speed_mps", pl.col("speed_limit_mps")),
        "geofence": ("depot_distance_m", pl.col("range_limit_m")),
        "anomaly": ("score", pl.lit(THRESHOLD)),
    }
    kinds = [
        judged.select(*WINDOW, "window_end", "model", "depot", kind=pl.lit(kind), value=pl.col(value), limit=limit)
        for kind, (value, limit) in against.items()
    ]
    found = pl.concat(kinds).filter(pl.col("value").is_finite() & pl.col("limit").is_finite())
    return found.filter(pl.col("value") > pl.col("limit")).select(*WINDOW, "kind", *ALERT_VALUES)


def _scores(means: pl.DataFrame) -> Iterator[float | None]:
    """How many standard deviations each speed is away from its vehicle's earlier ones; None: not scored."""
    known: dict[tuple[str, str], tuple[int, float, float]] = {}
    for source, vehicle, speed in means.select("source", "vehicle", "speed_mps").iter_rows():
        if speed is None or not abs(speed) <= FASTEST_MPS:
            yield None
            continue
        count, mean, variance = known.get((source, vehicle), (0, speed, 0.0))
        off = speed - mean
        yield abs(off) / max(math.sqrt(variance), LEAST_SPREAD_MPS) if count >= WARM_UP else None
        step = WEIGHT * off
        known[source, vehicle] = (count + 1, mean + step, (1 - WEIGHT) * (variance + off * step))
