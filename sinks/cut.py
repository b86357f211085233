"""A moment to check at: how far each stream had come, and waiting until transformers and sinks have come as far.

Invariant: every end is taken after everything it depends on has passed. What was confirmed when the ledgers were read
lies below the sources' ends; what the transformers made of that lies below the derived ends; and all input of what lies
below a derived end lies below `inputs`. So whatever the lab does meanwhile, what is compared belongs together.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from sinks.reader import quarantine_scan, slots
from streaming.home import Home
from streaming.interfaces import Transport
from streaming.topology import ROLES, STREAMS, Role, RoleKind, StreamKind, state_stream
from streaming.transports.positions import Snapshot

Ends = Mapping[int, int]  # partition → offset
LONGEST_PAUSE_S: Final = 4.0


@dataclass(slots=True)
class Cut:
    """`due[stream]`: what must have landed; `inputs[stream]`: what may have gone into derived records below `due`.

    `pending[name]` counts what a table or a transformer had not reached when the waiting ended.
    """

    due: dict[str, Ends] = field(default_factory=dict)
    inputs: dict[str, Ends] = field(default_factory=dict)
    pending: dict[str, int] = field(default_factory=dict)
    waited_s: float = 0.0


def take_cut(home: Home, broker: str, transport: Transport, *, wait_s: float, progress: Callable[[str], None]) -> Cut:
    """Wait up to `wait_s` until everything up to now has been transformed and landed."""
    started = time.monotonic()
    waiting = _Waiting(transport, started + wait_s, progress)
    cut = Cut()
    for name, stream in STREAMS.items():
        if stream.kind in (StreamKind.SOURCE, StreamKind.REFERENCE):
            cut.due[name] = _ends(transport, name)
    for role in _in_order(role for role in ROLES.values() if role.kind is RoleKind.TRANSFORMER):
        cut.pending[role.name] = waiting.until_transformed(role, cut.due[role.reads[0]])
        for name in role.writes:
            if STREAMS[name].kind is StreamKind.DERIVED:
                cut.due[name] = _ends(transport, name)
    cut.inputs = {name: _ends(transport, name) for name in cut.due}
    for role in ROLES.values():
        if role.table:
            cut.pending[role.table] = waiting.until_landed(home, broker, role, cut.inputs[role.reads[0]])
    cut.waited_s = time.monotonic() - started
    return cut


def snapshots(transport: Transport, role: Role) -> dict[int, Snapshot]:
    """A transformer's last committed snapshot of each input partition."""
    batches = sorted(transport.read_all(state_stream(role).name), key=lambda batch: batch.next_offset)
    return {batch.partition: Snapshot.unpack(batch.values[-1]) for batch in batches if len(batch)}


def high_water(home: Home, broker: str, table: str) -> dict[int, int]:
    """How far each of a table's chains has ever been; what lay below and is gone is lost, not pending."""
    notes = (home.high_water(broker) / table).glob("p=*.table.json")
    return {int(note.name[2:].partition(".")[0]): int(json.loads(note.read_text())["next"]) for note in notes}


def _ends(transport: Transport, stream: str) -> Ends:
    return {partition: extent.high for partition, extent in transport.extents(stream).items()}


def _in_order(transformers: Iterable[Role]) -> Iterator[Role]:
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

    transport: Transport
    deadline_s: float
    progress: Callable[[str], None]

    def until_transformed(self, role: Role, ends: Ends) -> int:
        """Input records that the transformer has not committed yet."""

        def reached() -> Ends:
            return {partition: found.next_offset for partition, found in snapshots(self.transport, role).items()}

        return self._until(role.name, role.reads[0], reached, ends)

    def until_landed(self, home: Home, broker: str, role: Role, ends: Ends) -> int:
        """Records that the table's chains have not reached yet."""

        def reached() -> Ends:
            chains = high_water(home, broker, str(role.table))
            for slot in slots(home, broker, str(role.table)):
                chains[slot.partition] = max(slot.next, chains.get(slot.partition, 0))
            return chains

        def aside(behind: Ends) -> int:
            rows = quarantine_scan(home, broker, str(role.table)).select("partition", "_offset").collect()
            return sum(offset >= behind.get(partition, 0) for partition, offset in rows.iter_rows())

        return self._until(str(role.table), role.reads[0], reached, ends, aside)

    def _until(
        self,
        who: str,
        stream: str,
        reached: Callable[[], Ends],
        ends: Ends,
        aside: Callable[[Ends], int] = lambda _: 0,
    ) -> int:
        """`aside`: how many records beyond what was reached need not be waited for."""
        pause_s = 0.25
        while pending := self._pending(stream, reached(), ends, aside):
            left_s = self.deadline_s - time.monotonic()
            if left_s <= 0:
                break
            self.progress(f"{who}: {pending:,} records to go, {left_s:.0f} s left")
            time.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        return pending

    def _pending(self, stream: str, reached: Ends, ends: Ends, aside: Callable[[Ends], int]) -> int:
        between = self._between(stream, reached, ends)
        return max(0, between - aside(reached)) if between else 0

    def _between(self, stream: str, reached: Ends, ends: Ends) -> int:
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
