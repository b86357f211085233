"""Do scalene and cProfile name the same function of ours as the one that works longest, and if not, why?

Invariant: both are reduced to the same thing before they are held against each other: seconds or samples of a function
of ours (a comprehension or lambda is part of the function it is written in) with the libraries and built-ins it calls,
waiting left out. A reason is given only by a rule over both tables; where no rule holds, the page says so.
"""

from __future__ import annotations

import ast
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import polars as pl

from experiments.profiles import hosted, patterns
from experiments.profiles.calls import OURS
from streaming.home import PROJECT_ROOT

SAMPLE_S: Final = 0.01  # scalene looks this often
CLOSE: Final = 0.1  # of the work: leaders whose shares are this near may change places from run to run
MOSTLY: Final = 0.5
MAIN: Final = "main"  # the thread in which Python handles signals
UNEXPLAINED: Final = "no rule explains it"
MODULE: Final = "(module)"
_Z: Final = 1.959964
_CALLS: Final = 20_000


@dataclass(frozen=True, slots=True)
class Leader:
    """A function of ours that one of the profilers has at the top, and its share of the work in both."""

    name: str
    scalene: float
    cprofile: float


@dataclass(frozen=True, slots=True)
class Leaders:
    """Each profiler's top function, and whether they are one; `why`: the reason when they are not."""

    scalene: Leader
    cprofile: Leader
    why: str

    @property
    def agree(self) -> bool:
        """Whether it is the same function."""
        return self.scalene.name == self.cprofile.name


def compared(lines: pl.DataFrame, charged: pl.DataFrame, wall_s: float, call_s: float) -> Leaders | None:
    """The two leaders of a role: scalene's lines, over `wall_s` seconds, and cProfile's charged functions.

    `call_s`: what cProfile takes for a call. None when one of them saw no work of ours.
    """
    sampled = _by_function(lines.select("file", "line", pl.col("cpu").alias("weight")))
    beside = pl.when(pl.col("thread") != MAIN).then("seconds").otherwise(0.0).alias("beside")
    timed = _by_function(charged.select("file", "line", pl.col("seconds").alias("weight"), "calls", beside))
    if sampled.is_empty() or timed.is_empty():
        return None
    first, other = str(sampled["name"][0]), str(timed["name"][0])
    one, two = (Leader(name, _share(sampled, name), _share(timed, name)) for name in (first, other))
    samples = round(float(sampled["weight"].sum()) * wall_s / SAMPLE_S)
    return Leaders(one, two, "" if first == other else _why(one, two, timed, samples, call_s))


def _why(one: Leader, other: Leader, timed: pl.DataFrame, samples: int, call_s: float) -> str:
    """The first rule that holds, for scalene's leader `one` and cProfile's `other`."""
    difference = one.scalene - other.scalene
    error = _Z * math.sqrt((one.scalene + other.scalene - difference**2) / max(samples, 1))
    if difference <= error:
        return f"chance: of {samples} samples, ±{error:.0%} is the error of scalene's difference of {difference:.0%}"
    if other.cprofile - one.cprofile <= CLOSE:
        return f"close: cProfile has the two within {CLOSE:.0%} of the work"
    costs = {name: count * call_s for name, count in timed.select("name", "calls").iter_rows()}
    seconds = dict(timed.select("name", "weight").iter_rows())
    left = {name: seconds.get(name, 0.0) - costs.get(name, 0.0) for name in (one.name, other.name)}
    if left[other.name] <= left[one.name]:
        count = int(timed.filter(name=other.name)["calls"][0])
        return (
            f"cProfile's own cost: its leader makes {count:,} calls at {1e6 * call_s:.2f} µs; "
            f"without {costs[other.name]:.2f} s for them it does not lead"
        )
    if (share := float(timed.filter(name=other.name)["beside"][0]) / seconds[other.name]) > MOSTLY:
        return (
            f"thread: {share:.0%} of cProfile's leader is beside the main thread; scalene's clock rings in that one "
            "only, and finds the others where they let it run"
        )
    return UNEXPLAINED


def _by_function(rows: pl.DataFrame) -> pl.DataFrame:
    """Weights (and calls) by function of ours that works, the heaviest first; rows are of `file` and `line`."""
    named = rows.with_columns(
        name=pl.Series(
            [function_at(file, line) for file, line in rows.select("file", "line").iter_rows()], dtype=pl.String
        )
    ).filter(pl.col("name").is_not_null())
    works = [patterns.activity(*name.split(" ")) not in patterns.WAITING for name in named["name"]]
    return (
        named.filter(pl.Series(works, dtype=pl.Boolean))
        .group_by("name")
        .agg(pl.exclude("file", "line").sum())
        .filter(pl.col("weight") > 0)
        .sort(["weight", "name"], descending=[True, False])
    )


def _share(table: pl.DataFrame, name: str) -> float:
    return float(table.filter(name=name)["weight"].sum()) / float(table["weight"].sum())


def function_at(file: str, line: int) -> str | None:
    """The function of ours around a line, `file Class.name`; None for what is not ours."""
    if not file.startswith(OURS):
        return None
    inside = [(first, name) for first, last, name in _functions(file) if first <= line <= last]
    return f"{file} {max(inside)[1] if inside else MODULE}"


@lru_cache(maxsize=200)
def _functions(file: str) -> tuple[tuple[int, int, str], ...]:
    """Every function of a file: its first line (a decorator's, as cProfile has it), last line and qualified name."""
    try:
        tree = ast.parse((PROJECT_ROOT / file).read_text())
    except OSError:
        return ()
    return tuple(_walked(tree, ""))


def _walked(node: ast.AST, prefix: str) -> Iterator[tuple[int, int, str]]:
    for child in ast.iter_child_nodes(node):
        inner = prefix
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{prefix}{child.name}."
            if not isinstance(child, ast.ClassDef):
                first = min([child.lineno, *(each.lineno for each in child.decorator_list)])
                yield first, child.end_lineno or child.lineno, inner.removesuffix(".")
        yield from _walked(child, inner)


def call_cost_s() -> float:
    """What cProfile adds to a call of a function that does nothing, on this machine: seconds, the least of three."""

    def nothing() -> None:
        pass

    def calls() -> float:
        began_s = time.perf_counter()
        for _ in range(_CALLS):
            nothing()
        return time.perf_counter() - began_s

    bare = min(calls() for _ in "123")
    return max(min(hosted.under_profiler(calls) for _ in "123") - bare, 0.0) / _CALLS
