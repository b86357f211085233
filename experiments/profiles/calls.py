"""cProfile's measurements as tables: every function of every thread, and the dearest of them.

Invariant: a function's own time excludes what it calls; own times of a thread add up to the thread's profiled time.
Times are of the clock, not of the processor: waiting counts, under the name of the call that waits.
"""

from __future__ import annotations

import pstats
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from experiments.profiles.scalene_report import short_path

CALLS: Final = pl.Schema(
    {
        "thread": pl.String,
        "file": pl.String,
        "line": pl.Int64,
        "function": pl.String,
        "calls": pl.Int64,
        "primitive_calls": pl.Int64,
        "own_s": pl.Float64,
        "cumulative_s": pl.Float64,
    }
)
TOP: Final = 3
_HOPS: Final = 60  # libraries call deep; a recursion among them ends here
ORDERS: Final = ("own_s", "cumulative_s", "calls")
BUILT_IN: Final = "~"
OURS: Final = ("streaming/", "sinks/", "orchestration/", "experiments/")
CHARGED: Final = pl.Schema(
    {
        "thread": pl.String,
        "file": pl.String,
        "line": pl.Int64,
        "function": pl.String,
        "seconds": pl.Float64,
        "calls": pl.Float64,  # a part of one, where several call what is not ours
    }
)
# The frames between the profiler and the role: everything is below them, so they say nothing.
WRAPPERS: Final = ("experiments/profiles/hosted.py", ":threading.py")
LOOPS: Final = ("python:selectors.py", "pika/adapters/select_connection.py")  # asyncio's and pika's
_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")


def table(profs: Sequence[Path]) -> pl.DataFrame:
    """Every function of every thread (a .prof file each, named after it), by own time."""
    rows = [row for path in profs for row in _rows(path)]
    return pl.DataFrame(rows, schema=CALLS).sort(["own_s", "cumulative_s"], descending=True)


def of_role(calls: pl.DataFrame) -> pl.DataFrame:
    """Without the frames that only lead to the role (interpreter, command line, profiler)."""
    leads = pl.any_horizontal(pl.col("file").str.contains(each, literal=True) for each in WRAPPERS)
    is_profiler = pl.col("function").str.contains("_lsprof.Profiler", literal=True)
    return calls.filter(~leads & ~is_profiler)


def top(calls: pl.DataFrame, order: str, count: int = TOP) -> pl.DataFrame:
    """The first `count` functions of the role by own_s, cumulative_s or calls."""
    return of_role(calls).sort([order, "own_s"], descending=True).head(count)


def named(row: dict[str, Any]) -> str:
    """A function as a reader finds it: file:line(name), or the name alone of what is built in."""
    return row["function"] if row["file"] == BUILT_IN else f"{row['file']}:{row['line']}({row['function']})"


def charged(profs: Sequence[Path]) -> pl.DataFrame:
    """Seconds and calls of each function of ours, with the libraries and built-ins it calls, without our own functions.

    What no function of ours has called (an event loop's own turns) keeps the name of its outermost caller.

    All seconds of a thread are in the sum, up to what cProfile itself rounds.
    """
    rows = [
        (path.stem, short_path(file), line, _ADDRESS.sub("", function), held[0], held[1])
        for path in profs
        for (file, line, function), held in _charged(stats(path)).items()
    ]
    return pl.DataFrame(rows, schema=CHARGED, orient="row").sort("seconds", descending=True)


Key = tuple[str, int, str]
Stats = dict[Key, tuple[int, int, float, float, dict[Key, tuple[int, int, float, float]]]]


def _charged(of: Stats) -> dict[Key, NDArray[np.float64]]:
    """Seconds and calls flow from each function that is not ours to its callers, by what each spent in it, until it is.

    By time also the calls: whose time it is, his are the calls that cost it.
    """
    held = {key: np.array([own_s, calls]) for key, (_, calls, own_s, _, _) in of.items()}
    charged: dict[Key, NDArray[np.float64]] = {}
    for _ in range(_HOPS):
        passed: dict[Key, NDArray[np.float64]] = {}
        for key, both in held.items():
            callers = of[key][4]
            weight = sum(edge[3] for edge in callers.values())
            if _is_ours(key) or _waits_for_sockets(key) or not callers or weight <= 0:
                charged[key] = charged.get(key, 0.0) + both
                continue
            for caller, edge in callers.items():
                passed[caller] = passed.get(caller, 0.0) + both * (edge[3] / weight)
        held = {key: both for key, both in passed.items() if both[0] > 1e-9}
    return charged


def _waits_for_sockets(key: Key) -> bool:
    """An event loop's wait: charged to itself, for what calls it also runs the libraries' work."""
    return short_path(key[0]) in LOOPS and key[2] in {"select", "poll"}


def _is_ours(key: Key) -> bool:
    return short_path(key[0]).startswith(OURS)


def stats(path: Path) -> Stats:
    """A .prof file as cProfile's own dictionary."""
    opened: Any = pstats.Stats(str(path))
    found: Stats = opened.stats
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    return [
        {
            "thread": path.stem,
            "file": short_path(file),
            "line": line,
            "function": _ADDRESS.sub("", function),
            "calls": calls,
            "primitive_calls": primitive,
            "own_s": own_s,
            "cumulative_s": cumulative_s,
        }
        for (file, line, function), (primitive, calls, own_s, cumulative_s, _) in stats(path).items()
    ]


WAITS: Final = re.compile(
    r"method '(acquire|consume|poll|flush|wait|get_watermark_offsets|committed|commit_transaction|init_transactions"
    r"|send_offsets_to_transaction|begin_transaction|abort_transaction|close)' of '(_thread\.|cimpl\.)"
    r"|time\.sleep|AdminClient\.|select\.|consumer_group_metadata"
)


def working(calls: pl.DataFrame) -> pl.DataFrame:
    """The role's functions by own time, without those that only wait for a broker, a thread or the clock."""
    waits = pl.Series([bool(WAITS.search(name)) for name in calls["function"]], dtype=pl.Boolean)
    return of_role(calls.filter(~waits)).sort("own_s", descending=True)
