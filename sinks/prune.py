"""Pruning: the oldest whole slots of a table go when they are older than one wants to keep.

Invariant: a chain loses slots from its front only, in one step that also says where it begins from now on; what verify
needs to know of the rows that went is noted before (see pruned). So a chain without its front is a pruned one if it
says so, and a damaged one if it does not.

Never pruned: the slots from which a sink resumes; reference tables, for the newest record of a key may be old; and a
queue's quarantine, by whose bytes a poison message is known when it comes again.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sinks.folders import Begin, begin_of, begins_name, locked, named
from sinks.formats import FORMATS, footer
from sinks.lanes import (
    EXCHANGE_CHECKPOINTS,
    GRACE_S,
    KEPT_AT_END,
    Lane,
    footer_of,
    keeping,
    lanes,
    prepared,
    remove_replaced,
)
from sinks.lanes import replace as put_in_place
from sinks.pruned import intend, settle
from sinks.reader import role_of
from sinks.slots import Checkpoint
from streaming.events import ORIGIN
from streaming.home import Home
from streaming.identities import Life
from streaming.intervals import IntervalSet
from streaming.topology import STREAMS, StreamKind

# The moments of a prune at which the crash tests kill it, in order.
CHECKPOINTS: Final = ("prune_begun", "prune_noted", *EXCHANGE_CHECKPOINTS, "prune_settled")
KEEP: Final = timedelta(days=30)
_NEVER: Final = frozenset({StreamKind.REFERENCE, StreamKind.STATE})
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Pruned:
    """What went of one chain, or would go: the offsets before `next`."""

    table: str
    partition: int
    kind: str  # table or quarantine
    next: int
    files: int
    rows: int
    size_bytes: int


def prune(
    home: Home,
    broker: str,
    table: str,
    keep: timedelta = KEEP,
    *,
    dry_run: bool = False,
    grace_s: float = GRACE_S,
    checkpoint: Checkpoint = lambda _: None,
    progress: Say = lambda _: None,
) -> list[Pruned]:
    """Prune what was committed longer than `keep` ago. `dry_run`: say what would go, and touch nothing.

    TimeoutError: another process keeps house in this table, or verify reads it. OSError, ChainBroken: nothing went of
    the partition at hand.
    """
    if STREAMS[role_of(table).reads[0]].kind in _NEVER:
        return []
    done: list[Pruned] = []
    before_ns = int((time.time() - keep.total_seconds()) * 1e9)
    with keeping(home, broker, table), _unread(home, broker):
        if not dry_run:
            remove_replaced(home.staging(broker) / table, grace_s)
        for lane in lanes(home, broker, table, checkpoint):
            if not (old := _old(lane, before_ns)):
                continue
            try:
                done.append(_prune_lane(home, broker, lane, old, dry_run=dry_run))
            except TimeoutError as error:
                progress(f"{lane.folder} is left as it is: {error}")
    return done


@contextmanager
def reading(home: Home, broker: str) -> Iterator[None]:
    """While this is held nothing is pruned: for who reads a list of slots for minutes. Waits for no one but a prune."""
    path = _reading_lock(home, broker)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError:  # a home that can only be read can't be pruned either
        yield
        return
    with locked(path, exclusive=False):
        yield


@contextmanager
def _unread(home: Home, broker: str) -> Iterator[None]:
    with locked(_reading_lock(home, broker), exclusive=True, timeout_s=0):
        yield


def _reading_lock(home: Home, broker: str) -> Path:
    return home.high_water(broker) / "reading.lock"


def _old(lane: Lane, before_ns: int) -> list[Path]:
    """The slots at the front that are old enough. Of a queue's quarantine none."""
    found: list[Path] = []
    if lane.kind == "quarantine" and _numbers_arrivals(lane):
        return found
    for path in lane.paths()[:-KEPT_AT_END]:
        if path.stat().st_mtime_ns >= before_ns:
            break
        found.append(path)
    return found


def _numbers_arrivals(lane: Lane) -> bool:
    """Whether positions are counted by the sink, not given by the broker: there the rows fill every position."""
    return all(footer(path).rows == footer(path).next - named(path).base for path in lane.paths())


def _prune_lane(home: Home, broker: str, lane: Lane, old: Sequence[Path], *, dry_run: bool) -> Pruned:
    footers = [footer_of(path) for path in old]
    begin = begin_of(lane.folder)
    end = Begin(footers[-1].next, begin.commits + sum(named(path).commits for path in old))
    pruned = Pruned(
        table=lane.table,
        partition=lane.partition,
        kind=lane.kind,
        next=end.next,
        files=len(old),
        rows=sum(each.rows for each in footers),
        size_bytes=sum(path.stat().st_size for path in old),
    )
    if dry_run:
        return pruned
    lane.checkpoint("prune_begun")
    if lane.kind == "table":
        intend(home, broker, lane.table, lane.partition, end.next, _identities(lane, old))
        lane.checkpoint("prune_noted")
    with prepared(lane) as folder:
        put_in_place(lane, folder, old, begins_name(end))
    if lane.kind == "table":
        settle(home, broker, lane.table)
        lane.checkpoint("prune_settled")
    return pruned


def _identities(lane: Lane, paths: Sequence[Path]) -> dict[Life, IntervalSet]:
    """The identities in some slots, a file at a time."""
    kinds = pl.Schema({"producer": pl.String, "epoch": pl.Int64, "sequence": pl.Int64})
    found: dict[Life, list[NDArray[np.int64]]] = defaultdict(list)
    for path in paths:
        rows = FORMATS[lane.suffix].scan([path], kinds).select(ORIGIN).collect()
        for (producer, epoch), own in rows.group_by("producer", "epoch"):
            found[str(producer), int(str(epoch))].append(own["sequence"].to_numpy())
    return {life: IntervalSet.of_sorted(np.sort(np.concatenate(parts))) for life, parts in found.items()}
