"""How long a role's loop takes over several runs: waiting apart from work, mean, deviation, median, p99, and how sure.

Invariant: the unit of repetition is a run (a process of its own on topics of its own); a turn's luck is its run's luck.
A turn counts as an execution of the loop when it took in records; idle polls are waiting and are counted apart.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from experiments.profiles import results, runs
from experiments.profiles.runs import Run, Status
from experiments.statistics import CONFIDENCE, Interval, bootstrap
from streaming.home import Home
from streaming.progress import Progress
from streaming.turns import Turns

RUNS: Final = 10
PRECISION: Final = 0.05  # half the interval's width that is wanted, of the mean
MOST_RUNS: Final = 100
INSTRUMENT_ROUNDS: Final = 21
ENOUGH_TURNS: Final = 100  # for a p99: at least one turn lies beyond it
_Z: Final = 1.959964
PER_RUN: Final = pl.Schema(
    {
        "run": pl.String,
        "role": pl.String,
        "thread": pl.String,
        "turns": pl.Int64,
        "idle_turns": pl.Int64,
        "records": pl.Int64,
        "work_ms": pl.Float64,
        "wait_ms": pl.Float64,
        "work_us_per_record": pl.Float64,
        "waiting": pl.Float64,
        "gap": pl.Float64,
    }
)


@dataclass(frozen=True, slots=True)
class Timing:
    """A loop over several runs. Milliseconds of work a turn, unless said otherwise; a gap is of the loop's time."""

    role: str
    thread: str
    runs: int
    turns: int
    mean: Interval
    sd_of_runs_ms: float
    sd_of_turns_ms: float
    median_ms: float
    p99_ms: float | None
    wait_mean_ms: float
    work_us_per_record: Interval
    waiting: float
    worst_gap: float | None
    runs_needed: int


def per_run(home: Home, found: Sequence[Run]) -> pl.DataFrame:
    """One row a run and loop: its turns and what they took on average. Failed runs give none."""
    rows = [
        _row(run, str(thread[0]), turns)
        for run in found
        if run.status is not Status.FAILED
        for thread, turns in _turns(home, run).group_by("thread", maintain_order=True)
    ]
    return pl.DataFrame(rows, schema=PER_RUN)


def timings(home: Home, found: Sequence[Run]) -> list[Timing]:
    """Each loop of the runs' role over all of them. Empty when no run has turns with records."""
    table = per_run(home, found).filter(pl.col("turns") > 0)
    return [
        _timing(str(thread[0]), rows, _of_thread(home, found, str(thread[0])))
        for thread, rows in table.group_by("thread", maintain_order=True)
    ]


