"""How far a table has grown: sums over its slots that go on from where the last look ended.

Invariant: the sums are those of every slot that is there now. A look opens only slots behind the known positions; when
other commits lie before them than were counted (a slot went away, or came back, or was pruned), all are counted anew.
A merge changes files and bytes, and no row: those are looked at again, and what was made of the rows stays true.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from sinks.cut import high_water
from sinks.folders import SlotName, steadily
from sinks.reader import Slot, begins, names, slots_of
from streaming.home import Home

NEVER: Final = 0.0


@dataclass(frozen=True, slots=True)
class Chain:
    """One partition's slots so far. `missing` are ranges [expected, found) where the chain is broken."""

    next: int = 0
    files: int = 0
    rows: int = 0
    size_bytes: int = 0
    committed_at: float = NEVER  # the newest commit, in seconds since 1970
    missing: tuple[tuple[int, int], ...] = ()
    commits: int = 0  # of which a merged file holds several

    def now_in(self, there: Sequence[tuple[Path, SlotName]]) -> Chain:
        """This chain in the files that it lies in now."""
        if len(there) == self.files:
            return self
        return replace(self, files=len(there), size_bytes=sum(path.stat().st_size for path, _ in there))

    def extended(self, newer: Sequence[Slot]) -> Chain:
        """This chain and the slots behind it, in order; what does not join on is noted as missing."""
        ends = [self.next, *(slot.next for slot in newer)]
        breaks = [(end, slot.base) for end, slot in zip(ends, newer, strict=False) if end != slot.base]
        return Chain(
            next=ends[-1],
            files=self.files + len(newer),
            rows=self.rows + sum(slot.rows for slot in newer),
            size_bytes=self.size_bytes + sum(slot.size_bytes for slot in newer),
            committed_at=max([self.committed_at, *(slot.committed_at.timestamp() for slot in newer)]),
            missing=(*self.missing, *breaks),
            commits=self.commits + sum(slot.commits for slot in newer),
        )


@dataclass(frozen=True, slots=True)
class Extent:
    """A table's chains by partition, and what they add up to.

    `marks`: how far each chain had ever been just before it was looked at. A mark read later could be of a commit that
    the look has not seen, and would be taken for a loss.
    """

    chains: Mapping[int, Chain]
    marks: Mapping[int, int] = field(default_factory=dict, compare=False)

    @property
    def files(self) -> int:
        """Committed files."""
        return sum(chain.files for chain in self.chains.values())

    @property
    def rows(self) -> int:
        """Rows in them."""
        return sum(chain.rows for chain in self.chains.values())

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return sum(chain.size_bytes for chain in self.chains.values())

    @property
    def committed_at(self) -> float:
        """The newest commit, in seconds since 1970; 0 before the first."""
        return max((chain.committed_at for chain in self.chains.values()), default=NEVER)

    @property
    def version(self) -> str:
        """A digest of the positions: the same records have landed if and only if it is the same."""
        positions = [(partition, chain.next, chain.commits) for partition, chain in sorted(self.chains.items())]
        return hashlib.sha256(repr(positions).encode()).hexdigest()[:16]

    def dump(self) -> dict[str, Any]:
        """As JSON can hold it; load() reads it back."""
        return {str(partition): asdict(chain) for partition, chain in self.chains.items()}

    @classmethod
    def load(cls, dumped: Mapping[str, Mapping[str, Any]]) -> Extent:
        """The inverse of dump()."""
        return cls(
            {
                int(partition): Chain(**{**chain, "missing": tuple(map(tuple, chain["missing"]))})
                for partition, chain in dumped.items()
            }
        )


NOTHING: Final = Extent({})


@dataclass(frozen=True, slots=True)
class Growth:
    """One look at a table. `newer` are the slots that were not counted before: all of them if `is_afresh`."""

    extent: Extent
    newer: list[Slot]
    is_afresh: bool


def look(home: Home, broker: str, table: str, known: Extent = NOTHING) -> Growth:
    """Count a table on from what is known of it."""
    return steadily(lambda: _look(home, broker, table, known))


def _look(home: Home, broker: str, table: str, known: Extent) -> Growth:
    """All of one listing: what is merged or pruned after it makes this look begin anew."""
    marks = high_water(home, broker, table)
    there = names(home, broker, table)
    counted = {partition: _before(there.get(partition, ()), chain.next) for partition, chain in known.chains.items()}
    if any(_commits(counted[partition]) != chain.commits for partition, chain in known.chains.items()):
        known = NOTHING
    chains = {partition: chain.now_in(counted[partition]) for partition, chain in known.chains.items()}
    newer: list[Slot] = []
    for partition, found in sorted(there.items()):
        before = chains.get(partition)
        mine = slots_of(table, [path for path, name in found if before is None or name.base >= before.next])
        if mine:
            chains[partition] = (before or Chain(next=_begin(home, broker, table, partition))).extended(mine)
            newer += mine
    return Growth(Extent(chains, marks), newer, not known.chains)


def _begin(home: Home, broker: str, table: str, partition: int) -> int:
    found = begins(home, broker, table).get(partition)
    return found.next if found else 0


def _before(there: Sequence[tuple[Path, SlotName]], position: int) -> list[tuple[Path, SlotName]]:
    return [(path, name) for path, name in there if name.base < position]


def _commits(there: Sequence[tuple[Path, SlotName]]) -> int:
    return sum(name.commits for _, name in there)


def gaps(extent: Extent) -> list[str]:
    """Every break in the table's chains in words, and every chain that ends before where it has been."""
    breaks = [
        f"partition {partition}: the chain ends at {expected}, the next slot begins at {found}"
        for partition, chain in sorted(extent.chains.items())
        for expected, found in chain.missing
    ]
    ends = {partition: chain.next for partition, chain in extent.chains.items()}
    lost_ends = [
        f"partition {partition}: the chain ends at {ends.get(partition, 0)} and has been at {mark}"
        for partition, mark in sorted(extent.marks.items())
        if ends.get(partition, 0) < mark
    ]
    return breaks + lost_ends
