"""From what a profiler left to tables, figures and pages in the run's folder.

Invariant: everything here can be made again from the raw files beside it (scalene.json, *.prof, *.turns).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import polars as pl

from experiments.profiles import calls, patterns, pictures, scalene_report
from experiments.profiles.runs import Profiler, Run
from streaming import turns
from streaming.errors import DataError
from streaming.turns import SUFFIX

LINES: Final = "lines.parquet"
FOOTPRINT: Final = "footprint.parquet"
CALLS: Final = "calls.parquet"
CHARGED: Final = "charged.parquet"
ACTIVITIES: Final = "activities.parquet"
TURNS: Final = "turns.parquet"
SCALENE_JSON: Final = "scalene.json"
FIGURE: Final = "profile.png"
TURNS_SCHEMA: Final = pl.Schema(
    {"thread": pl.String, "turn": pl.UInt32, "wait_s": pl.Float64, "work_s": pl.Float64, "records": pl.Int64}
)


def build(folder: Path, run: Run) -> None:
    """Write every table and figure that this run's raw files give."""
    loop_turns(folder).write_parquet(folder / TURNS)
    if run.profiler is Profiler.SCALENE:
        _from_scalene(folder, run)
    elif run.profiler is Profiler.CPROFILE:
        _from_cprofile(folder, run)


def _from_scalene(folder: Path, run: Run) -> None:
    report = scalene_report.read(folder / SCALENE_JSON)
    lines, footprint = scalene_report.lines(report), scalene_report.footprint(report)
    activities = patterns.shares(lines.with_columns(seconds=pl.col("cpu") * (run.wall_s or 0.0)))
    lines.write_parquet(folder / LINES)
    footprint.write_parquet(folder / FOOTPRINT)
    activities.write_parquet(folder / ACTIVITIES)
    if len(lines):
        pictures.hot_lines(lines, footprint, folder / FIGURE, run)
    if report:
        scalene_report.write_html(folder / SCALENE_JSON, folder)


def _from_cprofile(folder: Path, run: Run) -> None:
    profs = sorted(folder.glob("*.prof"))
    calls.table(profs).write_parquet(folder / CALLS)
    charged = calls.charged(profs)
    charged.write_parquet(folder / CHARGED)
    patterns.shares(charged).write_parquet(folder / ACTIVITIES)
    if profs:
        pictures.icicles(profs, folder / FIGURE, run)


def loop_turns(folder: Path) -> pl.DataFrame:
    """Every turn of every loop of the role, by thread: main polls or sends, sink writes."""
    found = [
        turns.read(path)
        .with_row_index("turn")
        .with_columns(thread=pl.lit(path.name.removesuffix(SUFFIX)))
        .select(TURNS_SCHEMA.names())
        for path in sorted(folder.glob(f"*{SUFFIX}"))
    ]
    return pl.concat(found) if found else pl.DataFrame(schema=TURNS_SCHEMA)


def read(folder: Path, name: str) -> pl.DataFrame | None:
    """A table of the run; None when this profiler gives no such table, or the run left nothing.

    DataError when there is one and it can't be read.
    """
    path = folder / name
    try:
        return pl.read_parquet(path) if path.exists() else None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path} is damaged ({str(error).splitlines()[0]}): delete the run's folder") from error
