"""How far a role has come: a few counters, written to one small file about once a second.

Invariant: the file is replaced as a whole, so a reader sees either the earlier state or the later one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from streaming.durability import replace_file
from streaming.turns import Turns

_WRITE_EVERY_S: Final = 1.0


@dataclass(slots=True)
class Progress:
    """Counters of one role's process. `path` None: count only. One thread counts `records`, one may count `committed`.

    `records` were taken in (again, if read again), `committed` are durable, `rejected` could not be decoded,
    `retried` are commits that did not happen, so that what they held was read again;
    `rate_hz` is records a second between the last two writes. `waited_s` went by in waiting(), `worked_s` is the rest
    of the process's time. `turns`, if given, keeps how each turn of the loop was spent.
    """

    role: str
    path: Path | None = None
    clock: Callable[[], float] = time.monotonic
    records: int = 0
    committed: int = 0
    rejected: int = 0
    retried: int = 0
    waited_s: float = 0.0
    last_commit_at: float | None = None
    commits_made: int = 0
    commit_s: float = 0.0  # all commits together
    started_at: float = field(default_factory=time.time)
    turns: Turns | None = None
    loop_s: float | None = None  # how long the loop took, when it is over
    loop_waited_s: float | None = None  # how much of that was waiting; `waited_s` is the whole process's
    _began: float = field(default=0.0, repr=False)
    _loop_began: float = field(default=0.0, repr=False)
    _waited_before: float = field(default=0.0, repr=False)
    _written_at: float = field(default=0.0, repr=False)
    _written_records: int = field(default=0, repr=False)
    _rate_hz: float = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        self._began = self._written_at = self.clock()

    def took(self, records: int) -> None:
        """Records were taken in."""
        self.records += records

    def rejects(self, records: int) -> None:
        """Records could not be decoded."""
        self.rejected += records

    def retries(self) -> None:
        """A commit did not happen; what it held is read and made again."""
        self.retried += 1

    def commits(self, records: int, took_s: float = 0.0) -> None:
        """Records are durable and visible; making them so took that long."""
        if not records:  # a turn without input commits nothing, and must not look like work
            return
        self.committed += records
        self.commits_made += 1
        self.commit_s += took_s
        self.last_commit_at = time.time()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """What happens inside is waiting for somebody else: a broker, a deadline, room in a queue."""
        start = self.clock()
        try:
            yield
        finally:
            self.waited_s += self.clock() - start

    def begins(self) -> None:
        """The loop begins."""
        self._loop_began, self._waited_before = self.clock(), self.waited_s
        if self.turns is not None:
            self.turns.begin(self.waited_s, self.records)

    def ends(self) -> None:
        """The loop is over."""
        if self.turns is not None:
            self.turns.end(self.waited_s, self.records)  # what came after the last tick
        self.loop_waited_s = self.waited_s - self._waited_before
        self.loop_s = self.clock() - self._loop_began  # not by the turns' clock: they are held against it

    def tick(self) -> None:
        """A turn of the loop is over. Writes the file if the last time was a second ago; cheap."""
        if self.turns is not None:
            self.turns.end(self.waited_s, self.records)
        if self.clock() - self._written_at >= _WRITE_EVERY_S:
            self.write()

    def write(self) -> None:
        """Write the file now."""
        now = self.clock()
        if now > self._written_at:
            self._rate_hz = (self.records - self._written_records) / (now - self._written_at)
        self._written_at, self._written_records = now, self.records
        if self.turns is not None:
            self.turns.write()
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.path, orjson.dumps(self.as_dict(), option=orjson.OPT_INDENT_2))

    def as_dict(self) -> dict[str, Any]:
        """What the file holds. Times are seconds since 1970."""
        return {
            "role": self.role,
            "pid": os.getpid(),
            "records": self.records,
            "committed": self.committed,
            "rejected": self.rejected,
            "retried": self.retried,
            "rate_hz": round(self._rate_hz, 1),
            "waited_s": round(self.waited_s, 3),
            "worked_s": round(self.clock() - self._began - self.waited_s, 3),
            "loop_s": self.loop_s,
            "loop_waited_s": self.loop_waited_s,
            "last_commit_at": self.last_commit_at,
            "started_at": self.started_at,
            "written_at": time.time(),
        }
