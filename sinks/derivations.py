"""Are the derived tables what their input says? Landed means and alerts against their recomputation.

Invariant: only what belongs together is compared (see cut), and only when the input's own files are whole; whatever
could not be compared is said in a note, never passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from sinks.cut import Cut
from sinks.ends import End, Ends, is_below
from sinks.findings import DAMAGE, EXAMPLES, TableReport
from sinks.reader import Slot, scan_slots
from sinks.recomputation import (
    ALERT_VALUES,
    MEANS_VALUES,
    WINDOW,
    recompute_alerts,
    recompute_means,
    with_lateness,
    with_scores,
)
from streaming.events import ORIGIN, polars_schema
from streaming.topology import STREAMS
from streaming.transformers.enrichment import REFERENCE, latest

_PLACE: Final = ["_partition", "_offset"]
_ALERT: Final = [*WINDOW, "kind"]
_VEHICLES: Final = (*ORIGIN, *REFERENCE)
_FIX: Final = ["vehicle", *ORIGIN, "event_time", "latitude", "longitude", "speed_mps"]


@dataclass(slots=True)
class Landed:
    """The Parquet tables by stream: their reports so far and their readable slots."""

    reports: Mapping[str, TableReport]
    slots: Mapping[str, Sequence[Slot]]
    cut: Cut

    def rows(self, stream: str, columns: Sequence[str], ends: Ends, partition: int | None = None) -> pl.DataFrame:
        """The stream's landed rows below `ends`, in offset order; of all partitions if none is given."""
        wanted = [slot for slot in self.slots[stream] if partition in (None, slot.partition)]
        if not wanted or not ends:
            kinds = polars_schema(STREAMS[stream].schema) | dict.fromkeys(_PLACE, pl.Int64)
            return pl.DataFrame(schema={name: kinds[name] for name in (*columns, *_PLACE)})
        return scan_slots(wanted).filter(_below(ends)).select(*columns, *_PLACE).sort(_PLACE).collect()

    def is_comparable(self, streams: Sequence[str], *inputs: str) -> bool:
        """Whether the inputs' files are whole and complete. If not, the streams' reports get a note."""
        for name in inputs:
            found = [word for word in (*DAMAGE, "pending") if self.reports[name].counts[word]]
            for stream in streams if found else ():
                self.reports[stream].notes.append(f"not recomputed, because {name} has {', '.join(found)} records")
            if found:
                return False
        pruned = [name for name in dict.fromkeys((*inputs, *streams)) if self.reports[name].pruned]
        for stream in streams if pruned else ():
            self.reports[stream].notes.append(f"not recomputed, because of {', '.join(pruned)} the oldest were pruned")
        return not pruned


def _below(ends: Ends) -> pl.Expr:
    behind = [(pl.col("_partition") == partition) & is_below(end) for partition, end in ends.items()]
    return pl.any_horizontal(behind)


def check_means(landed: Landed) -> None:
    """late_positions, then position_means, against positions; one partition at a time."""
    if not landed.is_comparable(("late_positions", "position_means"), "positions"):
        return
    due, inputs = landed.cut.due, landed.cut.inputs
    late = landed.rows("late_positions", ORIGIN, inputs["late_positions"]).select(ORIGIN)
    _check_late(landed, late)
    if not landed.is_comparable(("position_means",), "late_positions"):
        return
    means = landed.rows("position_means", [*ORIGIN, *WINDOW, *MEANS_VALUES], due["position_means"])
    for partition, positions in _positions(landed, _FIX):
        own = means.filter(pl.col("producer") == f"means-{partition}")
        _compare(landed.reports["position_means"], recompute_means(positions, late), own, WINDOW, MEANS_VALUES)


def _check_late(landed: Landed, late: pl.DataFrame) -> None:
    """Each late row is one of the positions; each position that the positions before it made late is there."""
    report = landed.reports["late_positions"]
    strangers, unexplained = late, late
    for partition, positions in _positions(landed, [*ORIGIN, "event_time"]):
        strangers = strangers.join(positions, on=ORIGIN, how="anti")
        unexplained = unexplained.join(positions.filter("is_late"), on=ORIGIN, how="anti")
        overdue = positions.filter(pl.col("is_late"), _below({partition: landed.cut.due["positions"][partition]}))
        _missing(report, overdue.join(late, on=ORIGIN, how="anti"), ORIGIN)
    report.at_least("unexpected", len(strangers), _shown(strangers, ORIGIN))
    if by_mark := len(unexplained) - len(strangers):
        report.notes.append(f"{by_mark:,} positions were late by a mark's word; marks are in no file to check it")


def _positions(landed: Landed, columns: Sequence[str]) -> Iterator[tuple[int, pl.DataFrame]]:
    """Each partition's positions with their lateness."""
    for partition, end in landed.cut.inputs["positions"].items():
        rows = landed.rows("positions", columns, {partition: end}, partition)
        yield partition, with_lateness(rows, landed.cut.due["positions"][partition])


def check_alerts(landed: Landed) -> None:
    """Alerts against position_means and vehicles."""
    report = landed.reports["alerts"]
    if not landed.is_comparable(("alerts",), "position_means", "vehicles"):
        return
    due, inputs = landed.cut.due, landed.cut.inputs
    history = _history(landed)
    alerts = landed.rows("alerts", ["producer", *WINDOW, "kind", *ALERT_VALUES, "vehicles_version"], due["alerts"])
    columns = [*ORIGIN, *WINDOW, "window_end", "latitude", "longitude", "speed_mps"]
    for partition, end in inputs["position_means"].items():
        means = with_scores(landed.rows("position_means", columns, {partition: end}, partition))
        own = alerts.filter(pl.col("producer") == f"alerts-{partition}")
        for (version,), judged in own.group_by("vehicles_version"):
            expected = recompute_alerts(means, _vehicles_at(history, int(str(version))))
            _compare(report, expected.with_columns(is_due=False), judged, _ALERT, ALERT_VALUES)
        _check_silence(report, means, own, history, due["position_means"].get(partition, 0))


