"""A recording replayed by the clock of the faults: what has been sent follows what share of the faults has happened.

By the wall clock, a busy machine would have all its data behind it long before its faults, or the other way round. Here
records go on coming as long as a fault is missing, slower where faults come slowly, and what is left goes out at once
after the last. So the same trial comes out of every machine, as soon as that machine has made the faults.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from orchestration.brokers import transport_of
from streaming.codecs import codec
from streaming.generators.ledger import Ledger
from streaming.generators.recording import read
from streaming.generators.replay import Rebase, Replay, producer_name
from streaming.generators.run import produce
from streaming.home import Home
from streaming.lab import Lab
from streaming.progress import Progress
from streaming.topology import STREAMS

_ROLE: Final = "recording-replay"
_GUESS_COUNTS: Final = 0.03  # as much as what was measured when this share of the faults had happened
_SHORTEST_S: Final = 1.0
_LOOK_S: Final = 0.02


class FaultClock:
    """Implements pacing.Clock in the recording's own seconds: from 0 to `length_s` while the faults happen.

    `guess_s`: how long they may take, until that can be told from those that have happened. Any thread may tell it.
    """

    def __init__(self, length_s: float, guess_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._length_s, self._guess_s, self._now = length_s, guess_s, now
        self._lock = threading.Lock()
        self._began = self._looked_at = now()
        self._happened = self._share = 0.0

    def happened(self, share: float) -> None:
        """So much of the faults has happened; 1 or more: all."""
        with self._lock:
            self._move()
            self._happened = max(self._happened, min(share, 1.0))

    @property
    def left_s(self) -> float:
        """About how long the faults that are missing will take."""
        passed_s = self._now() - self._began
        each_s = (self._guess_s * _GUESS_COUNTS + passed_s) / (_GUESS_COUNTS + self._happened)
        return (1.0 - self._happened) * each_s

    def monotonic_s(self) -> float:
        """How far into the recording; behind its end once all faults have happened."""
        with self._lock:
            self._move()
            return self._length_s * self._share + (self._now() - self._began if self._happened >= 1.0 else 0.0)

    def wall_us(self) -> int:
        """CLOCK_REALTIME."""
        return time.time_ns() // 1_000

    def wait(self, stop: threading.Event, until_s: float) -> bool:
        """Return when it is that late in the recording, or `stop` is set. True while not stopped."""
        while self.monotonic_s() < until_s:
            if stop.wait(_LOOK_S):
                return False
        return not stop.is_set()

    def _move(self) -> None:
        """Of what is left of the recording, as much passes as of the time that is left: never all of it."""
        now = self._now()
        passed_s, self._looked_at = now - self._looked_at, now
        if self._happened >= 1.0:
            self._share = 1.0
        else:
            self._share += (1.0 - self._share) * min(passed_s / max(self.left_s, _SHORTEST_S), 0.5)


class Feed(threading.Thread):
    """Replays a recording into `positions` by that clock, its times kept. `failure`: what went wrong, when it is over.

    It stops by itself at the recording's end, everything confirmed; or by stop(), and then waits for no broker.
    """

    def __init__(self, home: Home, lab: Lab, broker: str, recording: Path, clock: FaultClock) -> None:
        super().__init__(name=f"feeds-{broker}", daemon=True)
        self.failure: Exception | None = None
        self.progress = Progress(_ROLE)
        self._home, self._lab, self._broker, self._path, self._clock = home, lab, broker, recording, clock
        self._stop_event = threading.Event()

    def stop(self) -> None:
        """Send no more; the thread ends soon."""
        self._stop_event.set()

    def run(self) -> None:
        """Replay; what goes wrong is left in `failure`."""
        try:
            self._replay()
        except Exception as failure:  # noqa: BLE001 - raised by whoever waits for the thread
            self.failure = failure

    def _replay(self) -> None:
        replay = Replay(read(self._path), rebase=Rebase.KEEP, clock=self._clock)
        name, stream = producer_name(self._path), STREAMS[replay.stream]
        publisher = transport_of(self._home, self._lab, self._broker, _ROLE).publisher(name)
        ledgers = self._home.ledgers(self._broker)
        try:
            with Ledger.open(ledgers, name, stream.name, parameters=replay.parameters) as ledger:
                coded = codec(self._lab.codec, stream.schema)
                produce(replay, publisher, coded, ledger, stop=self._stop_event, progress=self.progress)
        finally:
            publisher.close()
