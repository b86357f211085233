"""What runs say: checks of what they left, ratios of pairs, the table. Pure functions over measurements.

Invariant: a void run is in the list and in no median, and a ratio is of two sound runs of the same repetition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import polars as pl
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Contender:
    """One of those who are compared. `beside` names the one it is set in relation to."""

    name: str
    says: str
    beside: str
    expected: float | None = None  # the least ratio to hope for on a quiet machine


PUBLISH: Final = Contender("publish", "the application's publisher", "produce")
PRODUCE: Final = Contender("produce", "bare produce() loop", "produce")
CONSUME: Final = Contender("consume", "bare consume(20_000) loop", "consume")
SINK: Final = Contender("sink", "sink: decode, derive, Parquet slots, fsync", "consume", 0.8)
MEANS: Final = Contender("means", "2 s means in transactions", "consume", 0.5)
CONTENDERS: Final = (PRODUCE, PUBLISH, CONSUME, SINK, MEANS)


@dataclass(frozen=True, slots=True)
class Run:
    """One contender in one repetition. With any problem it is void."""

    contender: str
    repetition: int
    rate_hz: float = 0.0
    cpu_us: float = 0.0  # processor time of its process a record
    peak_mb: float = 0.0
    load_before: float = 0.0
    problems: tuple[str, ...] = ()

    @property
    def is_void(self) -> bool:
        """Whether its numbers count for nothing."""
        return bool(self.problems)


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and extremes of some values."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None when there are no values."""
        return cls(median(values), min(values), max(values)) if values else None


def sound(runs: Sequence[Run], contender: str) -> list[Run]:
    """The contender's runs that count."""
    return [run for run in runs if run.contender == contender and not run.is_void]


def ratio(runs: Sequence[Run], contender: Contender) -> Spread | None:
    """Its rate over its neighbour's, repetition by repetition."""
    reference = {run.repetition: run.rate_hz for run in sound(runs, contender.beside)}
    own = [run for run in sound(runs, contender.name) if run.repetition in reference]
    return Spread.of([run.rate_hz / reference[run.repetition] for run in own])


def landed_problems(table: pl.DataFrame, records: int, *, is_gapless: bool = True) -> tuple[str, ...]:
    """What is wrong with a sink's table (sequence, _partition, _offset) of sequences 0 to `records`.

    A partition's offsets run from 0 without a gap (`is_gapless`): the marks at its end, which a sink drops, come after
    them. Otherwise no offset may be there twice.
    """
    found = []
    if table["sequence"].sort().to_list() != list(range(records)):
        unique = table.filter(pl.col("sequence").is_between(0, records - 1))["sequence"].n_unique()
        found.append(f"{records - unique} lost, {len(table) - unique} doubled or foreign rows")
    places = table.group_by("_partition").agg(
        ends=pl.col("_offset").max() + 1, unique=pl.col("_offset").n_unique(), rows=pl.len()
    )
    is_gap = (pl.col("ends") != pl.col("rows")) if is_gapless else pl.lit(value=False)
    if len(wrong := places.filter(is_gap | (pl.col("unique") != pl.col("rows")))):
        found.append(f"offsets with gaps or twice in partitions {sorted(wrong['_partition'].to_list())}")
    return tuple(found)


def means_problems(means: pl.DataFrame, late: int, records: int) -> tuple[str, ...]:
    """What is wrong with the means of `records` positions that came in order, so that none is late."""
    found = []
    if (counted := int(means["count"].sum())) != records:
        found.append(f"the means count {counted} positions, {records} were sent")
    if twice := len(means) - means.select("source", "vehicle", "window_start").n_unique():
        found.append(f"{twice} windows more than once")
    if late:
        found.append(f"{late} positions were late")
    return tuple(found)


def table(runs: Sequence[Run], contenders: Sequence[Contender] = CONTENDERS) -> Table:
    """Rates, ratios and memory, one line a contender; void runs are counted in their own column."""
    drawn = Table(box=None, pad_edge=False)
    drawn.add_column("what")
    for title in ("records/s", "min – max", "of bare", "min – max", "expected", "CPU µs", "peak MB", "void"):
        drawn.add_column(title, justify="right")
    for contender in contenders:
        drawn.add_row(contender.says, *cells(runs, contender))
    return drawn


def cells(runs: Sequence[Run], contender: Contender) -> list[str]:
    """The contender's line of the table, as text."""
    own = sound(runs, contender.name)
    rates, share = Spread.of([run.rate_hz for run in own]), ratio(runs, contender)
    is_reference = contender.name == contender.beside
    void = sum(run.is_void for run in runs if run.contender == contender.name)
    return [
        f"{rates.median:,.0f}" if rates else "–",
        f"{rates.least:,.0f} – {rates.most:,.0f}" if rates else "–",
        "1" if is_reference else f"{share.median:.2f}" if share else "–",
        "" if is_reference else f"{share.least:.2f} – {share.most:.2f}" if share else "–",
        f"≥ {contender.expected}" if contender.expected else "",
        f"{median(run.cpu_us for run in own):.2f}" if own else "–",
        f"{max(run.peak_mb for run in own):,.0f}" if any(run.peak_mb for run in own) else "–",
        str(void) if void else "",
    ]
