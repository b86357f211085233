"""How far a table has grown: sums over its slots that go on from where the last look ended.

Invariant: the sums are those of every slot that is there now. A look opens only slots behind the known positions; when
the number of files before them is another than was counted (a slot went away, or came back), all are counted anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any, Final

from sinks.cut import high_water
from sinks.reader import Slot, bases, slots
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
        )


@dataclass(frozen=True, slots=True)
class Extent:
    """A table's chains by partition, and what they add up to.

    `marks`: how far each chain had ever been just before it was looked at. A mark read later could be of a commit that
    the look has not seen, and would be taken for a loss.
    """

    chains: Mapping[int, Chain]
    marks: Mapping[int, int] = field(default_factory=dict)

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
        positions = [(partition, chain.next, chain.files) for partition, chain in sorted(self.chains.items())]
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
    marks = high_water(home, broker, table)
    there = bases(home, broker, table)
    is_afresh = any(
        sum(base < chain.next for base in there.get(partition, ())) != chain.files
        for partition, chain in known.chains.items()
    )
    known = NOTHING if is_afresh else known
    newer = slots(home, broker, table, {partition: chain.next for partition, chain in known.chains.items()})
    chains = dict(known.chains)
    for partition, found in groupby(newer, key=lambda slot: slot.partition):
        chains[partition] = chains.get(partition, Chain()).extended(list(found))
    return Growth(Extent(chains, marks), newer, is_afresh or not known.chains)


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
