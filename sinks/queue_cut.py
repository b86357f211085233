"""A moment to check at, on queues: there are no offsets, so what is due are the events themselves.

Invariant: what is due was confirmed when it was noted, so it lay in every group's queue then. A queue is first in,
first out: as soon as something that was tried only after that moment has landed, or the queue was seen empty, all that
was due has been delivered, and what of it is in no file is lost. Until then it is pending. As on Kafka, every end is
taken after everything it depends on has passed.

`late_positions` keep the identities of the positions that they are, so the transformer does not number them. How many
there must be follows from what it has used up: what it has not counted into means and does not hold in open windows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import polars as pl

from sinks.accounts import Claim, Life
from sinks.cut import Cut, in_order, snapshots, until_none
from sinks.ends import is_below, joined, without
from sinks.reader import scan, scan_slots, slots
from streaming.codecs import codec
from streaming.errors import BrokerUnavailable
from streaming.events import MARK, ORIGIN
from streaming.home import Home
from streaming.identities import Identities
from streaming.interfaces import Queueing, Remembered
from streaming.intervals import IntervalSet
from streaming.lab import Lab
from streaming.topology import ROLES, STREAMS, Role, RoleKind
from streaming.transformers.flows import step_for
from streaming.transformers.windows import MeansStep

PARTITION: Final = 0
BOOKS_AGE_S: Final = 12.0  # how old the broker's own count of unacknowledged messages may be, with a margin
_LATE: Final = "late_positions"
Claims = Mapping[str, Mapping[Life, Claim]]  # by stream


def take_queue_cut(
    home: Home, transport: Queueing, lab: Lab, claims: Claims, *, wait_s: float, progress: Callable[[str], None]
) -> Cut:
    """Wait up to `wait_s` until everything up to now has been transformed and landed. `claims` are of now."""
    started = time.monotonic()
    waiting = _Waiting(home, transport, started + wait_s, progress)
    cut, due = Cut(), {name: Identities() for name in STREAMS}
    for name, lives in claims.items():
        due[name] = Identities({life: claim.confirmed for life, claim in lives.items()})
    tried = due | {name: Identities({at: one.attempted for at, one in each.items()}) for name, each in claims.items()}
    inputs = dict(due)
    late = 0
    for role in in_order(role for role in ROLES.values() if role.kind is RoleKind.TRANSFORMER):
        read, made = role.reads[0], role.writes[0]
        pending, memory = waiting.until_transformed(role, due[read], tried[read])
        used = _used(memory)
        inputs[read] = used if pending else joined(due[read], used)
        due[made], tried[made] = _outputs(role, memory)
        inputs[made] = due[made]
        cut.pending[role.name] = pending
        if _LATE in role.writes and memory is not None:
            late = _late_count(home, transport, memory, waiting, due[made])
            due[_LATE] = inputs[_LATE] = tried[_LATE] = used
    for name in {name for role in ROLES.values() for name in role.looks_up}:
        cut.places[name] = _places(transport, lab, name)
        inputs[name] = joined(inputs[name], _identities(cut.places[name]))
    for role in ROLES.values():
        if role.table:
            read = role.reads[0]
            # Also what a transformer that is behind has not used: it was confirmed, so without a word it would be lost.
            wanted = inputs[read] if read == _LATE else joined(due[read], inputs[read])
            needed = late if read == _LATE else wanted.count
            cut.pending[role.table] = waiting.until_landed(role, wanted, due[read], tried[read], needed)
    cut.due = {name: {PARTITION: events} for name, events in due.items()}
    cut.inputs = {name: {PARTITION: events} for name, events in inputs.items()}
    cut.waited_s = time.monotonic() - started
    return cut


def _used(memory: Remembered | None) -> Identities:
    return memory.used if memory is not None and isinstance(memory.used, Identities) else Identities()


def _outputs(role: Role, memory: Remembered | None) -> tuple[Identities, Identities]:
    """Which of its own numbers a transformer has sent, and which it has given."""
    if memory is None:
        return Identities(), Identities()
    emitted = step_for(role, vehicles=(pl.DataFrame(), 0)).load(memory.state).emitted
    life = (f"{role.name.removesuffix(f'-{role.kind}')}-{PARTITION}", 0)
    sent = emitted - memory.unsent.get(role.writes[0], 0)
    return Identities({life: IntervalSet.of_ranges([(0, sent)])}), Identities(
        {life: IntervalSet.of_ranges([(0, emitted)])}
    )


def _late_count(home: Home, transport: Queueing, memory: Remembered, waiting: _Waiting, means: Identities) -> int:
    """How many positions the transformer has passed on as late; 0 when its means have not landed, to count them."""
    role = next(role for role in ROLES.values() if role.reads == ("position_means",) and role.format == "parquet")
    if waiting.until_landed(role, means, means, means, means.count):
        return 0
    rows = scan(home, transport.name, str(role.table)).filter(is_below(means)).select(pl.col("count").sum()).collect()
    return max(0, _used(memory).count - int(rows.item()) - len(MeansStep().load(memory.state).open))


def _places(transport: Queueing, lab: Lab, stream: str) -> pl.DataFrame:
    """Where the events of a reference stream lie on the broker: ORIGIN, _offset; more than once if it has repeats."""
    reads = codec(lab.codec, STREAMS[stream].schema)
    found = [pl.DataFrame(schema={**dict.fromkeys(ORIGIN, pl.Int64), "producer": pl.String, "_offset": pl.Int64})]
    for batch in transport.read_all(stream):
        decoded = reads.decode(batch.values)
        offsets = pl.Series(batch.offsets)[decoded.rows]
        found.append(decoded.table.select(*ORIGIN, _offset=offsets).filter(pl.col("sequence") != MARK))
    return pl.concat(found)


def _identities(rows: pl.DataFrame) -> Identities:
    found = Identities()
    found.add(rows)
    return found


@dataclass(slots=True)
class _Arrived:
    """The events in a table's slots, as far as it was read; each slot is read once."""

    home: Home
    broker: str
    table: str
    seen: Identities = field(default_factory=Identities)
    next: int = 0

    def look(self) -> Identities:
        """What has landed by now. What can't be read is left out: verify says so itself."""
        chain = slots(self.home, self.broker, self.table)
        if self.next not in {0, *(slot.next for slot in chain)}:  # slots were merged: read once more
            self.seen, self.next = Identities(), 0
        fresh = [slot for slot in chain if slot.base >= self.next and slot.rows]
        if fresh:
            try:
                rows = scan_slots(fresh).select(ORIGIN).collect()
            except (pl.exceptions.PolarsError, OSError):
                return self.seen
            self.seen.add(rows)
            self.next = fresh[-1].next
        return self.seen


