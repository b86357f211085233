"""One trial as its function sees it: the levels it runs under, the lab it runs in, and where its readings go.

Invariant: every wait has the trial's deadline, so a trial ends even when a broker never answers.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from experiments.measurements import VOID, Level, Place, Recorder
from streaming.errors import StreamgaugeError

if TYPE_CHECKING:
    from experiments.lab import Lab
    from experiments.ledger import Reconciliation

T = TypeVar("T")
POLL_S = 0.02


class TrialTimedOut(StreamgaugeError):
    """The trial's time is over; what it recorded so far stays."""


@dataclass
class Trial:
    """Handed to a scene's trial function."""

    place: Place
    lab: Lab
    recorder: Recorder
    seed: int
    timeout_s: float
    allows_loss: bool = False
    began: float = field(default_factory=time.monotonic)

    def __getitem__(self, name: str) -> Level:
        return self.place.levels[name]

    def count(self, name: str) -> int:
        """A level that is a whole number."""
        return int(self.place.levels[name])

    def number(self, name: str) -> float:
        """A level that is a number."""
        return float(self.place.levels[name])

    def text(self, name: str) -> str:
        """A level that is a word."""
        return str(self.place.levels[name])

    def flag(self, name: str) -> bool:
        """A level that is a yes or no."""
        return bool(self.place.levels[name])

    @property
    def elapsed_s(self) -> float:
        """Seconds since the trial began."""
        return time.monotonic() - self.began

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline; TrialTimedOut when it has passed."""
        left = self.timeout_s - self.elapsed_s
        if left <= 0:
            raise TrialTimedOut(f"not finished after {self.timeout_s:g} s")
        return left

    def random(self, purpose: str = "") -> np.random.Generator:
        """Random numbers that depend on the run's seed, the repetition and the purpose, but not on the levels.

        So the trials of one repetition get the same workload, and differences are the levels' doing.
        """
        return np.random.default_rng(
            [self.seed, self.place.repetition, zlib.crc32(f"{self.place.scene} {purpose}".encode())]
        )

    def record(self, metric: str, value: float, unit: str, note: str | None = None) -> None:
        """The trial's one value of this metric."""
        self.recorder.write(self.place, metric, value, unit, at_s=self.elapsed_s, note=note)

    def sample(self, metric: str, value: float, unit: str, subject: str, at_s: float | None = None) -> None:
        """One value of many: of a part of the system (`subject`) or of a moment (`at_s`, by default now)."""
        moment = self.elapsed_s if at_s is None else at_s
        self.recorder.write(self.place, metric, value, unit, subject=subject, at_s=moment)

    def account(self, found: Reconciliation, prefix: str = "") -> None:
        """Record what the ledger says; a trial that lost messages is void, unless loss is what it is about."""
        for metric, value in found.counts().items():
            self.record(f"{prefix}{metric}", value, "records")
        if found.lost and not self.allows_loss:
            self.record(VOID, 1, "", note=f"{found.lost} records were lost")

    def within(self, condition: Callable[[], object], seconds: float) -> bool:
        """Poll until the condition is truthy, and say whether it became so in time."""
        return bool(self._polled(condition, seconds))

    def wait_until(self, condition: Callable[[], T | None], what: str, within_s: float | None = None) -> T:
        """Poll until the condition is truthy and return it. TrialTimedOut naming `what` when it never becomes so."""
        if outcome := self._polled(condition, within_s or self.remaining_s):
            return outcome
        raise TrialTimedOut(f"{what}: not within the time allowed")

    def _polled(self, condition: Callable[[], T], seconds: float) -> T:
        """The condition's first truthy outcome, or the last one when the time is over."""
        give_up = time.monotonic() + min(self.remaining_s, seconds)
        while not (outcome := condition()) and time.monotonic() <= give_up:
            time.sleep(POLL_S)
        return outcome
