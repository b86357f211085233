"""How far a sink's committed files reach: the position from which it would resume, whatever its group says."""

from __future__ import annotations

from collections.abc import Mapping

from sinks.reader import bases, slots
from streaming.home import Home
from streaming.topology import Role


def landed_to(home: Home, broker: str, role: Role) -> Mapping[int, int]:
    """Partition → the offset behind its last committed slot; partitions without a slot are left out."""
    table = str(role.table)
    last = {partition: found[-1] for partition, found in bases(home, broker, table).items()}
    return {slot.partition: slot.next for slot in slots(home, broker, table, last)}
