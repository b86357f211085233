"""Sets of whole numbers as half-open ranges, for sequences and offsets that come in long runs.

Invariant: `starts` and `ends` are sorted, of equal length, and neither overlap nor touch: the same set of numbers has
exactly one form, so sets compare by their ranges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
Truths = NDArray[np.bool_]


def _none() -> Numbers:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class IntervalSet:
    """An immutable set of integers. Build it with IntervalSet(), of_ranges() or of_sorted().

    `a | b`, `a - b` and `a & b` cost what sorting the ranges costs, however many numbers they hold.
    """

    starts: Numbers = field(default_factory=_none)
    ends: Numbers = field(default_factory=_none)

    @classmethod
    def of_ranges(cls, ranges: Iterable[Iterable[int]]) -> IntervalSet:
        """From pairs [start, end) in any order; they may overlap, touch or be empty."""
        pairs = np.array([tuple(pair) for pair in ranges], dtype=np.int64).reshape(-1, 2)
        pairs = pairs[pairs[:, 0] < pairs[:, 1]]
        pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
        reach = np.maximum.accumulate(pairs[:, 1])
        opens = np.ones(len(pairs), dtype=bool)
        opens[1:] = pairs[1:, 0] > reach[:-1]
        return cls(pairs[opens, 0], reach[_last_of_each(opens)])

    @classmethod
    def of_sorted(cls, values: Numbers) -> IntervalSet:
        """From a sorted array; repeated values count once."""
        values = np.asarray(values, dtype=np.int64)
        opens = np.ones(len(values), dtype=bool)
        opens[1:] = np.diff(values) > 1
        return cls(values[opens], values[_last_of_each(opens)] + 1)

    def add(self, start: int, end: int) -> IntervalSet:
        """This set and [start, end)."""
        return self | IntervalSet.of_ranges([(start, end)])

    def union(self, other: IntervalSet) -> IntervalSet:
        """What is in either."""
        return self | other

    def difference(self, other: IntervalSet) -> IntervalSet:
        """What is in this set and not in the other."""
        return self - other

    def intersection(self, other: IntervalSet) -> IntervalSet:
        """What is in both."""
        return self & other

    def contains(self, values: Numbers) -> Truths:
        """For each value, whether it is in the set."""
        if not len(self.starts):
            return np.zeros(np.shape(values), dtype=bool)
        place = np.searchsorted(self.starts, values, side="right") - 1
        return np.asarray((place >= 0) & (values < self.ends[place]))

    @property
    def count(self) -> int:
        """How many numbers the set holds."""
        return int((self.ends - self.starts).sum())

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The ranges [start, end), rising: what JSON can hold and of_ranges() reads back."""
        return list(zip(self.starts.tolist(), self.ends.tolist(), strict=True))

    def __contains__(self, value: object) -> bool:
        return isinstance(value, (int, np.integer)) and bool(self.contains(np.array([value], dtype=np.int64))[0])

    def __iter__(self) -> Iterator[int]:
        for start, end in self.ranges:
            yield from range(start, end)

    def __len__(self) -> int:
        return self.count

    def __or__(self, other: IntervalSet) -> IntervalSet:
        return self._combined(other, np.logical_or)

    def __sub__(self, other: IntervalSet) -> IntervalSet:
        return self._combined(other, lambda mine, theirs: mine & ~theirs)

    def __and__(self, other: IntervalSet) -> IntervalSet:
        return self._combined(other, np.logical_and)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IntervalSet):
            return NotImplemented
        return np.array_equal(self.starts, other.starts) and np.array_equal(self.ends, other.ends)

    def __hash__(self) -> int:
        return hash((self.starts.tobytes(), self.ends.tobytes()))

    def __str__(self) -> str:
        shown = ", ".join(f"{start}…{end - 1}" if end - start > 1 else str(start) for start, end in self.ranges[:5])
        return shown + (f" and {len(self.starts) - 5} ranges more" if len(self.starts) > 5 else "")

    def _combined(self, other: IntervalSet, rule: Callable[[Truths, Truths], Any]) -> IntervalSet:
        """Cut the line at every bound of either set and keep the pieces that the rule wants."""
        bounds = np.unique(np.concatenate([self.starts, self.ends, other.starts, other.ends]))
        kept = np.zeros(len(bounds) + 1, dtype=np.int8)
        kept[1:] = rule(self.contains(bounds), other.contains(bounds))  # the last bound is an end: never kept
        turns = np.diff(kept)
        return IntervalSet(bounds[turns == 1], bounds[turns == -1])


def _last_of_each(opens: Truths) -> NDArray[np.intp]:
    """Given where runs open, the index of each run's last element."""
    return np.flatnonzero(np.append(opens[1:], True)[: len(opens)])
