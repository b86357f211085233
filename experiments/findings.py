"""Claims and what became of them: holds, refuted or unknown, computed from measurements and never typed in.

Invariant: fewer than five repetitions give *unknown*, whatever the numbers say; so does a claim without its trials.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import polars as pl

from experiments.measurements import Measured, NotMeasured
from experiments.statistics import ENOUGH, Interval, proportion_interval

UNJUDGED: Final = "can't be judged from these trials"  # how it is said that a judge did not find what it needs


class Verdict(StrEnum):
    """What became of a claim."""

    HOLDS = "holds"
    REFUTED = "refuted"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict with its numbers. `unit` is of the estimate and its interval; `says` puts them in a sentence."""

    verdict: Verdict
    interval: Interval | None
    unit: str
    says: str


@dataclass(frozen=True, slots=True)
class Claim:
    """Something people say, who says it, and how measurements decide on it."""

    name: str
    text: str
    source: str
    judge: Callable[[Measured], Judgement]


FINDINGS: Final = pl.Schema(
    {
        "run_id": pl.String,
        "experiment": pl.String,
        "claim": pl.String,
        "text": pl.String,
        "source": pl.String,
        "verdict": pl.String,
        "estimate": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
        "unit": pl.String,
        "repetitions": pl.Int64,
        "says": pl.String,
        "contention": pl.String,  # what else ran on the machine; empty is what one wants
    }
)


def judge(
    claims: Sequence[Claim], measured: Measured, *, run_id: str, experiment: str, contention: Sequence[str] = ()
) -> pl.DataFrame:
    """One row a claim, in their order. Pure: the same measurements give the same findings."""
    origin = {"run_id": run_id, "experiment": experiment, "contention": "; ".join(contention)}
    rows = [_row(claim, decide(claim, measured)) | origin for claim in claims]
    return pl.DataFrame(rows, schema=FINDINGS)


def decide(claim: Claim, measured: Measured) -> Judgement:
    """The claim's judgement under the rule of five repetitions."""
    try:
        given = claim.judge(measured)
    except (NotMeasured, pl.exceptions.ColumnNotFoundError) as error:
        return Judgement(Verdict.UNKNOWN, None, "", f"not measured in this run: {str(error).splitlines()[0]}")
    except Exception as error:  # noqa: BLE001 - levels that a person chose may leave out what the judge looks for
        return Judgement(Verdict.UNKNOWN, None, "", f"{UNJUDGED}: {type(error).__name__}: {error}")
    n = given.interval.n if given.interval else 0
    if given.verdict is not Verdict.UNKNOWN and n < ENOUGH:
        few = f"{given.says} Only {n} of the {ENOUGH} repetitions that a verdict needs: it would be “{given.verdict}”."
        return replace(given, verdict=Verdict.UNKNOWN, says=few)
    return given


def always(outcomes: Sequence[bool], says: str) -> Judgement:
    """Holds when every trial shows it, refuted by one that does not. `outcomes` has one entry a repetition."""
    successes, n = sum(outcomes), len(outcomes)
    if n == 0:
        raise NotMeasured("no trial shows it either way")
    verdict = Verdict.HOLDS if successes == n else Verdict.REFUTED
    return Judgement(
        verdict, proportion_interval(successes, n), "share of repetitions", f"{says} in {successes} of {n} repetitions."
    )


def compare(
    interval: Interval, unit: str, says: str, *, above: float | None = None, below: float | None = None
) -> Judgement:
    """Holds when the whole interval lies strictly between the bounds, refuted when wholly outside, else unknown."""
    floor = above if above is not None else float("-inf")
    ceiling = below if below is not None else float("inf")
    if floor < interval.low and interval.high < ceiling:
        verdict = Verdict.HOLDS
    elif interval.high <= floor or interval.low >= ceiling:
        verdict = Verdict.REFUTED
    else:
        verdict = Verdict.UNKNOWN
    return Judgement(verdict, interval, unit, f"{says}: {interval} {unit} (95 % interval, {interval.n} repetitions).")


def per_repetition(frame: pl.DataFrame, shows: pl.Expr) -> list[bool]:
    """Whether all trials of each repetition show it."""
    grouped = frame.group_by("repetition", maintain_order=True).agg(shows.all().alias("shows"))
    return grouped["shows"].to_list()


def paired(frame: pl.DataFrame, metric: str, first: pl.Expr, second: pl.Expr) -> tuple[pl.Series, pl.Series]:
    """A metric of two kinds of trial, side by side by repetition (the median where a repetition has several)."""
    one = frame.filter(first).group_by("repetition").agg(pl.col(metric).median().alias("first"))
    other = frame.filter(second).group_by("repetition").agg(pl.col(metric).median().alias("second"))
    pairs = one.join(other, on="repetition").drop_nulls().sort("repetition")
    if pairs.is_empty():
        raise NotMeasured(f"no repetition has both kinds of {metric}")
    return pairs["first"], pairs["second"]


def _row(claim: Claim, judgement: Judgement) -> dict[str, object]:
    interval = judgement.interval
    return {
        "claim": claim.name,
        "text": claim.text,
        "source": claim.source,
        "verdict": str(judgement.verdict),
        "estimate": interval.estimate if interval else None,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "unit": judgement.unit,
        "repetitions": interval.n if interval else 0,
        "says": judgement.says,
    }
