"""Open-loop load: records fall due by the clock, whatever became of those before; none is skipped, none is early."""

from __future__ import annotations

import time
from collections.abc import Iterator

from experiments.trial import Trial

TICK_S = 0.005


def due(trial: Trial, rate: float, total: int, tick_s: float = TICK_S) -> Iterator[tuple[float, range]]:
    """(seconds since the start, numbers of the records that are due now), until all `total` are given out.

    Record n is due at n / rate. The caller sends them; what the sending takes does not move what comes later.
    """
    began = time.monotonic()
    place = 0
    while place < total:
        elapsed = time.monotonic() - began
        end = min(total, int(rate * elapsed) + 1)
        yield elapsed, range(place, end)
        place = end
        left = (place / rate) - (time.monotonic() - began)
        time.sleep(max(0.0, min(max(left, tick_s), trial.remaining_s)))
