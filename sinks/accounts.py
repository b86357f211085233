"""A table's files against what was claimed: chains, order, and the identity of every row.

Invariant: each slot is read once, by itself and only its identity columns; in memory stay 8 bytes a row and the
identities of one partition (10 million rows in six partitions: about 400 MB).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sinks.findings import EXAMPLES, TableReport
from sinks.reader import Slot, role_of, scan_slots
from streaming.events import ORIGIN
from streaming.generators.ledger import Account
from streaming.intervals import IntervalSet
from streaming.topology import STREAMS

Life = tuple[str, int]  # producer, epoch
_COLUMNS: Final = [*ORIGIN, "key", "_partition", "_offset"]


@dataclass(frozen=True, slots=True)
class Claim:
    """What one life of a producer says it did. Sequences it never attempted must not be in any file."""

    attempted: IntervalSet = field(default_factory=IntervalSet)
    confirmed: IntervalSet = field(default_factory=IntervalSet)
    unknown: IntervalSet = field(default_factory=IntervalSet)


def claims_of(accounts: Iterable[Account], stream: str) -> dict[Life, Claim]:
    """The ledgers' claims about one stream."""
    return {
        (account.producer, account.epoch): Claim(account.attempted, account.confirmed, account.unknown)
        for account in accounts
        if account.stream == stream
    }


def claims_of_counts(prefix: str, emitted: Mapping[int, int], unsent: Mapping[int, int]) -> dict[Life, Claim]:
    """The claims of a transformer that has committed `emitted` rows of each input partition, numbered from 0.

    The last `unsent` of them may not be on the broker yet.
    """
    return {
        (f"{prefix}-{partition}", 0): Claim(
            IntervalSet.of_ranges([(0, count)]), IntervalSet.of_ranges([(0, count - unsent.get(partition, 0))])
        )
        for partition, count in emitted.items()
    }


@dataclass(frozen=True, slots=True)
class Files:
    """What reading a table once has found: the slots that can be read, and every sequence (sorted, repeats kept)."""

    slots: list[Slot]
    sequences: Mapping[Life, NDArray[np.int64]]


def check_files(
    report: TableReport, slots: Sequence[Slot], high_water: Mapping[int, int], begins: Mapping[int, int] = {}
) -> Files:
    """Read every slot; count rows and what is corrupt or reordered.

    `high_water`: how far each chain has ever been; `begins`: where it begins, if it was pruned.
    """
    report.files = len(slots)
    readable: list[Slot] = []
    sequences: dict[Life, list[NDArray[np.int64]]] = defaultdict(list)
    ordered = sorted(slots, key=lambda slot: (slot.partition, slot.base))
    chains = {partition: list(chain) for partition, chain in groupby(ordered, key=lambda slot: slot.partition)}
    _check_chains(report, chains, high_water, begins)
    for chain in chains.values():
        rows = _read_chain(report, chain, readable)
        report.rows += len(rows)
        _check_order(report, rows)
        for (producer, epoch), own in rows.group_by("producer", "epoch"):
            sequences[str(producer), int(str(epoch))].append(own["sequence"].to_numpy())
    return Files(readable, {life: np.sort(np.concatenate(parts)) for life, parts in sequences.items()})


def _rows(slot: Slot) -> pl.DataFrame | None:
    try:
        key = pl.col(STREAMS[role_of(slot.table).reads[0]].key).alias("key")
        rows: pl.DataFrame = scan_slots([slot]).with_columns(key).select(_COLUMNS).collect()
    except (pl.exceptions.PolarsError, OSError):
        return None
    return rows


def _check_chains(
    report: TableReport,
    chains: Mapping[int, Sequence[Slot]],
    high_water: Mapping[int, int],
    begins: Mapping[int, int],
) -> None:
    """Each chain begins at 0 or where it was pruned to, and has no hole; its end is as far as it has ever been."""
    for partition in sorted({*chains, *high_water}):
        chain = chains.get(partition, ())
        ends = [begins.get(partition, 0), *(slot.next for slot in chain)]
        breaks = [
            f"p={partition}: {end} is followed by {slot.path.name}"
            for end, slot in zip(ends, chain, strict=False)
            if slot.base != end
        ]
        if ends[-1] < high_water.get(partition, 0):
            breaks.append(f"p={partition} ends at {ends[-1]} and has been at {high_water[partition]}")
        report.add("corrupt", len(breaks), breaks)


