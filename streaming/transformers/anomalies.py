"""Is this speed unusual for this vehicle? An exponentially weighted mean and variance per (source, vehicle).

Invariant: a score depends on the vehicle's earlier speeds in order and on nothing else; the state is plain columns, and
the arithmetic is the same sequence of IEEE operations for any cut into batches.

A speed is scored against the statistics before it, once WARM_UP speeds are in them; then it enters them, unusual or
not, so that a lasting change is reported for a while and then becomes the normal case. The spread is never taken below
LEAST_SPREAD_MPS: a parked vehicle that creeps is no anomaly.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

WEIGHT: Final = 0.1  # of the newest speed
WARM_UP: Final = 15  # speeds before the first score
THRESHOLD: Final = 4.0  # standard deviations
LEAST_SPREAD_MPS: Final = 0.5
FASTEST_MPS: Final = 1e6  # what is beyond is no speed and is left out
SPEEDS: Final = pl.Schema(
    {"source": pl.String, "vehicle": pl.String, "speeds": pl.Int64, "mean": pl.Float64, "variance": pl.Float64}
)
_KEY: Final = ["source", "vehicle"]
_Floats = NDArray[np.float64]


def scored(means: pl.DataFrame, statistics: pl.DataFrame) -> tuple[pl.Series, pl.DataFrame]:
    """Each mean's score (null while warming up, or without a speed) and the statistics after them, sorted by key."""
    speeds = means.select(*_KEY, "speed_mps").with_row_index("row").filter(pl.col("speed_mps").abs() <= FASTEST_MPS)
    fresh = speeds.select(_KEY).unique().join(statistics, on=_KEY, how="anti")
    known = pl.concat(
        [statistics, fresh.with_columns(speeds=pl.lit(0, pl.Int64), mean=pl.lit(0.0), variance=pl.lit(0.0))]
    ).sort(_KEY)
    rounds = (
        speeds.join(known.select(_KEY).with_row_index("vehicle_index"), on=_KEY, how="left", maintain_order="left")
        .with_columns(turn=pl.int_range(pl.len()).over("vehicle_index"))
        .sort("turn", maintain_order=True)
    )
    scores, counts, mean, variance = _recurrence(rounds, known)
    values = np.full(len(means), np.nan)
    values[rounds["row"].to_numpy()] = scores
    after = known.with_columns(
        pl.Series("speeds", counts), pl.Series("mean", mean), pl.Series("variance", variance)
    ).select(SPEEDS.names())
    return pl.Series("score", values, nan_to_null=True), after


def _recurrence(rounds: pl.DataFrame, known: pl.DataFrame) -> tuple[_Floats, NDArray[np.int64], _Floats, _Floats]:
    """One vectorised turn for every vehicle's first speed in the batch, one for every second speed, and so on."""
    who, speed = rounds["vehicle_index"].to_numpy(), rounds["speed_mps"].to_numpy()
    counts, mean, variance = (known[name].to_numpy().copy() for name in ("speeds", "mean", "variance"))
    scores = np.full(len(rounds), np.nan)
    start = 0
    for end in np.cumsum(np.bincount(rounds["turn"].to_numpy())) if len(rounds) else ():
        turn, at = slice(start, end), who[start:end]
        off = speed[turn] - mean[at]
        spread = np.maximum(np.sqrt(variance[at]), LEAST_SPREAD_MPS)
        scores[turn] = np.where(counts[at] >= WARM_UP, np.abs(off) / spread, np.nan)
        first = counts[at] == 0
        step = WEIGHT * off
        mean[at] = np.where(first, speed[turn], mean[at] + step)
        variance[at] = np.where(first, 0.0, (1 - WEIGHT) * (variance[at] + off * step))
        counts[at] += 1
        start = end
    return scores, counts, mean, variance
