"""Which events have been seen: exact sets of (producer, epoch, sequence), as ranges of sequences for each life.

Invariant: never an approximation. A false "seen" is a lost event, a false "new" a doubled one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from streaming.events import ORIGIN
from streaming.intervals import IntervalSet

Life = tuple[str, int]  # producer, epoch


@dataclass(slots=True)
class Identities:
    """A set of event identities; tables need the columns producer, epoch and sequence, without marks."""

    lives: dict[Life, IntervalSet] = field(default_factory=dict)

    def known(self, table: pl.DataFrame) -> NDArray[np.bool_]:
        """For each row, whether it is in the set."""
        answer = np.zeros(len(table), dtype=bool)
        for life, rows in _rows_by_life(table).items():
            if life in self.lives:
                answer[rows] = self.lives[life].contains(table["sequence"].to_numpy()[rows])
        return answer

    def add(self, table: pl.DataFrame) -> None:
        """Put every row's identity into the set."""
        sequences = table["sequence"].to_numpy()
        for life, rows in _rows_by_life(table).items():
            self.lives[life] = self.lives.get(life, IntervalSet()) | IntervalSet.of_sorted(np.sort(sequences[rows]))

    def copy(self) -> Identities:
        """Another set with the same identities (the ranges themselves never change)."""
        return Identities(dict(self.lives))

    @property
    def count(self) -> int:
        """How many identities the set holds."""
        return sum(each.count for each in self.lives.values())

    def dump(self) -> list[tuple[str, int, list[tuple[int, int]]]]:
        """As JSON can hold it; load() reads it back."""
        return [(producer, epoch, ranges.ranges) for (producer, epoch), ranges in self.lives.items()]

    @classmethod
    def load(cls, dumped: list[tuple[str, int, list[tuple[int, int]]]]) -> Identities:
        """The inverse of dump()."""
        return cls({(producer, epoch): IntervalSet.of_ranges(ranges) for producer, epoch, ranges in dumped})


def new_rows(table: pl.DataFrame, *seen: Identities) -> pl.DataFrame:
    """The rows in none of the sets, each identity once, in their order."""
    fresh = np.ones(len(table), dtype=bool)
    for identities in seen:
        fresh &= ~identities.known(table)
    return table.filter(fresh).unique(ORIGIN, keep="first", maintain_order=True)


def _rows_by_life(table: pl.DataFrame) -> Mapping[Life, NDArray[np.int64]]:
    groups = table.select("producer", "epoch").with_row_index("row").group_by("producer", "epoch").agg("row")
    return {(producer, epoch): np.asarray(rows, dtype=np.int64) for producer, epoch, rows in groups.iter_rows()}
