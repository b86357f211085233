"""Profiles in a terminal: what dominates in a sentence, shares as bars, hot lines with their source, top calls.

Invariant: what is shown comes from the run's tables; nothing is computed here but shares and differences.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from experiments.profiles import calls, patterns, results
from experiments.profiles.runs import Run, Status
from experiments.profiles.timing import ENOUGH_TURNS

BAR: Final = 24
_BESIDE_FUNCTION: Final = 60  # characters of a call's line, about: thread, count, seconds, borders
SHOWN: Final = 15
_BUILT_IN: Final = re.compile(r"^<(?:built-in method (\S+)|method '(\S+)' of '(\S+)' objects)>$")
_TIMINGS_WIDE: Final = 155
WIDE: Final = 130  # characters, from which on everything has room
_COLOURS: Final = {"python": "blue", "native": "yellow", "system": "bright_black"}
_STATUS: Final = {Status.COMPLETE: "green", Status.INTERRUPTED: "yellow", Status.FAILED: "red", Status.RUNNING: "cyan"}
ORDER_NAMES: Final = {"own_s": "own time", "cumulative_s": "cumulative time", "calls": "calls"}


def listing(found: list[Run], width: int = 160) -> Table:
    """All runs, the newest at the end, where the eye is. Columns that `width` has no room for are left out."""
    cells = {
        "run": [run.name for run in found],
        "broker": [run.broker for run in found],
        "records": [f"{run.records:,}" for run in found],
        "seconds": [number(run.wall_s) for run in found],
        "CPU s": [number(run.cpu_s) for run in found],
        "main waits": ["" if run.waiting is None else f"{run.waiting:.0%}" for run in found],
        "CPU µs a record": [number(run.cpu_us_per_record) for run in found],
        "status": [str(run.status) for run in found],
    }
    left, shown = width - 1, {"run", "status"}  # a border
    for name in ("run", "status", "CPU µs a record", "broker", "records", "main waits", "seconds", "CPU s"):
        left -= max(map(len, (name, *cells[name]))) + 3  # a border and its room
        if left < 0:
            break
        shown.add(name)
    table = Table(title="profile runs")
    words = {"run", "broker", "status"}  # the run's name says role and profiler
    for name in (name for name in cells if name in shown):
        table.add_column(name, justify="left" if name in words else "right", no_wrap=True)
    for place, run in enumerate(found):
        row = {name: Text(column[place]) for name, column in cells.items() if name in shown}
        row["status"].stylize(_STATUS[run.status])
        table.add_row(*row.values())
    return table


def view(run: Run, folder: Path, *, shown: int = SHOWN, width: int = WIDE) -> RenderableType:
    """A run: what it was, what dominates, what it spent its time on, and its hottest lines or calls."""
    parts: list[RenderableType] = [_heading(run)]
    activities = results.read(folder, results.ACTIVITIES)
    if activities is not None and len(activities):
        parts += [Panel(patterns.verdict(activities).says, title="what dominates"), _activities(activities)]
    if (lines := results.read(folder, results.LINES)) is not None:
        parts.append(hot_lines(patterns.working(lines), shown, width))
    if (found := results.read(folder, results.CALLS)) is not None:
        parts += [*(top(found, order, width) for order in calls.ORDERS), all_calls(found, shown, width)]
    if (turns := results.read(folder, results.TURNS)) is not None and len(turns):
        parts.append(loops(turns))
    return Group(*parts)


def as_json(run: Run, folder: Path, *, shown: int = SHOWN) -> dict[str, Any]:
    """The same for scripts."""
    activities = results.read(folder, results.ACTIVITIES)
    lines, found = results.read(folder, results.LINES), results.read(folder, results.CALLS)
    return {
        "run": asdict(run),
        "folder": str(folder),
        "verdict": asdict(patterns.verdict(activities)) if activities is not None and len(activities) else None,
        "activities": activities.to_dicts() if activities is not None else [],
        "lines": lines.head(shown).to_dicts() if lines is not None else [],
        "top": {order: calls.top(found, order).to_dicts() for order in calls.ORDERS} if found is not None else {},
        "calls": calls.of_role(found).head(shown).to_dicts() if found is not None else [],
    }


def hot_lines(lines: pl.DataFrame, shown: int = SHOWN, width: int = WIDE) -> Table:
    """Where the samples fell, line by line, with the source and the memory; with less of it where `width` is less."""
    is_wide = width >= WIDE
    measures = {"peak MB": "peak_mb", "grown MB": "growth_mb", "copied MB/s": "copied_mb_s"} if is_wide else {}
    table = Table(title="hottest lines, waiting left out", caption=_legend() if is_wide else None, expand=True)
    table.add_column("line", no_wrap=True)
    table.add_column("source", ratio=1, no_wrap=True)
    if is_wide:
        table.add_column("python · native · system", min_width=BAR, no_wrap=True)
    table.add_column("time", justify="right", min_width=5)
    for name in measures:
        table.add_column(name, justify="right", min_width=6)
    hottest = max(lines["cpu"].to_list(), default=0.0) or 1.0
    for row in lines.head(shown).iter_rows(named=True):
        table.add_row(
            Text(tail(f"{row['file']}:{row['line']}", width // 4), style="cyan"),
            source(row["source"]),
            *([bar(row, hottest)] if is_wide else []),
            f"{row['cpu']:.1%}",
            *(number(row[column], blank=True) for column in measures.values()),
        )
    return table


def tail(place: str, room: int) -> str:
    """The end of a place in the code, where the file's name and the line are."""
    return place if len(place) <= room else f"…{place[len(place) - room + 1 :]}"


