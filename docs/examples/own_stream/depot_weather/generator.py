"""Thermometers: each depot's temperature, a slow wave around 0 °C that follows the lab's seed, and the clock."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import polars as pl

from streaming.generators.fleet import DEPOTS
from streaming.generators.pacing import Clock, Pacing, SystemClock
from streaming.generators.run import Chunk
from streaming.lab import Lab

TICKS_HZ: Final = 10.1
PERIOD_S: Final = 60.0
_NAMES: Final = pl.Series("depot", [str(depot[0]) for depot in DEPOTS])


def thermometers(lab: Lab, *, is_paced: bool) -> Thermometers:
    """What the role is made by: the lab says the seed."""
    return Thermometers(lab.seed, is_paced=is_paced)


class Thermometers:
    """A streaming.generators.run.Generator. Paced, events carry the machine's clock; else simulated time from then."""

    stream = "depot_weather"

    def __init__(self, seed: int, *, is_paced: bool = True, clock: Clock | None = None) -> None:
        self.is_live, self.clock = is_paced, clock or SystemClock()
        self.pacing = Pacing(TICKS_HZ if is_paced else None, self.clock)
        self._phase = np.random.default_rng(seed).uniform(0, 2 * np.pi, len(_NAMES))

    @property
    def parameters(self) -> dict[str, Any]:
        """What a ledger should know."""
        return {"depots": len(_NAMES), "is_paced": self.is_live}

    def chunks(self, after_us: int, stop: threading.Event) -> Iterator[Chunk]:
        """Readings as they fall due; nothing older than `after_us`."""
        begin_us = max(self.clock.wall_us(), after_us)
        for ticks in self.pacing.due(stop):
            tick = np.repeat(np.arange(ticks.start, ticks.stop), len(_NAMES))
            depot = np.tile(np.arange(len(_NAMES)), len(ticks))
            simulated_us = begin_us + np.rint(tick / TICKS_HZ * 1e6).astype(np.int64)
            now_us = np.full(len(tick), max(self.clock.wall_us(), begin_us)) if self.is_live else simulated_us
            temperature_c = 4.0 * np.sin(2 * np.pi * tick / TICKS_HZ / PERIOD_S + self._phase[depot])
            yield Chunk(
                pl.DataFrame({"depot": _NAMES.gather(depot), "temperature_c": temperature_c.round(2)}).with_columns(
                    event_time=pl.Series(now_us).cast(pl.Datetime("us", "UTC"))
                )
            )
