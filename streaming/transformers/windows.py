"""2 s event-time tumbling means per vehicle: MeansStep, from positions to position_means and late_positions.

A window of (producer, vehicle) closes at the first row, or mark, that lifts the producer's watermark to its end plus
the allowed lateness; a row whose window closed before it is late and passed on unchanged. Invariant: output rows are
ordered by the row that closed them, then window and vehicle, and numbered on, so that neither content nor identity of
an output depends on how the input was cut into batches.

Means come from integer sums (1e-9 degrees, 1e-6 m/s), distances from hops in whole millimetres, so the numbers are the
same bits in any order of addition. A coordinate or speed that is null, not finite or out of range is left out of the
mean; the row still counts. The mean of longitudes on both sides of the 180th meridian is taken the short way round.

The state holds the rows of open windows: at most (window + lateness) × rate × vehicles of each producer, 4 s of rows
with the defaults (56 bytes and two names each), and one watermark a producer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import polars as pl

from streaming.events import MARK, POSITION_MEANS, polars_schema
from streaming.transformers.geodesy import haversine_m
from streaming.transformers.snapshots import dump_state, load_state
from streaming.transformers.watermarks import WATERMARKS, advanced, with_watermarks

WINDOW_US: Final = 2_000_000
LATENESS_US: Final = 2_000_000
MISSING: Final = -(2**63)  # what a column without nulls says for null
_NANO: Final = 10**9
_MICRO: Final = 10**6
_CIRCLE: Final = 360 * _NANO

_KEY: Final = ["producer", "vehicle", "window_us"]
_MEANS: Final = polars_schema(POSITION_MEANS)
_OPEN: Final = pl.Schema(
    {
        "producer": pl.String,
        "vehicle": pl.String,
        "epoch": pl.Int64,
        "sequence": pl.Int64,
        "event_time_us": pl.Int64,
        "latitude_n": pl.Int64,
        "longitude_n": pl.Int64,
        "speed_n": pl.Int64,
    }
)


@dataclass(frozen=True, slots=True)
class MeansState:
    """One partition's memory: how many rows were emitted, watermarks (sorted), rows of open windows (offset order)."""

    partition: int
    emitted: int
    watermarks: pl.DataFrame
    open: pl.DataFrame


def _whole(column: str, scale: int, bound: float) -> pl.Expr:
    """The column in integer units of 1/scale; MISSING where it is null, not finite or beyond ±bound."""
    value = pl.col(column)
    usable = value.is_between(-bound, bound) & value.is_not_nan()
    return pl.when(usable).then(value * scale).round().cast(pl.Int64).fill_null(MISSING)


def _taken(rows: pl.DataFrame) -> pl.DataFrame:
    """The columns that the state keeps, in its types, with the row's place in the batch."""
    return rows.select(
        "producer",
        "vehicle",
        "epoch",
        "sequence",
        pl.col("event_time").cast(pl.Int64).alias("event_time_us"),
        _whole("latitude", _NANO, 90).alias("latitude_n"),
        _whole("longitude", _NANO, 180).alias("longitude_n"),
        _whole("speed_mps", _MICRO, 1e6).alias("speed_n"),
    ).with_row_index("row")


def _window_us() -> pl.Expr:
    return pl.col("event_time_us") // WINDOW_US * WINDOW_US


def _sums(column: str) -> list[pl.Expr]:
    known = pl.col(f"{column}_n").filter(pl.col(f"{column}_n") != MISSING)
    return [known.sum().alias(f"{column}_sum"), known.len().alias(f"{column}_count")]


def _over(whole: pl.Expr, scale: int) -> pl.Expr:
    """The nearest float to whole/scale. By a column: polars multiplies with the inverse of a constant, which is not."""
    return whole / (whole * 0 + scale)


def _mean(column: str, scale: int) -> pl.Expr:
    count = pl.col(f"{column}_count")
    return pl.when(count > 0).then(pl.col(f"{column}_sum") / (count.cast(pl.Int64) * scale))