def top(found: pl.DataFrame, order: str, width: int = WIDE) -> Table:
    """The three functions that lead by own time, cumulative time, or calls."""
    table = Table(title=f"top {calls.TOP} by {ORDER_NAMES[order]}")
    _call_columns(table)
    for row in calls.top(found, order).iter_rows(named=True):
        _call_row(table, row, width)
    return table


def all_calls(found: pl.DataFrame, shown: int, width: int = WIDE) -> Table:
    """Functions by own time."""
    own = calls.of_role(found)
    table = Table(title=f"{min(shown, len(own))} of {len(own):,} functions, by own time")
    _call_columns(table)
    for row in own.head(shown).iter_rows(named=True):
        _call_row(table, row, width)
    return table


def loops(turns: pl.DataFrame) -> Table:
    """Each loop's turns: how many, and how long they waited and worked."""
    table = Table(title="the loop's turns", caption="only this run; over several runs: streamgauge profile timing ROLE")
    for name in ("thread", "turns", "waiting s", "working s", "work a turn, median ms", "p99 ms"):
        table.add_column(name, justify="left" if name == "thread" else "right")
    for thread, of in turns.group_by("thread", maintain_order=True):
        work = of["work_s"].to_numpy() * 1000
        table.add_row(
            str(thread[0]),
            f"{len(of):,}",
            f"{of['wait_s'].sum():.2f}",
            f"{of['work_s'].sum():.2f}",
            number(float(np.median(work))),
            number(float(np.quantile(work, 0.99)) if len(work) >= ENOUGH_TURNS else None),
        )
    return table


def timing_table(found: pl.DataFrame, width: int = 160) -> Table:
    """Loops over several runs: see timing.table(). A row a loop, or a column a loop where `width` is less."""
    cells = [
        {
            "role": row["role"],
            "thread": row["thread"],
            "runs": f"{row['runs']}",
            "turns": f"{row['turns']:,}",
            "mean": number(row["mean_ms"]),
            "interval": f"{number(row['low_ms'])} – {number(row['high_ms'])}",
            "sd of runs": number(row["sd_runs_ms"]),
            "median": number(row["median_ms"]),
            "p99": number(row["p99_ms"]),
            "waiting": number(row["wait_ms"]),
            "µs a record": number(row["work_us_per_record"]),
            "sums to": "" if row["worst_gap"] is None else f"{1 - row['worst_gap']:.2%}",
            "runs for ±5 %": f"{row['runs_needed']}",
        }
        for row in found.iter_rows(named=True)
    ]
    table = Table(title="work of a turn of the loop, milliseconds; waiting apart", caption="95 % interval of the mean")
    names = list(cells[0]) if cells else []
    if width < _TIMINGS_WIDE:
        for place, name in enumerate(["", *(f"loop {number}" for number in range(1, len(cells) + 1))]):
            table.add_column(name, justify="right" if place else "left")
        for name in names:
            table.add_row(name, *(each[name] for each in cells))
        return table
    for name in names:
        table.add_column(name, justify="left" if name in {"role", "thread"} else "right")
    for each in cells:
        table.add_row(*each.values())
    return table


def scenario_table(found: pl.DataFrame) -> Table:
    """Scenarios and what dominates each: see scenarios.table()."""
    table = Table(title="what dominates where")
    for name in ("scenario", "what is different", "CPU µs a record", "waiting", "leads the work", "of work", "pattern"):
        is_number = name in {"CPU µs a record", "waiting", "of work"}
        table.add_column(name, justify="right" if is_number else "left", no_wrap=name == "scenario")
    for row in found.iter_rows(named=True):
        table.add_row(
            row["scenario"],
            row["varies"],
            number(row["cpu_us_per_record"]),
            f"{row['waiting']:.0%}",
            row["bottleneck"],
            f"{row['share_of_work']:.0%}",
            row["pattern"],
            style="bright_black" if row["is_mostly_waiting"] else "",
        )
    return table


def comparison(first: Run, second: Run, tables: tuple[pl.DataFrame, pl.DataFrame]) -> RenderableType:
    """Two runs side by side: processor time and work a record, and each activity's seconds per million records."""
    table = Table(title=f"A {first.name} → B {second.name}")
    for name in ("", "A", "B", "B / A"):
        table.add_column(name, justify="left" if not name else "right")
    for says, one, other in (
        ("records", first.records, second.records),
        ("records a second", first.rate_hz, second.rate_hz),
        ("CPU µs a record", first.cpu_us_per_record, second.cpu_us_per_record),
        ("peak resident MB", first.peak_rss_mb, second.peak_rss_mb),
    ):
        table.add_row(says, number(one), number(other), ratio(one, other))
    table.add_section()
    for row in compared(first, second, tables).iter_rows(named=True):
        style = "bright_black" if row["is_waiting"] else ""
        table.add_row(
            Text(f"{row['activity']}, µs a record", style=style),
            number(row["a_us"]),
            number(row["b_us"]),
            ratio(row["a_us"], row["b_us"]),
        )
    return Group(table, *_differences(first, second))