def _history(landed: Landed) -> pl.DataFrame:
    """The vehicles' records at the offsets that versions count."""
    rows = landed.rows("vehicles", _VEHICLES, landed.cut.inputs["vehicles"])
    places = landed.cut.places.get("vehicles")
    if places is None:
        return rows
    return rows.drop("_offset").join(places, on=ORIGIN).sort("_offset")


def _check_silence(
    report: TableReport, means: pl.DataFrame, alerts: pl.DataFrame, history: pl.DataFrame, due: End
) -> None:
    """Alerts that every version of the vehicles says must be, whichever it was that judged, and that are not there.

    Versions only rise, so the alerts before and after a mean bound the version that judged it.
    """
    judged_by = alerts.group_by(WINDOW).agg(version=pl.col("vehicles_version").max())
    newest = int(history.select(pl.col("_offset").max() + 1).fill_null(0).item())
    bounds = (
        means.join(judged_by, on=WINDOW, how="left", maintain_order="left")
        .with_columns(
            oldest=pl.col("version").forward_fill().fill_null(0),
            newest=pl.col("version").backward_fill().fill_null(newest),
        )
        .filter(is_below(due))
    )
    for (oldest, youngest), windows in bounds.group_by("oldest", "newest"):
        certain = _unchanged(history, int(str(oldest)), int(str(youngest)))
        expected = recompute_alerts(windows, certain)
        _missing(report, expected.join(alerts, on=_ALERT, how="anti"), _ALERT)


def _vehicles_at(history: pl.DataFrame, version: int) -> pl.DataFrame:
    return latest(history.filter(pl.col("_offset") < version))


def _unchanged(history: pl.DataFrame, oldest: int, newest: int) -> pl.DataFrame:
    """The vehicles of which all versions between the two say the same."""
    known = _vehicles_at(history, oldest)
    later = history.filter(pl.col("_offset").is_between(oldest, newest - 1))
    changed = later.join(known, on=list(REFERENCE), how="anti", nulls_equal=True)
    return known.join(changed, on="vehicle", how="anti")


def check_formats(
    report: TableReport,
    own: Sequence[Slot],
    others: Sequence[Slot],
    ends: Ends,
    columns: list[str],
    *,
    is_behind: bool = False,
) -> None:
    """The same stream's rows below `ends` in two formats: `own`, the table of the report, against `others`.

    `is_behind`: the others have not landed all of them yet (which their report says); only what both have is compared.
    """
    for partition, end in ends.items():
        begin = max((slots[0].base for slots in _chains(partition, own, others) if slots), default=0)
        if begin and not isinstance(end, int):
            report.notes.append("not compared with the other format: of a queue's tables the oldest rows were pruned")
            continue
        pair = [
            scan_slots([slot for slot in slots if slot.partition == partition])
            .filter(is_below(end), pl.col("_offset") >= begin)
            .select(*columns, *_PLACE)
            .collect()
            for slots in (own, others)
            if any(slot.partition == partition for slot in slots)
        ]
        if len(pair) == 2:
            # Two sinks of queues number what arrives each for itself; there the events alone must be the same.
            place = _PLACE if isinstance(end, int) else []
            known = pair[0].join(pair[1].select(ORIGIN), on=ORIGIN, how="semi") if is_behind else pair[0]
            differing = known.join(pair[1], on=[*place, *columns], how="anti", nulls_equal=True)
            report.at_least("wrong", len(differing), _shown(differing, _PLACE))


def _chains(partition: int, *tables: Sequence[Slot]) -> list[list[Slot]]:
    """The partition's slots in each of some tables, by base."""
    mine = ([slot for slot in slots if slot.partition == partition] for slots in tables)
    return [sorted(slots, key=lambda slot: slot.base) for slots in mine]


def _compare(
    report: TableReport, expected: pl.DataFrame, landed: pl.DataFrame, key: Sequence[str], values: Sequence[str]
) -> None:
    """Each landed key once, expected, and with the expected values; each expected key that is_due landed."""
    first = landed.unique(key, keep="first", maintain_order=True)
    report.at_least(
        "duplicated", len(landed) - len(first), _shown(landed.filter(landed.select(key).is_duplicated()), key)
    )
    strangers = first.join(expected, on=key, how="anti")
    report.at_least("unexpected", len(strangers), _shown(strangers, key))
    known = first.join(strangers, on=key, how="anti")
    wrong = known.join(expected, on=[*key, *values], how="anti", nulls_equal=True)
    report.at_least("wrong", len(wrong), _shown(wrong, key))
    _missing(report, expected.filter("is_due").join(landed, on=key, how="anti"), key)


def _missing(report: TableReport, rows: pl.DataFrame, key: Sequence[str]) -> None:
    """Lost, unless what is pending may hold them."""
    if len(rows) and report.counts["pending"]:
        report.notes.append(f"{len(rows):,} due records are missing that may be among the pending ones")
    else:
        report.at_least("lost", len(rows), _shown(rows, key))


def _shown(rows: pl.DataFrame, key: Sequence[str]) -> Iterable[str]:
    return ["/".join(map(str, row)) for row in rows.select(key).head(EXAMPLES).iter_rows()]
