"""The codecs alone: the application's own records encoded and decoded in this process, without a broker.

Invariant: what is decoded are exactly the rows that were encoded; anything else is a defect and ends the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from typing import Final

import polars as pl

from experiments.profiles import inputs
from streaming.codecs import codec
from streaming.errors import DataError
from streaming.home import Home
from streaming.interfaces import Codec
from streaming.progress import Progress
from streaming.service import Limits
from streaming.stopping import stop_on_signals
from streaming.topology import stream
from streaming.turns import SUFFIX, Turns

CODECS: Final = "codecs"
STREAMS: Final = ("positions", "diagnostics", "position_means", "alerts")  # flat, nested, and two with optional fields
BLOCK: Final = 5_000  # records a turn, about a poll's worth


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of one stream and the codec for them."""

    rows: pl.DataFrame
    codec: Codec

    def turn(self, most: int) -> int:
        """Encode and decode at most so many; how many records. DataError when what comes back is not what went in."""
        rows = self.rows.head(most)
        decoded = self.codec.decode(self.codec.encode(rows))
        if not decoded.table.equals(rows):
            lost = len(rows) - len(decoded.table)
            raise DataError(f"{self.codec.name}: of {len(rows)} records {lost} do not come back, or others come back")
        return len(rows)


def blocks(codec_name: str, vehicles: int, seed: int) -> list[Block]:
    """A block of each stream that has records (a small fleet may give no alert), made before anything is measured."""
    made = [Block(inputs.rows(name, BLOCK, vehicles, seed), codec(codec_name, stream(name).schema)) for name in STREAMS]
    return [block for block in made if len(block.rows)]


def run(home: Home, prepared: list[Block], limits: Limits) -> None:
    """Encode and decode block by block until a limit is reached or a signal comes; keep progress as a role does."""
    stop = stop_on_signals()
    path = home.run / f"{CODECS}.json"
    progress = Progress(CODECS, path, turns=Turns(path.with_suffix(SUFFIX)))
    ends_at = progress.clock() + limits.for_s if limits.for_s is not None else None
    progress.begins()
    for block in cycle(prepared):
        left = BLOCK if limits.messages is None else limits.messages - progress.records
        if stop.is_set() or left <= 0 or (ends_at is not None and progress.clock() >= ends_at):
            break
        records = block.turn(left)
        progress.took(records)
        progress.commits(records)
        progress.tick()
    progress.ends()
    progress.write()