def compared(first: Run, second: Run, tables: tuple[pl.DataFrame, pl.DataFrame]) -> pl.DataFrame:
    """Activities of both runs in microseconds a record: activity, is_waiting, a_us, b_us; the dearest first.

    None of a pair of which one ran under no profiler: nothing is known then, which is not 0.
    """
    if any(table.is_empty() for table in tables):
        tables = (tables[0].clear(), tables[1].clear())
    per = [
        table.select("activity", "is_waiting", (pl.col("seconds") * 1e6 / max(run.records, 1)).alias(name))
        for run, table, name in zip((first, second), tables, ("a_us", "b_us"), strict=True)
    ]
    joined = per[0].join(per[1], on=["activity", "is_waiting"], how="full", coalesce=True).fill_null(0.0)
    return joined.sort(pl.max_horizontal("a_us", "b_us"), descending=True)


def bar(row: dict[str, Any], hottest: float) -> Text:
    """Python, native and system time of a line as one bar; the hottest line's is full."""
    text = Text()
    for name, colour in _COLOURS.items():
        text.append("█" * round(BAR * row[name] / hottest), style=colour)
    return text


def source(line: str) -> Text:
    """A line of Python, coloured."""
    text = Syntax("", "python", theme="ansi_dark", background_color="default").highlight(line[:80])
    text.rstrip()
    return text


def number(value: float | None, *, blank: bool = False) -> str:
    """Three significant digits, thousands apart; nothing for what is not known (or is nothing, if `blank`)."""
    if value is None or (blank and not value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ratio(one: float | None, other: float | None) -> str:
    """B / A."""
    return f"{other / one:.2f}" if one and other is not None else ""


def _heading(run: Run) -> Panel:
    waits = f", {run.waiting:.0%} of its main loop waiting" if run.waiting is not None else ""
    seconds = f"{number(run.wall_s)} s of which {number(run.cpu_s)} s on the processor"
    lines = [
        f"[bold]{run.role}[/] on {run.broker}, under {run.profiler}: {run.workload.says}",
        f"{run.records:,} records, {run.committed:,} committed, {seconds}{waits}",
        f"{number(run.cpu_us_per_record)} µs of processor a record; at most {number(run.peak_rss_mb)} MB resident",
    ]
    if run.reason:
        lines.append(f"[yellow]{escape(run.reason)}[/]")  # a role's own last words: they may have brackets
    lines += [f"[yellow]disturbed: {escape(each)}[/]" for each in run.provenance.get("contention", [])]
    return Panel("\n".join(lines), title=run.name, subtitle=Text(str(run.status), style=_STATUS[run.status]))


def _activities(found: pl.DataFrame) -> Table:
    table = Table(title="what the time went to", caption="named by rules over our own functions; grey is waiting")
    table.add_column("activity")
    table.add_column("")
    table.add_column("share", justify="right")
    table.add_column("seconds", justify="right")
    for row in found.filter(pl.col("share") >= 0.001).iter_rows(named=True):
        style = "bright_black" if row["is_waiting"] else "green"
        table.add_row(
            Text(row["activity"], style=style),
            Text("█" * round(BAR * row["share"]), style=style),
            f"{row['share']:.1%}",
            f"{row['seconds']:.3f}",
        )
    return table


def _call_columns(table: Table) -> None:
    for name in ("function", "thread"):
        table.add_column(name, no_wrap=True)
    for name in ("calls", "own s", "cumulative s"):
        table.add_column(name, justify="right", no_wrap=True)


def _call_row(table: Table, row: dict[str, Any], width: int) -> None:
    """What `width` has no room for is cut from the function: the words around what is built in, then its beginning."""
    name, room = calls.named(row), max(width - _BESIDE_FUNCTION, 20)
    if len(name) > room:
        name = tail(_BUILT_IN.sub(lambda found: found[1] or f"{found[3]}.{found[2]}", name), room)
    table.add_row(Text(name), row["thread"], f"{row['calls']:,}", f"{row['own_s']:.4f}", f"{row['cumulative_s']:.4f}")


def _legend() -> Text:
    text = Text("shares of all samples, waiting included: ")
    for name, colour in _COLOURS.items():
        text.append(f"{name} ", style=colour)
    return text


def _differences(first: Run, second: Run) -> list[Text]:
    """Whatever else is not the same in both: a cost that differs may come from there."""
    pairs = {
        "role": (first.role, second.role),
        "broker": (first.broker, second.broker),
        "profiler": (first.profiler, second.profiler),
        "workload": (first.workload.says, second.workload.says),
    }
    return [Text(f"beware: {name}: A {a}, B {b}", style="yellow") for name, (a, b) in pairs.items() if a != b]
