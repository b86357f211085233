"""A transformer's ends on queues: input known by the identities of its events, output repeated with the same ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from streaming.batch import Batch
from streaming.events import MARK, ORIGIN
from streaming.identities import Identities, new_rows
from streaming.interfaces import Codec, Keeper, Publisher, Source
from streaming.transports.rabbitmq.outbox import Outcome


@dataclass(slots=True)
class QueueInput:
    """Implements outbox.Input. Repeats of what is used up, or taken, are left out; marks and undecodable bytes are not.

    A repeated mark says nothing new: watermarks only rise.
    """

    source: Callable[[Keeper], Source]
    codec: Codec
    used: Identities = field(default_factory=Identities)
    taken: list[tuple[int, pl.DataFrame]] = field(default_factory=list)  # offset behind it, identities of a batch
    repeats: int = 0

    def open(self, used: Any, keeper: Keeper) -> Source:
        """Consume the queue."""
        self.used = Identities.load(used or [])
        return self.source(keeper)

    def begin(self) -> int | None:
        """What was taken and not used comes again."""
        self.taken.clear()
        return None

    @property
    def is_used_up(self) -> bool:
        """Whether nothing is taken and not used."""
        return not self.taken

    def fresh(self, batch: Batch) -> Batch:
        """The batch without repeats."""
        decoded = self.codec.decode(batch.values)
        origins = decoded.table.select(*ORIGIN, place=pl.Series(decoded.rows, dtype=pl.Int64))
        events = origins.filter(pl.col("sequence") != MARK)
        taken = Identities()
        for _, earlier in self.taken:
            taken.add(earlier)
        new = new_rows(events, self.used, taken)
        self.repeats += len(events) - len(new)
        kept = np.ones(len(batch), dtype=bool)
        kept[events["place"].to_numpy()] = False
        kept[new["place"].to_numpy()] = True
        if not kept.all():
            chosen = np.flatnonzero(kept)
            values = [batch.values[place] for place in chosen.tolist()]
            batch = Batch(batch.stream, batch.partition, values, batch.offsets[chosen])
        if len(batch):  # its own end, not that of the repeats behind it: a commit is asked for up to there
            self.taken.append((batch.next_offset, new.select(ORIGIN)))
        return batch

    def use(self, offset: int) -> Any:
        """Everything taken before `offset` is used up."""
        for behind, identities in self.taken:
            if behind <= offset:
                self.used.add(identities)
        self.taken = [each for each in self.taken if each[0] > offset]
        return self.used.dump()


@dataclass(frozen=True, slots=True)
class QueueOutput:
    """Implements outbox.Output: outputs carry their identities in their payloads."""

    publisher: Callable[[], Publisher]

    def open(self, outcome: Outcome, *, is_sent: bool) -> Publisher:  # noqa: ARG002 - nothing to prepare
        """Any publisher will do."""
        return self.publisher()

    def publishing_ids(self, publisher: Publisher, streams: Sequence[str]) -> Mapping[str, int]:  # noqa: ARG002
        """None."""
        return {}
