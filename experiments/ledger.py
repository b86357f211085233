"""The oracle: what was confirmed against what was read, as lost, duplicated, unexpected and reordered records.

Invariant: judged by identity (producer sequence numbers), never by counting alone: a lost and a doubled record do not
cancel out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """Confirmed: acknowledged to the sender. Recovered: arrived though the sender was never told."""

    confirmed: int
    received: int
    lost: int
    duplicated: int
    unexpected: int
    recovered: int
    reordered: int

    def counts(self) -> dict[str, int]:
        """By the names under which they are recorded."""
        return {
            "confirmed": self.confirmed,
            "received": self.received,
            "lost": self.lost,
            "duplicated": self.duplicated,
            "unexpected": self.unexpected,
            "recovered": self.recovered,
            "reordered": self.reordered,
        }


def reconcile(
    attempted: int, confirmed: ArrayLike, received: ArrayLike, lanes: ArrayLike | None = None
) -> Reconciliation:
    """Judge one producer's records with sequences 0 … attempted - 1.

    `confirmed` and `received` are sequences, `received` in the order of reading. `lanes` (as long as `received`) says
    which of them must be in order among themselves, e.g. the partition or the key of each; without it, all.
    """
    sure = np.unique(np.asarray(confirmed, dtype=np.int64))
    got = np.asarray(received, dtype=np.int64)
    seen, copies = np.unique(got, return_counts=True)
    known = seen[(seen >= 0) & (seen < attempted)]
    return Reconciliation(
        confirmed=len(sure),
        received=len(got),
        lost=len(np.setdiff1d(sure, seen, assume_unique=True)),
        duplicated=int((copies - 1).sum()),
        unexpected=len(seen) - len(known),
        recovered=len(np.setdiff1d(known, sure, assume_unique=True)),
        reordered=_reordered(got, np.zeros(len(got), dtype=np.int64) if lanes is None else np.asarray(lanes)),
    )


def _reordered(sequences: NDArray[np.int64], lanes: NDArray[np.generic]) -> int:
    """First arrivals after a higher sequence of their lane (a repeated record is a duplicate, not disorder)."""
    _, first = np.unique(sequences, return_index=True)
    first.sort()
    order = np.argsort(lanes[first], kind="stable")
    lane, sequence = lanes[first][order], sequences[first][order]
    late = 0
    for part in np.split(sequence, np.flatnonzero(lane[1:] != lane[:-1]) + 1):
        late += int(np.sum(part < np.maximum.accumulate(part)))
    return late
