"""Scalene's report as a tidy table: one row a line of code that cost something.

Invariant: shares are of all processor samples of the run, so over the whole table they add up to at most 1; megabytes
are 2**20 bytes, as scalene counts them. A line that is not in the table cost less than scalene can see.
"""

from __future__ import annotations

import bisect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import polars as pl

from streaming.home import PROJECT_ROOT

LINES: Final = pl.Schema(
    {
        "file": pl.String,
        "line": pl.Int64,
        "function": pl.String,
        "source": pl.String,
        "cpu": pl.Float64,
        "python": pl.Float64,
        "native": pl.Float64,
        "system": pl.Float64,
        "cores": pl.Float64,
        "peak_mb": pl.Float64,
        "average_mb": pl.Float64,
        "growth_mb": pl.Float64,
        "allocated_mb": pl.Float64,
        "copied_mb_s": pl.Float64,
    }
)
FOOTPRINT: Final = pl.Schema({"at_s": pl.Float64, "footprint_mb": pl.Float64})
HTML: Final = "report.html"
_MEASURES: Final = ("cpu", "peak_mb", "growth_mb", "allocated_mb", "copied_mb_s")


def lines(report: dict[str, Any]) -> pl.DataFrame:
    """Every line that cost processor time, memory or copying, the dearest first."""
    rows = [
        _line(short_path(path), line, functions)
        for path, file in report.get("files", {}).items()
        for functions in [sorted((each["lineno"], each["line"]) for each in file["functions"])]
        for line in file["lines"]
    ]
    table = pl.DataFrame(rows, schema=LINES)
    is_dear = pl.any_horizontal(pl.col(name) > 0 for name in _MEASURES)
    return table.filter(is_dear).sort(["cpu", "allocated_mb"], descending=True)


def footprint(report: dict[str, Any]) -> pl.DataFrame:
    """Memory that the program held, over time: seconds since the start, MB."""
    samples = [(at / 1e9, size) for at, size in report.get("samples", [])]
    return pl.DataFrame(samples, schema=FOOTPRINT, orient="row")


def functions(table: pl.DataFrame) -> pl.DataFrame:
    """The lines added up by function: shares, allocated and copied MB; the dearest first."""
    added = ("cpu", "python", "native", "system", "allocated_mb", "growth_mb")
    return (
        table.group_by("file", "function")
        .agg(*(pl.col(name).sum() for name in added), pl.col("peak_mb").max(), pl.col("copied_mb_s").sum(), pl.len())
        .rename({"len": "lines"})
        .sort(["cpu", "file", "function"], descending=[True, False, False])
    )


def read(path: Path) -> dict[str, Any]:
    """Scalene's JSON; an empty report when there is none (a role that ended before the first sample)."""
    try:
        report: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return report


def write_html(report: Path, folder: Path) -> Path | None:
    """Scalene's own interactive page, one file that opens without a network; None if it makes none."""
    command = [sys.executable, "-m", "scalene", "view", "--standalone", str(report)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    made = folder / "scalene-profile.html"
    if done.returncode != 0 or not made.exists():
        return None
    return made.replace(folder / HTML)


def short_path(path: str) -> str:
    """A file's path from the project's root or from site-packages; `python:FILE` in the standard library."""
    root = f"{PROJECT_ROOT}{os.sep}"
    if "site-packages" in path:
        return path.partition(f"site-packages{os.sep}")[2]
    if path.startswith(root):
        return path.removeprefix(root)
    return f"python:{Path(path).name}" if os.sep in path else path


def _line(path: str, line: dict[str, Any], functions: list[tuple[int, str]]) -> dict[str, Any]:
    python, native, system = (
        line[f"n_{name}"] / 100 for name in ("cpu_percent_python", "cpu_percent_c", "sys_percent")
    )
    return {
        "file": path,
        "line": line["lineno"],
        "function": _function(line, functions),
        "source": _unescaped(line["line"].strip()),
        "cpu": python + native + system,
        "python": python,
        "native": native,
        "system": system,
        "cores": line["n_core_utilization"],
        "peak_mb": line["n_peak_mb"],
        "average_mb": line["n_avg_mb"],
        "growth_mb": line["n_growth_mb"],
        "allocated_mb": line["n_malloc_mb"],
        "copied_mb_s": line["n_copy_mb_s"],
    }


def _unescaped(source: str) -> str:
    """Scalene writes <, > and & as six characters, for its page."""
    for escaped, plain in (("\\u003c", "<"), ("\\u003e", ">"), ("\\u0026", "&")):
        source = source.replace(escaped, plain)
    return source


def _function(line: dict[str, Any], functions: list[tuple[int, str]]) -> str:
    """The function a line lies in: of those that scalene names, the last that begins at or before it."""
    place = bisect.bisect_right(functions, (line["lineno"], "\uffff")) - 1
    return functions[place][1] if place >= 0 else "(module)"