def _read_chain(report: TableReport, chain: Sequence[Slot], readable: list[Slot]) -> pl.DataFrame:
    kinds = pl.Schema(dict.fromkeys(_COLUMNS, pl.Int64) | {"producer": pl.String, "key": pl.String})
    frames = [pl.DataFrame(schema=kinds)]
    for slot in chain:
        if (frame := _checked(report, slot)) is not None:
            readable.append(slot)
            frames.append(frame.cast(kinds))
    return pl.concat(frames)


def _checked(report: TableReport, slot: Slot) -> pl.DataFrame | None:
    """A slot's identities, after what the file says about itself has been held against them."""
    name = f"p={slot.partition}/{slot.path.name}"
    frame = _rows(slot)
    if frame is None:
        report.add("corrupt", 1, [f"{name} is unreadable"])
        return None
    problems = []
    if slot.claimed_rows != len(frame):
        problems.append(f"{name} holds {len(frame)} rows and says {slot.claimed_rows}")
    outside = ~pl.col("_offset").is_between(slot.base, slot.next - 1) | (pl.col("_partition") != slot.partition)
    if strangers := frame.filter(outside).height:
        problems.append(f"{name} holds {strangers} rows from outside [{slot.base}, {slot.next})")
    report.add("corrupt", len(problems), problems)
    back = frame.filter(pl.col("_offset").diff() <= 0)
    report.add("reordered", len(back), (f"{name} offset {offset}" for offset in back["_offset"]))
    return frame


def _check_order(report: TableReport, rows: pl.DataFrame) -> None:
    """A key's records of one life must rise in sequence along the offsets; a repeat is no disorder, but doubled."""
    ordered = rows.sort("_offset", maintain_order=True)
    falls = pl.col("sequence").diff().over("producer", "epoch", "key") < 0
    if ordered.filter(falls).is_empty():
        return
    first = ordered.unique([*ORIGIN], keep="first", maintain_order=True)
    back = first.filter(falls)
    report.at_least("reordered", len(back), _named(back.head(EXAMPLES)))


def _named(rows: pl.DataFrame) -> Iterator[str]:
    return ("/".join(map(str, origin)) for origin in rows.select(*ORIGIN).iter_rows())


def check_identities(
    report: TableReport,
    seen: Mapping[Life, NDArray[np.int64]],
    before: Mapping[Life, Claim],
    after: Mapping[Life, Claim],
    *,
    kept: Mapping[Life, IntervalSet] | None = None,
    pruned: Mapping[Life, IntervalSet] = {},
) -> None:
    """Count lost, duplicated, unexpected and recovered.

    `before`: claims from before the cut, all of which must be here; `after`: claims from after the files were read,
    which must cover what is here. `kept` is for a compacted stream: of what is not here, only what the broker still
    has counts as lost, for a later record of its key may have taken the place of the rest. `pruned` was here and is not
    lost; where it is here again, it was here twice.
    """
    missing_total, superseded = 0, 0
    examples: list[str] = []
    for life in sorted({*before, *seen}):
        numbers = seen.get(life, np.empty(0, dtype=np.int64))
        here = IntervalSet.of_sorted(numbers)
        _check_seen(report, life, numbers, here, after.get(life, Claim()))
        gone = pruned.get(life, IntervalSet())
        report.add("duplicated", len(again := gone & here), _examples(life, again))
        missing = before.get(life, Claim()).confirmed - here - gone
        if kept is not None:
            superseded += len(missing - kept.get(life, IntervalSet()))
            missing = missing & kept.get(life, IntervalSet())
        missing_total += len(missing)
        examples += _examples(life, missing)
    lost = max(0, missing_total - report.counts["pending"])
    report.at_least("lost", lost, examples)
    if missing_total > lost:
        report.notes.append(
            f"{missing_total - lost:,} confirmed records are missing that may be among the pending ones"
        )
    if superseded:
        report.notes.append(f"{superseded:,} confirmed records were superseded by a later one of their key")


def _check_seen(report: TableReport, life: Life, numbers: NDArray[np.int64], here: IntervalSet, claim: Claim) -> None:
    again = numbers[1:][np.diff(numbers) == 0]
    report.add("duplicated", len(again), _examples(life, IntervalSet.of_sorted(again)))
    strangers = here - claim.attempted
    report.add("unexpected", len(strangers), _examples(life, strangers))
    report.add("recovered", len(recovered := claim.unknown & here), _examples(life, recovered))


def _examples(life: Life, numbers: IntervalSet) -> list[str]:
    return [f"{life[0]}/{life[1]}/{number}" for number, _ in zip(numbers, range(EXAMPLES), strict=False)]
