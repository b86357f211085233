"""A role's processor time a record over its profile runs, and whether the newest is worse than those before it.

Invariant: only runs of the same role, broker and workload are held against each other, and fewer than five earlier ones
give no verdict: the check then passes, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from experiments import verdicts
from experiments.profiles.runs import Profiler, Run, Status
from experiments.statistics import ENOUGH, Interval, expected_median
from experiments.verdicts import Verdict
from streaming.home import Home

LOOKED_BACK: Final = 20
COSTS: Final = pl.Schema(
    {"run": pl.String, "began": pl.String, "role": pl.String, "broker": pl.String, "cpu_us_per_record": pl.Float64}
)


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether it has become worse; `before` is None when there was too little to compare with."""

    is_worse: bool
    now_us: float | None
    before: Interval | None
    says: str


def keep_verdict(home: Home, newest: Sequence[Run], judgement: Judgement) -> None:
    """Note it for `streamgauge status`; without a verdict an earlier one stands."""
    if judgement.before is not None:
        last = newest[-1]
        look = f"streamgauge profile list --role {last.role}"
        subject = f"{last.role} on {last.broker}"
        verdicts.keep(home, Verdict(verdicts.REGRESSION, subject, judgement.is_worse, judgement.says, look))


def costs(found: Sequence[Run]) -> pl.DataFrame:
    """Each undisturbed (unprofiled), complete run's processor microseconds a record, the oldest first."""
    rows = [
        {"run": each.name, "began": each.began, "role": each.role, "broker": each.broker, "cpu_us_per_record": cost}
        for each in found
        if each.profiler is Profiler.NONE and each.status is Status.COMPLETE and (cost := each.cpu_us_per_record)
    ]
    return pl.DataFrame(rows, schema=COSTS).sort("began")


def judged(newest: Sequence[Run], earlier: Sequence[Run]) -> Judgement:
    """The newest runs' median against what as many runs would give, were they like the last comparable ones.

    Not against the interval of the earlier median: a few new runs scatter more, and every fifth check would be a false
    alarm.
    """
    now = costs(newest)["cpu_us_per_record"].to_list()
    if not now:
        return Judgement(
            is_worse=False, now_us=None, before=None, says="nothing was measured: no records, or no processor time"
        )
    last = newest[-1]
    alike = [
        each
        for each in earlier
        if (each.role, each.broker, each.workload) == (last.role, last.broker, last.workload)
        and each.name not in {run.name for run in newest}
    ]
    before = costs(alike)["cpu_us_per_record"].to_list()[-LOOKED_BACK:]
    now_us = float(np.median(now))
    if len(before) < ENOUGH:
        says = (
            f"{now_us:.3g} µs a record; {len(before)} earlier runs of this workload, {ENOUGH} are needed for a verdict"
        )
        return Judgement(is_worse=False, now_us=now_us, before=None, says=says)
    interval = expected_median(before, len(now))
    is_worse = now_us > interval.high
    says = (
        f"{now_us:.3g} µs a record, before: {interval} "
        f"(median of {interval.n} runs, and where 95 % of medians of {len(now)} lie)"
    )
    return Judgement(is_worse, now_us, interval, says)