def runs_needed(values: Sequence[float], precision: float = PRECISION) -> int:
    """How many runs make the mean's 95 % interval as narrow as ±`precision` of it, by these runs' deviation."""
    mean = float(np.mean(values))
    if len(values) < 2 or mean <= 0:
        return MOST_RUNS
    needed = math.ceil((_Z * float(np.std(values, ddof=1)) / (precision * mean)) ** 2)
    return min(max(needed, RUNS), MOST_RUNS)


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean with its bootstrap interval."""
    return bootstrap(np.asarray(values, dtype=np.float64), lambda samples: samples.mean(axis=1))


def instrument_cost_us(turns: int = 42_000) -> float:
    """What keeping a turn costs: microseconds of processor time a turn, over doing the same without it.

    Both in turns and the median of their differences: what disturbs one of them for a while must not make it 0.
    """
    share = max(turns // INSTRUMENT_ROUNDS, 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instrument.turns"
        extra_s = [
            _cost_s(Progress("instrument", turns=Turns(path)), share) - _cost_s(Progress("instrument"), share)
            for _ in range(INSTRUMENT_ROUNDS)
        ]
    return 1e6 * max(float(np.median(extra_s)), 0.0) / share


def says(timing: Timing) -> str:
    """A timing in a sentence."""
    few = "" if timing.runs >= timing.runs_needed else f"; {timing.runs_needed} would be needed for ±{PRECISION:.0%}"
    return (
        f"{timing.role}, {timing.thread}: {timing.mean.estimate:.3g} ms of work a turn "
        f"({CONFIDENCE:.0%} interval {timing.mean.low:.3g} to {timing.mean.high:.3g}, {timing.runs} runs{few})"
    )


def _cost_s(progress: Progress, turns: int) -> float:
    began_s = time.thread_time()
    progress.begins()
    for _ in range(turns):
        with progress.waiting():
            pass
        if progress.turns is not None:
            progress.turns.end(progress.waited_s, progress.records)
    return time.thread_time() - began_s


def _turns(home: Home, run: Run) -> pl.DataFrame:
    table = results.read(runs.folder_of(home, run), results.TURNS)
    return pl.DataFrame(schema=results.TURNS_SCHEMA) if table is None else table


def _of_thread(home: Home, found: Sequence[Run], thread: str) -> pl.DataFrame:
    tables = [_turns(home, run) for run in found if run.status is not Status.FAILED]
    return pl.concat(tables).filter(pl.col("thread") == thread, pl.col("records") > 0)


def _row(run: Run, thread: str, turns: pl.DataFrame) -> dict[str, object]:
    busy = turns.filter(pl.col("records") > 0)
    work_s, wait_s = float(np.sum(turns["work_s"].to_numpy())), float(np.sum(turns["wait_s"].to_numpy()))
    records = int(turns["records"].to_numpy().sum())
    return {
        "run": run.name,
        "role": run.role,
        "thread": thread,
        "turns": len(busy),
        "idle_turns": len(turns) - len(busy),
        "records": records,
        "work_ms": _mean_ms(busy["work_s"]),
        "wait_ms": _mean_ms(busy["wait_s"]),
        "work_us_per_record": 1e6 * work_s / records if records else None,
        "waiting": wait_s / (work_s + wait_s) if work_s + wait_s else None,
        "gap": abs(work_s + wait_s - run.loop_s) / run.loop_s if thread == "main" and run.loop_s else None,
    }


def _mean_ms(seconds: pl.Series) -> float | None:
    return 1000 * float(np.mean(seconds.to_numpy())) if len(seconds) else None


def _timing(thread: str, rows: pl.DataFrame, turns: pl.DataFrame) -> Timing:
    means = rows["work_ms"].to_list()
    work_ms = 1000 * turns["work_s"].to_numpy()
    gaps = rows["gap"].drop_nulls().to_list()
    return Timing(
        role=str(rows["role"][0]),
        thread=thread,
        runs=len(rows),
        turns=len(turns),
        mean=mean_interval(means),
        sd_of_runs_ms=float(np.std(means, ddof=1)) if len(means) > 1 else 0.0,
        sd_of_turns_ms=float(np.std(work_ms, ddof=1)) if len(work_ms) > 1 else 0.0,
        median_ms=float(np.median(work_ms)),
        p99_ms=float(np.quantile(work_ms, 0.99)) if len(work_ms) >= ENOUGH_TURNS else None,
        wait_mean_ms=float(np.mean(rows["wait_ms"].to_numpy())),
        work_us_per_record=mean_interval(rows["work_us_per_record"].to_list()),
        waiting=float(np.mean(rows["waiting"].to_numpy())),
        worst_gap=max(gaps) if gaps else None,
        runs_needed=runs_needed(means),
    )


def table(found: Sequence[Timing]) -> pl.DataFrame:
    """Timings as rows, intervals spread out."""
    return pl.DataFrame(
        [
            {
                "role": each.role,
                "thread": each.thread,
                "runs": each.runs,
                "turns": each.turns,
                "mean_ms": each.mean.estimate,
                "low_ms": each.mean.low,
                "high_ms": each.mean.high,
                "sd_runs_ms": each.sd_of_runs_ms,
                "sd_turns_ms": each.sd_of_turns_ms,
                "median_ms": each.median_ms,
                "p99_ms": each.p99_ms,
                "wait_ms": each.wait_mean_ms,
                "work_us_per_record": each.work_us_per_record.estimate,
                "waiting": each.waiting,
                "worst_gap": each.worst_gap,
                "runs_needed": each.runs_needed,
            }
            for each in found
        ],
        infer_schema_length=None,
    )