def _mean_longitude() -> pl.Expr:
    """Degrees east; a window on both sides of the 180th meridian is averaged with its western fixes at 180 to 360."""
    around = pl.col("longitude_sum") + pl.col("west_count") * _CIRCLE
    mean = around / (pl.col("longitude_count").cast(pl.Int64) * _NANO)
    turned = pl.when(mean >= 180).then(mean - 360).otherwise(mean)
    return pl.when(pl.col("longitude_span") > _CIRCLE // 2).then(turned).otherwise(_mean("longitude", _NANO))


def _by_window(fixes: pl.DataFrame) -> pl.DataFrame:
    """Sorted by (window, event_time, epoch, sequence); mostly they come in order of the last three: half the cost."""
    later, lives, turns = (pl.col(name).diff() for name in ("event_time_us", "epoch", "sequence"))
    rises = (later > 0) | ((later == 0) & ((lives > 0) | ((lives == 0) & (turns > 0))))
    if fixes.select(rises.all()).item():
        return fixes.select("window", "latitude_n", "longitude_n").sort("window", maintain_order=True)
    return fixes.sort("window", "event_time_us", "epoch", "sequence")


def _hops(rows: pl.DataFrame) -> pl.DataFrame:
    """Millimetres of way in each window: the hops between its fixes, in (event_time, epoch, sequence) order."""
    fixes = rows.filter(pl.col("latitude_n") != MISSING, pl.col("longitude_n") != MISSING)
    latitude, longitude = _over(pl.col("latitude_n"), _NANO), _over(pl.col("longitude_n"), _NANO)
    hop = haversine_m(latitude.shift(1), longitude.shift(1), latitude, longitude)
    same = pl.col("window") == pl.col("window").shift(1)
    return (
        _by_window(fixes)
        .select("window", pl.when(same).then((hop * 1000).round().cast(pl.Int64)).alias("mm"))
        .group_by("window")
        .agg(pl.col("mm").sum())
    )


def _aggregated(rows: pl.DataFrame, windows: pl.DataFrame) -> pl.DataFrame:
    """`windows` (window, a number, and its key) with count, means and distance of its `rows`."""
    west = pl.col("longitude_n") < 0
    known = pl.col("longitude_n").filter(pl.col("longitude_n") != MISSING)
    sums = rows.group_by("window").agg(
        pl.len().cast(pl.Int64).alias("count"),
        *(expression for column in ("latitude", "longitude", "speed") for expression in _sums(column)),
        (west & (pl.col("longitude_n") != MISSING)).sum().cast(pl.Int64).alias("west_count"),
        (known.max() - known.min()).alias("longitude_span"),
    )
    joined = windows.join(sums, on="window", how="left", maintain_order="left")
    return joined.join(_hops(rows), on="window", how="left", maintain_order="left").with_columns(
        latitude=_mean("latitude", _NANO),
        longitude=_mean_longitude(),
        speed_mps=_mean("speed", _MICRO),
        distance_m=_over(pl.col("mm").fill_null(0), 1000),
    )


def _closing(windows: pl.DataFrame, moves: pl.DataFrame) -> pl.DataFrame:
    """`windows` with the row that lifts the watermark to their close (null: still open), in order of closing.

    `moves`: producer, after_us, row of each rise of a watermark.
    """
    return (
        windows.sort("close_us")
        .join_asof(
            moves.sort("after_us"),
            left_on="close_us",
            right_on="after_us",
            by="producer",
            strategy="forward",
            check_sortedness=False,
        )
        .sort("row", "window_us", "vehicle", nulls_last=True)
    )


def _split(held: pl.DataFrame, taken: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The windows that `taken` closes, aggregated and in order, and the rows of those that stay open."""
    keyed = held.with_columns(window_us=_window_us())
    windows = keyed.select(_KEY).unique().with_row_index("window")
    keyed = keyed.join(windows, on=_KEY, how="left", maintain_order="left")
    moves = taken.filter(pl.col("after_us") > pl.col("before_us")).select("producer", "after_us", "row")
    closing = _closing(windows.with_columns(close_us=pl.col("window_us") + WINDOW_US + LATENESS_US), moves)
    closed = closing.filter(pl.col("row").is_not_null())
    still_open = keyed.join(closed, on="window", how="anti", maintain_order="left")
    return _aggregated(keyed.join(closed, on="window", how="semi"), closed), still_open.select(_OPEN.names())


class MeansStep:
    """Positions of one partition to position_means and late_positions; see the module. A streaming.interfaces.Step."""

    def initial(self, partition: int) -> MeansState:
        """Nothing seen, nothing open."""
        return MeansState(partition, 0, pl.DataFrame(schema=WATERMARKS), pl.DataFrame(schema=_OPEN))

    def advance(self, state: MeansState, rows: pl.DataFrame) -> tuple[MeansState, Mapping[str, pl.DataFrame]]:
        """`rows` in offset order, marks among them. Emits the windows they closed and the rows that came too late."""
        taken = with_watermarks(_taken(rows), state.watermarks)
        fix = pl.col("sequence") != MARK
        late = fix & (_window_us() + WINDOW_US + LATENESS_US <= pl.col("before_us"))
        held = pl.concat([state.open, taken.filter(fix & ~late).select(_OPEN.names())])
        watermarks = advanced(state.watermarks, taken)
        closed, still_open = _split(held, taken)
        means = self._numbered(closed, state)
        after = MeansState(state.partition, state.emitted + len(means), watermarks, still_open)
        return after, {"position_means": means, "late_positions": rows.filter(taken.select(late).to_series())}

    def _numbered(self, closed: pl.DataFrame, state: MeansState) -> pl.DataFrame:
        """The rows of position_means, each with its lasting identity."""
        moment = _MEANS["window_start"]
        return closed.with_columns(
            source=pl.col("producer"),
            producer=pl.lit(f"means-{state.partition}"),
            epoch=pl.lit(0, pl.Int64),
            sequence=pl.int_range(pl.len(), dtype=pl.Int64) + state.emitted,
            window_start=pl.col("window_us").cast(moment),
            window_end=(pl.col("window_us") + WINDOW_US).cast(moment),
        ).select(_MEANS.names())

    def dump(self, state: MeansState) -> bytes:
        """See snapshots."""
        numbers = {"partition": state.partition, "emitted": state.emitted}
        return dump_state("means", 1, numbers, (state.watermarks, state.open))

    def load(self, snapshot: bytes) -> MeansState:
        """DataError when it is not a snapshot of this step and version."""
        numbers, (watermarks, rows) = load_state("means", 1, snapshot, (WATERMARKS, _OPEN))
        return MeansState(numbers["partition"], numbers["emitted"], watermarks, rows)
