"""A moment to check at: how far each stream had come, and waiting until transformers and sinks have come as far.

This is for transports that replay; queues have a cut of their own (see queue_cut).

Invariant: every end is taken after everything it depends on has passed. What was confirmed when the ledgers were read
lies below the sources' ends; what the transformers made of that lies below the derived ends; and all input of what lies
below a derived end lies below `inputs`. So whatever the lab does meanwhile, what is compared belongs together.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import polars as pl

from sinks.ends import Ends
from sinks.reader import quarantine_scan, slots
from streaming.home import Home
from streaming.interfaces import Offsets, Remembered, Remembering, Replayable, Transport
from streaming.topology import ROLES, STREAMS, Role, RoleKind, StreamKind, state_stream
from streaming.transports.positions import Snapshot

_LONGEST_PAUSE_S: Final = 4.0


@dataclass(slots=True)
class Cut:
    """`due[stream]`: what must have landed; `inputs[stream]`: what may have gone into derived records below `due`.

    `pending[name]` counts what a table or a transformer had not reached when the waiting ended. `places[stream]`: where
    on the broker the events of a reference stream lie (ORIGIN, _offset), if its table numbers them otherwise.
    """

    due: dict[str, Ends] = field(default_factory=dict)
    inputs: dict[str, Ends] = field(default_factory=dict)
    pending: dict[str, int] = field(default_factory=dict)
    places: dict[str, pl.DataFrame] = field(default_factory=dict)
    waited_s: float = 0.0


def take_cut(home: Home, broker: str, transport: Replayable, *, wait_s: float, progress: Callable[[str], None]) -> Cut:
    """Wait up to `wait_s` until everything up to now has been transformed and landed."""
    started = time.monotonic()
    waiting = _Waiting(transport, started + wait_s, progress)
    due: dict[str, Offsets] = {}
    pending: dict[str, int] = {}
    for name, stream in STREAMS.items():
        if stream.kind in (StreamKind.SOURCE, StreamKind.REFERENCE):
            due[name] = _ends(transport, name)
    for role in in_order(role for role in ROLES.values() if role.kind is RoleKind.TRANSFORMER):
        pending[role.name] = waiting.until_transformed(role, due[role.reads[0]])
        for name in role.writes:
            if STREAMS[name].kind is StreamKind.DERIVED:
                due[name] = _ends(transport, name)
    inputs = {name: _ends(transport, name) for name in due}
    for role in ROLES.values():
        if role.table:
            pending[role.table] = waiting.until_landed(home, broker, role, inputs[role.reads[0]])
    return Cut({**due}, {**inputs}, pending, waited_s=time.monotonic() - started)


def snapshots(transport: Transport, role: Role) -> dict[int, Remembered]:
    """What a transformer has committed of each input partition, wherever its transport keeps that."""
    if isinstance(transport, Remembering):
        found = transport.remembered(role.name)
        return {} if found is None else {0: found}
    batches = sorted(transport.read_all(state_stream(role).name), key=lambda batch: batch.next_offset)
    kept = {batch.partition: Snapshot.unpack(batch.values[-1]) for batch in batches if len(batch)}
    return {partition: Remembered(one.state, one.next_offset) for partition, one in kept.items()}


def high_water(home: Home, broker: str, table: str) -> dict[int, int]:
    """How far each of a table's chains has ever been; what lay below and is gone is lost, not pending."""
    notes = (home.high_water(broker) / table).glob("p=*.table.json")
    return {int(note.name[2:].partition(".")[0]): int(json.loads(note.read_text())["next"]) for note in notes}


def until_none(
    who: str,
    look: Callable[[], int],
    deadline_s: float,
    progress: Callable[[str], None],
    settled: Callable[[], int | None] = lambda: None,
) -> int:
    """Look until nothing is pending or time is up; what is pending then. `settled`, if it knows, ends the waiting."""
    pause_s = 0.25
    while pending := look():
        if (known := settled()) is not None:
            return known
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            break
        progress(f"{who}: {pending:,} records to go, {left_s:.0f} s left")
        time.sleep(min(pause_s, left_s))
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
    return pending


def _ends(transport: Replayable, stream: str) -> Offsets:
    return {partition: extent.high for partition, extent in transport.extents(stream).items()}


def in_order(transformers: Iterable[Role]) -> Iterator[Role]:
    """Each after those whose streams it reads."""
    left = list(transformers)
    while left:
        made = {name for role in left for name in role.writes}
        ready = [role for role in left if not made & set(role.reads)]
        yield from ready
        left = [role for role in left if role not in ready]


@dataclass(slots=True)
class _Waiting:
    """Looks again and again until nothing is pending or the deadline has passed."""

    transport: Replayable
    deadline_s: float
    progress: Callable[[str], None]

    def until_transformed(self, role: Role, ends: Offsets) -> int:
        """Input records that the transformer has not committed yet, and outputs that it has not sent."""

        def pending() -> int:
            found = snapshots(self.transport, role)
            reached = {partition: one.used for partition, one in found.items() if isinstance(one.used, int)}
            return self._between(role.reads[0], reached, ends) + sum(sum(one.unsent.values()) for one in found.values())

        return until_none(role.name, pending, self.deadline_s, self.progress)

    def until_landed(self, home: Home, broker: str, role: Role, ends: Offsets) -> int:
        """Records that the table's chains have not reached yet."""
        table = str(role.table)

        def pending() -> int:
            chains = high_water(home, broker, table)
            for slot in slots(home, broker, table):
                chains[slot.partition] = max(slot.next, chains.get(slot.partition, 0))
            between = self._between(role.reads[0], chains, ends)
            return max(0, between - aside(chains)) if between else 0

        def aside(behind: Offsets) -> int:
            """How many records beyond what was reached need not be waited for."""
            rows = quarantine_scan(home, broker, table).select("partition", "_offset").collect()
            return sum(offset >= behind.get(partition, 0) for partition, offset in rows.iter_rows())

        return until_none(table, pending, self.deadline_s, self.progress)

    def _between(self, stream: str, reached: Offsets, ends: Offsets) -> int:
        """How many records lie between; offsets alone don't tell, the broker's own control records take some."""
        behind = {partition: end for partition, end in ends.items() if reached.get(partition, 0) < end}
        if not behind:
            return 0
        low = {partition: extent.low for partition, extent in self.transport.extents(stream).items()}
        return sum(
            self.transport.count_between(stream, partition, max(reached.get(partition, 0), low[partition]), end)
            for partition, end in behind.items()
            if max(reached.get(partition, 0), low[partition]) < end
        )
