"""How sure a number is: bootstrap intervals over repetitions, ratios of paired trials, intervals of proportions.

The unit of resampling is a repetition, never a message: messages of one trial share its luck. Everything is seeded, so
the same measurements give the same interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES: Final = 10_000
CONFIDENCE: Final = 0.95
ENOUGH: Final = 5  # repetitions below which nothing is concluded

Floats = NDArray[np.float64]
_NORMAL: Final = NormalDist()


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its 95 % confidence interval, from `n` repetitions."""

    estimate: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.estimate:.4g} [{self.low:.4g}, {self.high:.4g}]"


def median_interval(values: ArrayLike, *, seed: int = 0) -> Interval:
    """Median with its bootstrap interval (BCa). One value gives an interval of no width; no value raises ValueError."""
    return bootstrap(np.asarray(values, dtype=np.float64), _median_of_rows, seed=seed)


def expected_median(values: ArrayLike, n: int, *, seed: int = 0) -> Interval:
    """Where the median of `n` more values of the same kind would lie, were nothing changed. ValueError without a value.

    Wider than the interval of these values' own median, the fewer the new values are.
    """
    rows = np.asarray(values, dtype=np.float64)
    if not len(rows):
        raise ValueError("nothing to expect from")
    draws = np.median(np.random.default_rng(seed).choice(rows, size=(RESAMPLES, n)), axis=1)
    low, high = np.quantile(draws, (0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2))
    return Interval(float(np.median(rows)), float(low), float(high), len(rows))


def ratio_interval(numerator: ArrayLike, denominator: ArrayLike, *, seed: int = 0) -> Interval:
    """Ratio of medians of paired trials: `numerator[i]` and `denominator[i]` are of the same repetition.

    Pairs are resampled together, so what slowed a whole repetition down cancels out.
    """
    pairs = np.column_stack([np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)])
    return bootstrap(pairs, _ratio_of_medians, seed=seed)


def difference_interval(first: ArrayLike, second: ArrayLike, *, seed: int = 0) -> Interval:
    """Median of the differences first[i] - second[i] of paired trials."""
    return median_interval(np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64), seed=seed)


def proportion_interval(successes: int, n: int) -> Interval:
    """Share of successes with Wilson's interval, which stays within 0 to 1 and is honest at both ends."""
    if n == 0:
        raise ValueError("no trials")
    z = _NORMAL.inv_cdf(0.5 + CONFIDENCE / 2)
    share = successes / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half), n)


def bootstrap(rows: Floats, statistic: Callable[[Floats], Floats], *, seed: int = 0) -> Interval:
    """Bias-corrected and accelerated bootstrap (Efron 1987) over the first axis of `rows`.

    `statistic` maps samples of shape (resamples, n, …) to one value a sample.
    """
    n = len(rows)
    if n == 0:
        raise ValueError("nothing to estimate from")
    estimate = float(statistic(rows[None])[0])
    if n == 1:
        return Interval(estimate, estimate, estimate, 1)
    picks = np.random.default_rng(seed).integers(0, n, size=(RESAMPLES, n))
    draws = statistic(rows[picks])
    left_out = statistic(np.stack([np.delete(rows, place, axis=0) for place in range(n)]))
    low, high = np.quantile(draws, _bca_levels(draws, estimate, left_out))
    return Interval(estimate, float(low), float(high), n)


def percentiles(
    latencies: ArrayLike, wanted: Sequence[float] = (0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
) -> dict[float, float]:
    """The wanted quantiles for which at least 100 values lie beyond; the median is always given."""
    values = np.asarray(latencies, dtype=np.float64)
    given = [q for q in wanted if q == 0.5 or len(values) * (1 - q) >= 100]
    return {q: float(np.quantile(values, q)) for q in given} if len(values) else {}


def _bca_levels(draws: Floats, estimate: float, left_out: Floats) -> list[float]:
    # Ties count half: a median of few values sits on the estimate itself in many resamples.
    below = float(np.mean(draws < estimate) + np.mean(draws == estimate) / 2)
    bias = _NORMAL.inv_cdf(min(max(below, 1 / RESAMPLES), 1 - 1 / RESAMPLES))
    spread = left_out.mean() - left_out
    scale = float(np.sum(spread**2)) ** 1.5
    acceleration = float(np.sum(spread**3)) / (6 * scale) if scale > 0 else 0.0
    tails = (0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2)
    shifted = [bias + _NORMAL.inv_cdf(tail) for tail in tails]
    return [_NORMAL.cdf(bias + z / (1 - acceleration * z)) for z in shifted]


def _median_of_rows(samples: Floats) -> Floats:
    medians: Floats = np.median(samples, axis=1)
    return medians


def _ratio_of_medians(samples: Floats) -> Floats:
    medians = np.median(samples, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios: Floats = medians[:, 0] / medians[:, 1]
    return np.nan_to_num(ratios, nan=np.inf, posinf=np.inf)
