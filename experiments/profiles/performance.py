"""`make performance`: profile the application here and write docs/performance.md from the tables.

Invariant: every number, name and sentence of judgement on that page comes from a run's tables; the page names the runs
and the machine, and says what disturbed them.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

import polars as pl

from experiments.profiles import calls, hotspots, leaders, patterns, results, runs, scenarios, timing
from experiments.profiles.corners import At
from experiments.profiles.hotspots import Gain
from experiments.profiles.leaders import Leader
from experiments.profiles.runner import Request, brokers, profile
from experiments.profiles.runs import Profiler, Run, Status, Workload
from experiments.profiles.scenarios import SCENARIOS, Scenario
from streaming.errors import StreamgaugeError
from streaming.home import PROJECT_ROOT, Home
from streaming.lab import BROKERS, KAFKA, QUEUES, RABBITMQ_STREAMS
from streaming.topology import RoleKind

PAGE: Final = PROJECT_ROOT / "docs" / "performance.md"
FIGURES: Final = PROJECT_ROOT / "docs" / "figures"
TIMED: Final = ("positions-generator", "means-transformer", "positions-parquet")
SCALENED: Final = (*TIMED, "alerts-transformer", "position-means-csv")
RABBITS: Final = (QUEUES, RABBITMQ_STREAMS)
ON_RABBITS: Final = tuple(
    each
    for each in SCENARIOS
    if each.name in {"transformer-json", "transformer-prefetch", "sink-parquet", "sink-prefetch"}
)
RABBIT_TIMING_RUNS: Final = 5
FIGURED: Final = ("producer-json", "transformer-json", "sink-parquet")
LINES: Final = 6
KINDS: Final = {
    RoleKind.GENERATOR: "Producers",
    RoleKind.TRANSFORMER: "Transformers",
    RoleKind.SINK: "Sinks",
}

_LOOPS: Final = """\
Work of one turn of the loop, waiting apart: a turn sends a block, or takes in a poll (a sink's `main` polls, its
`sink` thread decodes and writes; a transformer's turn is a transaction). Waiting is what goes by in calls that poll,
confirm or commit at the broker, and until something is due; what the client computes in them is waiting too. A run is
a process of its own on new topics, with 100,000 positions; the interval is a bootstrap over runs. p99 is given from 100
turns on. A turn counts when it took in records; *work µs a record* has the work of all turns. A reasonable number of
runs follows from these runs' deviation: as many as make the interval ±5 % of the mean, at least ten; 100 means a
hundred or more."""
_SCENES: Final = """\
Each configuration once under cProfile, so *CPU µs a record* has the profiler's own cost in it, and no deviation: a
small difference between two lines says nothing. *Waiting* is the share of all threads' time; what dominates is of the
work. Names come from rules over our own functions (`experiments/profiles/patterns.py`). A profile that is mostly
waiting is flagged: its shares of work are of little time."""
_RABBITS: Final = """\
The same backlog (for the sink with a small prefetch a fifth of it) on one RabbitMQ node (queues; streams), under
cProfile. Its node is not replicated and Kafka's topics are, three times: a line here beside one above compares what
*our* process does for a record, not the brokers."""
_CALLS: Final = """\
Of all threads, frames that only lead to the role left out. Times are the clock's, so calls that wait lead; the call
that *works* longest is named beside."""
_AGREE: Final = """\
The function of ours that works longest, libraries and built-ins it calls included, comprehensions and lambdas counted
to where they are written, waiting left out; behind each its share of the work, by scalene and by cProfile. Where the
two differ, the reason is the first that holds of: chance (scalene's samples are too few to tell the two apart), close
(by cProfile they are within 10 % of the work), cProfile's own cost of calls (as measured here), thread (cProfile's top
function works beside the main thread, the only one in which Python handles the signals by which scalene looks: it finds
the others where they happen to let the main one run). cProfile counts the clock, scalene samples every 10 ms."""
_LINES: Final = """\
Shares of all samples; memory in MB, by line. The processor time of a record is that of a run under scalene, several
times an undisturbed run's. The hottest lines that are work:"""
_PICTURES: Final = """\
An icicle is read from the top: each row is called by the row above it, width is time, colour is the activity, grey is
waiting. cProfile keeps pairs of caller and callee, so widths below a function that several call are estimates."""
_SIDES: Final = f"""\
The place alone, not the whole role: former and present way in turns in one process, 20,000 records a time,
{hotspots.ROUNDS} rounds, milliseconds of processor time (median and 95 % interval). Both give the same result, which
is checked before they are timed."""
_SHARED: Final = """\
Seconds of the clock are therefore larger than on a quiet machine; processor time and shares of work suffer least, and
are what is judged here. Waiting for a processor counts as work or as waiting, wherever it befell."""
_REPEAT: Final = """\
## How to repeat it

```
make performance
streamgauge profile positions-parquet --with scalene --messages 200000
streamgauge profile view latest
streamgauge profile compare RUN_A RUN_B
```"""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Found:
    """The runs that the page is made of."""

    scenarios: list[Run]
    scalene: list[Run]
    timed: list[Run]


def measure(home: Home, *, timing_runs: int = timing.RUNS, say: Say = print) -> Found:
    """Run everything, on brokers started for it: first Kafka's, then RabbitMQ's. Notes which runs they were."""
    found = Found([], [], [])
    with brokers() as servers:
        _measure_on(home, KAFKA, servers, (SCENARIOS, TIMED, SCALENED), timing_runs, found, say)
    names = list(dict.fromkeys(each.role for each in ON_RABBITS))
    with brokers(broker=QUEUES) as node:
        for broker in RABBITS:
            _measure_on(
                home, broker, node, (ON_RABBITS, names, names), min(timing_runs, RABBIT_TIMING_RUNS), found, say
            )
    return found


def _measure_on(
    home: Home,
    broker: str,
    at: At | None,
    chosen: tuple[Sequence[Scenario], Sequence[str], Sequence[str]],
    timing_runs: int,
    found: Found,
    say: Say,
) -> None:
    """Scenarios, timed roles and roles under scalene on one broker, added to what was found."""
    chosen_scenarios, timed, scalened = chosen
    for number in range(timing_runs):  # in turns, so that what else the machine does meets all roles
        for name in timed:
            say(f"timing {name} on {broker}, {number + 1} of {timing_runs}")
            found.timed.append(profile(home, Request(name, broker, Profiler.NONE, scenario="timing"), at))
    found.scenarios.extend(scenarios.run(home, at, chosen_scenarios, broker=broker, say=say))
    found.scalene.extend(profile(home, Request(name, broker, Profiler.SCALENE), at, say=say) for name in scalened)


def collected(home: Home) -> Found:
    """What lies in the home, also of a broken-off call: each scenario's and role's newest run, every timed one."""
    kept = [run for run in runs.listed(home) if run.status is not Status.RUNNING]
    usual = [run for run in kept if run.workload == Workload()]  # as measure() asks: what a user tried is another thing
    timed = [run for run in usual if run.scenario == "timing" and run.role in TIMED]
    by_scenario = {(run.broker, run.scenario): run for run in kept if scenarios.of(run)}
    scalened = {(run.broker, run.role): run for run in usual if run.profiler is Profiler.SCALENE}
    return Found(
        [by_scenario[key] for key in product(BROKERS, (each.name for each in SCENARIOS)) if key in by_scenario],
        [scalened[key] for key in product(BROKERS, SCALENED) if key in scalened],
        timed,
    )


def page(home: Home, found: Found, gains: Sequence[Gain]) -> str:
    """The page's text; figures are named as write() copies them."""
    parts = [
        _head(found),
        _loops(home, found),
        _scenarios(home, found),
        _rabbits(home, found),
        _top_calls(home, found),
        _scalene(home, found),
        _agreement(home, found),
        _figures(home, found),
        _hot_spots(gains),
        _repeat(),
    ]
    return "\n\n".join(parts) + "\n"


def write(home: Home, found: Found) -> Path:
    """Write the page and copy its figures."""
    gains = [hotspots.measure(each) for each in hotspots.hot_spots()]
    FIGURES.mkdir(parents=True, exist_ok=True)
    for run, name in _pictured(found):
        shutil.copy(runs.folder_of(home, run) / results.FIGURE, FIGURES / name)
    PAGE.write_text(page(home, found, gains))
    return PAGE


def _agreement(home: Home, found: Found) -> str:
    """Of each role under scalene the two profilers' top functions, side by side."""
    call_s = leaders.call_cost_s()
    rows = [row for run in found.scalene if (row := _leaders(home, run, found, call_s))]
    return "\n\n".join(
        ["## Do the two profilers agree?", _AGREE, _table(pl.DataFrame(rows)) if rows else "Not measured."]
    )


def _leaders(home: Home, run: Run, found: Found, call_s: float) -> dict[str, str] | None:
    twin = next((each for each in found.scenarios if _alike(each, run)), None)
    lines = results.read(runs.folder_of(home, run), results.LINES)
    charged = None if twin is None else results.read(runs.folder_of(home, twin), results.CHARGED)
    if lines is None or charged is None or run.wall_s is None:
        return None
    pair = leaders.compared(lines, charged, run.wall_s, call_s)
    if pair is None:
        return None
    return {
        "role": _placed(run),
        "scalene's top function": _led(pair.scalene),
        "cProfile's top function": _led(pair.cprofile),
        "the same?": "yes" if pair.agree else f"no: {pair.why}",
    }


def _led(leader: Leader) -> str:
    return f"`{leader.name}` {leader.scalene:.0%}, {leader.cprofile:.0%}"


def _head(found: Found) -> str:
    first = (found.timed or found.scenarios)[0]
    machine, versions = first.provenance["machine"], first.provenance["versions"]
    everyone = [*found.timed, *found.scenarios, *found.scalene]
    codes = dict.fromkeys(re.sub(r"^([0-9a-f]{12})[0-9a-f]+", r"\1", run.provenance["code"]) for run in everyone)
    failed = [run.name for run in everyone if run.status is not Status.COMPLETE]
    where = (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB, "
        f"Linux {machine['kernel']}, Python {machine['python']}, polars {versions['polars']}, "
        f"confluent-kafka {versions['confluent-kafka']}. Three Kafka brokers on the same machine, replication 3."
    )
    return "\n".join(
        [
            "# Performance",
            "",
            "*Generated by `make performance` from the tables of its runs; not edited by hand.*",
            "",
            f"{len(everyone)} runs from {first.began[:16]} UTC on, code {', '.join(codes)}. {where}",
            "",
            _busy(everyone, machine["cores"]),
            "",
            f"Runs that did not complete: {', '.join(failed) or 'none'}.",
        ]
    )


def _busy(everyone: Sequence[Run], cores: int) -> str:
    """Whether others had the machine too, by its load before the first run; later ones follow a run of ours."""
    first, *later = (run.provenance["machine"]["load_before"][0] for run in everyone)
    load = (
        f"Its load was {first:.1f} before the first run and at most {max(later, default=first):.1f} before later ones"
    )
    if first > cores / 2:
        return f"**The machine was shared.** {load} on {cores} cores. {_SHARED}"
    return f"The machine was quiet. {load} (these runs' own), on {cores} cores."


def _loops(home: Home, found: Found) -> str:
    by_place = {
        (broker, name): [run for run in found.timed if (run.broker, run.role) == (broker, name)]
        for broker, name in product(BROKERS, TIMED)
    }
    placed = [(broker, each) for (broker, _), alike in by_place.items() for each in timing.timings(home, alike)]
    rows = [each for _, each in placed]
    cost_us = timing.instrument_cost_us()
    shortest_ms = min(each.median_ms for each in rows)
    gaps = [each.worst_gap for each in rows if each.worst_gap is not None]
    says = (
        f"Work and waiting of a `main` loop's turns add up to its wall time within {max(gaps):.2%} in the worst run. "
        f"The instrument costs {cost_us:.2f} µs a turn: {cost_us / 10 / shortest_ms:.2g} % of the shortest median turn."
    )
    shown = timing.table(rows).select(
        pl.Series("broker", [broker for broker, _ in placed]),
        "role",
        "thread",
        "runs",
        "turns",
        pl.col("mean_ms").alias("mean ms"),
        pl.format("{} – {}", pl.col("low_ms").round_sig_figs(3), pl.col("high_ms").round_sig_figs(3)).alias(
            "95 % interval"
        ),
        pl.col("sd_runs_ms").alias("sd of runs"),
        pl.col("sd_turns_ms").alias("sd of turns"),
        pl.col("median_ms").alias("median"),
        pl.col("p99_ms").alias("p99"),
        pl.col("wait_ms").alias("waiting ms"),
        pl.col("work_us_per_record").alias("work µs a record"),
        pl.col("runs_needed").alias("runs for ±5 %"),
    )
    return "\n".join(
        [
            "## The loops: mean and deviation",
            "",
            _LOOPS,
            "",
            _table(shown),
            "",
            says,
        ]
    )


def _scenarios(home: Home, found: Found) -> str:
    table = scenarios.table(home, _on_kafka(found.scenarios))
    parts = [
        "## Scenarios: what dominates where",
        "",
        _SCENES,
    ]
    for kind, title in KINDS.items():
        rows = table.filter(pl.col("kind") == str(kind))
        shown = rows.select(
            "scenario",
            pl.col("varies").alias("what is different"),
            *_reading_columns(),
        )
        parts += ["", f"### {title}", "", _table(shown), "", *_readings(home, found, kind)]
    return "\n".join(parts)


def _reading_columns() -> list[pl.Expr]:
    return [
        pl.col("cpu_us_per_record").alias("CPU µs a record"),
        pl.col("waiting").mul(100).round(0).cast(pl.Int64).alias("waiting %"),
        pl.col("bottleneck").alias("leads the work"),
        pl.col("share_of_work").mul(100).round(0).cast(pl.Int64).alias("% of work"),
        pl.col("pattern"),
        pl.when("is_mostly_waiting").then(pl.lit("⚠ mostly waiting")).otherwise(pl.lit("")).alias("flag"),
    ]


def _rabbits(home: Home, found: Found) -> str:
    table = scenarios.table(home, [run for run in found.scenarios if run.broker != KAFKA])
    if table.is_empty():
        return "## On RabbitMQ\n\nNot measured in this run."
    shown = table.select("broker", "role", pl.col("varies").alias("what is different"), *_reading_columns())
    return "\n\n".join(["## On RabbitMQ", _RABBITS, _table(shown)])


def _on_kafka(found: Sequence[Run]) -> list[Run]:
    return [run for run in found if run.broker == KAFKA]


def _readings(home: Home, found: Found, kind: RoleKind) -> Iterator[str]:
    """A sentence a scenario of this kind, by the rules."""
    for run in _on_kafka(found.scenarios):
        scenario = scenarios.of(run)
        activities = results.read(runs.folder_of(home, run), results.ACTIVITIES)
        is_told = run.status is Status.COMPLETE and activities is not None and len(activities)
        if scenario is not None and scenario.kind is kind and activities is not None and is_told:
            yield f"- **{scenario.name}**: {patterns.verdict(activities).says}"


def _top_calls(home: Home, found: Found) -> str:
    parts = [
        "## Top three calls",
        "",
        _CALLS,
    ]
    for run in (each for each in found.scenarios if each.scenario in FIGURED):
        table = results.read(runs.folder_of(home, run), results.CALLS)
        if table is None:
            continue
        parts += ["", f"### {_placed(run)}"]
        works = calls.working(table).row(0, named=True)
        parts += ["", f"Works longest: `{calls.named(works)}`, {works['own_s']:.3f} s in {works['calls']:,} calls.", ""]
        parts += ["| | by own time | by cumulative time | by calls |", "|---|---|---|---|"]
        columns = [calls.top(table, order).to_dicts() for order in calls.ORDERS]
        for place in range(min(map(len, columns))):
            cells = (_call(column[place], order) for column, order in zip(columns, calls.ORDERS, strict=True))
            parts.append(f"| {place + 1} | {' | '.join(cells)} |")
    return "\n".join(parts)


def _call(row: dict[str, Any], order: str) -> str:
    seconds = row["own_s"] if order == "calls" else row[order]
    return f"`{calls.named(row)}` {seconds:.3f} s, {row['calls']:,} calls"


def _scalene(home: Home, found: Found) -> str:
    parts = [
        "## What scalene sees",
        "",
        _LINES,
    ]
    for run in found.scalene:
        folder = runs.folder_of(home, run)
        lines, activities = results.read(folder, results.LINES), results.read(folder, results.ACTIVITIES)
        if lines is None or activities is None or not len(activities):
            continue
        hot = patterns.working(lines).select(
            pl.format("`{}:{}`", "file", "line").alias("line"),
            pl.format("`{}`", pl.col("source").str.replace_all(r"[|`]", "¦").str.slice(0, 60)).alias("source"),
            *(pl.col(name).mul(100).alias(f"{name} %") for name in ("python", "native", "system")),
            pl.col("peak_mb").alias("peak"),
            pl.col("copied_mb_s").alias("copied MB/s"),
        )
        parts += [
            "",
            f"### {_placed(run)}: {_cell(run.cpu_us_per_record)} µs of processor a record, {_cell(run.peak_rss_mb)} MB",
        ]
        parts += ["", _table(hot.head(LINES)), "", patterns.verdict(activities).says]
    return "\n".join(parts)


def _placed(run: Run) -> str:
    return run.role if run.broker == KAFKA else f"{run.role} on {run.broker}"


def _alike(one: Run, other: Run) -> bool:
    return (one.role, one.broker, one.workload) == (other.role, other.broker, other.workload)


def _pictured(found: Found) -> Iterator[tuple[Run, str]]:
    for run in _on_kafka(found.scenarios):
        if run.scenario in FIGURED:
            yield run, f"performance-{run.scenario}.png"
    for run in (each for each in _on_kafka(found.scalene) if each.role in ("means-transformer", "positions-parquet")):
        yield run, f"performance-scalene-{run.role}.png"


def _figures(home: Home, found: Found) -> str:
    parts = [
        "## Figures",
        "",
        _PICTURES,
    ]
    for run, name in _pictured(found):
        activities = results.read(runs.folder_of(home, run), results.ACTIVITIES)
        says = patterns.verdict(activities).says if activities is not None and len(activities) else ""
        parts += [
            "",
            f"![{run.role} under {run.profiler}](figures/{name})",
            "",
            f"*{run.role}, {run.workload.says}.* {says}",
        ]
    return "\n".join(parts)


def _hot_spots(gains: Sequence[Gain]) -> str:
    parts = [
        "## Bottlenecks that were mended",
        "",
        _SIDES,
    ]
    for gain in gains:
        parts += [
            "",
            f"**{gain.spot.name}** (`{gain.spot.where}`). Found by: {gain.spot.found_by}. Now: {gain.spot.remedy}.",
            "",
            f"before {gain.before_ms} ms → after {gain.after_ms} ms, ratio **{gain.ratio}**"
            + ("" if gain.ratio.high < 1 else ": not to be told from chance in this run"),
        ]
    return "\n".join(parts)


def _repeat() -> str:
    return _REPEAT


def _table(rows: pl.DataFrame) -> str:
    """Markdown; numbers with three digits."""
    head = f"| {' | '.join(rows.columns)} |"
    rule = "|" + "|".join("---:" if kind.is_numeric() else "---" for kind in rows.dtypes) + "|"
    return "\n".join([head, rule, *(f"| {' | '.join(map(_cell, row))} |" for row in rows.iter_rows())])


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def main(arguments: list[str]) -> int:
    """Measure, and write the page; with `--page-only` from what lies there, its tables and figures made anew."""
    home = Home.locate(os.environ).open()
    found = collected(home) if "--page-only" in arguments else measure(home)
    for run in [*found.scenarios, *found.scalene] if "--page-only" in arguments else ():
        results.build(runs.folder_of(home, run), run)
    print(write(home, found))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except StreamgaugeError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