@dataclass(slots=True)
class _Waiting:
    """Looks again and again until nothing is pending or the deadline has passed."""

    home: Home
    transport: Queueing
    deadline_s: float
    progress: Callable[[str], None]

    def until_transformed(self, role: Role, due: Identities, tried: Identities) -> tuple[int, Remembered | None]:
        """Input records that the transformer has not used up or outputs that it has not sent, and what it holds."""
        memory: Remembered | None = None

        def pending() -> int:
            nonlocal memory
            memory = snapshots(self.transport, role).get(PARTITION)
            used = _used(memory)
            missing = 0 if without(used, tried).lives else without(due, used).count
            return missing + unsent()

        def unsent() -> int:
            return sum(memory.unsent.values()) if memory else 0

        return self._until(role, pending, unsent), memory

    def until_landed(self, role: Role, wanted: Identities, due: Identities, tried: Identities, needed: int) -> int:
        """How many of `wanted` are neither in the table, though `needed` of them must be, nor proven to be lost.

        What landed and was not `tried` yet when `due` was noted came behind all of `due`. Of what a transformer has
        used beyond that it proves nothing.
        """
        arrived, later = _Arrived(self.home, self.transport.name, str(role.table)), without(wanted, due)

        def pending() -> int:
            seen = arrived.look()
            missing = needed - (wanted.count - without(wanted, seen).count)
            if needed == wanted.count and without(seen, tried).lives:
                missing = without(later, seen).count
            return max(0, missing)

        return self._until(role, pending)

    def _until(self, role: Role, look: Callable[[], int], certain: Callable[[], int] = lambda: 0) -> int:
        """Look until nothing is pending or time is up; what is pending then. `certain`: also of an empty queue."""
        begun_s = time.monotonic()

        def settled() -> int | None:
            # What has landed in the meantime is in the files; the rest is lost.
            return min(look(), certain()) if self._is_empty(role, begun_s) else None

        return until_none(role.name, look, self.deadline_s, self.progress, settled)

    def _is_empty(self, role: Role, since_s: float) -> bool:
        """Whether the role's queue held nothing at some time since then."""
        if time.monotonic() - since_s < BOOKS_AGE_S:
            return False
        stream = role.reads[0]
        try:
            return self.transport.depths(stream)[role.name] == 0 and self.transport.held(stream, role.name) == 0
        except BrokerUnavailable:
            return False
