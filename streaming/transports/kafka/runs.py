"""From polled messages to batches: a pure function over columns.

Invariant: the partition is taken from each message; offsets are written as a range only inside a run that is proven to
be one partition without a gap (same partition throughout, and as long as its offsets are apart), else one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from streaming.batch import Batch

Column = NDArray[np.int64]


def batches(stream: str, partitions: Column, values: Sequence[bytes], offset: Callable[[int], int]) -> list[Batch]:
    """One batch per partition, in the order of first appearance; `offset(i)` is the i-th message's offset.

    The messages of one partition must come in rising offset order, as a broker delivers them; ValueError if not.
    """
    if not len(partitions):
        return []
    starts = [0, *(np.flatnonzero(partitions[1:] != partitions[:-1]) + 1).tolist()]
    runs: dict[int, list[tuple[int, int]]] = {}
    for start, end in zip(starts, [*starts[1:], len(partitions)], strict=True):
        runs.setdefault(int(partitions[start]), []).append((start, end))
    return [_merged(stream, partition, of_one, values, offset) for partition, of_one in runs.items()]


def _merged(
    stream: str, partition: int, runs: list[tuple[int, int]], values: Sequence[bytes], offset: Callable[[int], int]
) -> Batch:
    columns = [_offsets(start, end, offset) for start, end in runs]
    offsets = columns[0] if len(columns) == 1 else np.concatenate(columns)
    if np.any(offsets[1:] <= offsets[:-1]):
        raise ValueError(f"{stream}[{partition}]: offsets fall within one poll")
    if len(runs) == 1:
        chosen = values[slice(*runs[0])]
    else:
        chosen = [value for start, end in runs for value in values[start:end]]
    return Batch(stream, partition, chosen, offsets)


def _offsets(start: int, end: int, offset: Callable[[int], int]) -> Column:
    first, last = offset(start), offset(end - 1)
    if last - first + 1 == end - start:
        return np.arange(first, last + 1, dtype=np.int64)
    return np.array([offset(index) for index in range(start, end)], np.int64)
