"""The commit: a chain of files per partition, each named by the position it begins at.

A slot is written beside the warehouse, synced, and linked to its name: link(2) fails when the name is taken, so of two
owners of a partition exactly one wins each position. The base of a slot is the end of the one before it (0 for the
first), not its first record's offset, so that all owners want the same name. Invariant: what a folder of slots holds is
exactly the records below the end of its last slot, once each; a crash at any point leaves the chain as it was or one
slot longer.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl
import psutil

from sinks.formats import FORMATS, Footer, footer
from streaming.errors import ChainBroken, SlotTaken, TopicRecreated
from streaming.interfaces import Identity

Checkpoint = Callable[[str], None]
# The moments of a commit at which the crash tests kill it, in order.
CHECKPOINTS: Final = (
    "before_write",
    "after_write",
    "after_fsync",
    "after_link",
    "after_dirsync",
    "after_high_water",
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where one partition's chain lives, and what it comes from."""

    folder: Path  # committed slots
    staging: Path  # files being written, on the same file system
    high_water: Path  # a small file: how far the chain has ever been
    topic: str
    partition: int
    identity: Identity
    writer: str


class SlotChain:
    """One partition's committed slots, and the only way to add one. One thread at a time."""

    def __init__(self, place: Place, suffix: str, checkpoint: Checkpoint = lambda _: None) -> None:
        self._place = place
        self._format = FORMATS[suffix]
        self._checkpoint = checkpoint
        self.next = 0  # the position behind the last slot
        self.is_empty = True
        self.reload()

    def reload(self) -> None:
        """Read the chain. ChainBroken: a slot is missing, foreign or unreadable. TopicRecreated: another topic's."""
        bases = [(base_of(path), path) for path in committed(self._place.folder, self._format.suffix)]
        position = 0
        for base, path in bases:
            if base != position:
                raise ChainBroken(f"{path}: the slot before it ends at {position}, so a slot is missing")
            position = self._read(path).next
        self.next, self.is_empty = position, not bases
        self._check_high_water()

    def append(self, table: pl.DataFrame, next_offset: int) -> None:
        """Commit one slot [self.next, next_offset). SlotTaken when another owner was first; OSError leaves no trace."""
        place = self._place
        _make_folder(place.folder)
        _make_folder(place.staging)
        scratch = place.staging / f"{os.getpid()}-{uuid.uuid4().hex}.{self._format.suffix}"
        try:
            self._write(table, scratch, next_offset)
            self._publish(scratch, place.folder / f"{self.next:020d}.{self._format.suffix}")
        finally:
            scratch.unlink(missing_ok=True)
        self.next, self.is_empty = next_offset, False
        self._note_high_water()

    def _write(self, table: pl.DataFrame, scratch: Path, next_offset: int) -> None:
        self._checkpoint("before_write")
        with scratch.open("xb") as file:
            self._format.write(table, file, self._facts(table, next_offset))
            file.flush()
            self._checkpoint("after_write")
            os.fsync(file.fileno())
        self._checkpoint("after_fsync")

    def _publish(self, scratch: Path, slot: Path) -> None:
        try:
            os.link(scratch, slot)  # the commit point
        except FileExistsError:
            raise SlotTaken(f"{slot} was committed by another owner") from None
        self._checkpoint("after_link")
        sync_folder(slot.parent)
        self._checkpoint("after_dirsync")

    def _facts(self, table: pl.DataFrame, next_offset: int) -> dict[str, str]:
        place = self._place
        facts = {
            "topic": place.topic,
            "topic_id": place.identity.topic_id,
            "cluster_id": place.identity.cluster_id,
            "partition": place.partition,
            "base": self.next,
            "next": next_offset,
            "count": len(table),
            "writer": place.writer,
        }
        if len(table):
            facts |= {"first": table["_offset"][0], "last": table["_offset"][-1]}
        return {name: str(value) for name, value in facts.items()}

    def _read(self, path: Path) -> Footer:
        try:
            found = footer(path)
        except (OSError, ValueError, pl.exceptions.PolarsError) as error:
            raise ChainBroken(f"{path} can't be read: {error}") from error
        topic_id = found.facts.get("topic_id", self._place.identity.topic_id)
        if topic_id != self._place.identity.topic_id:
            raise TopicRecreated(
                f"{path} comes from topic id {topic_id}, but {self._place.topic} is {self._place.identity.topic_id} "
                f"now: it was made anew. Move {self._place.folder.parent} away to start a new table."
            )
        return found

    def _check_high_water(self) -> None:
        with suppress(FileNotFoundError):
            seen = int(json.loads(self._place.high_water.read_text())["next"])
            if seen > self.next:
                raise ChainBroken(
                    f"{self._place.folder} ends at {self.next}, but it has been at {seen}: slots are missing. Put them "
                    f"back, or move the table and {self._place.high_water} away to start anew."
                )

    def _note_high_water(self) -> None:
        path = self._place.high_water
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps({"next": self.next}))
        scratch.replace(path)
        self._checkpoint("after_high_water")


def committed(folder: Path, suffix: str) -> list[Path]:
    """The slots of one partition's folder in order of their bases. ChainBroken when something else lies there."""
    if not folder.is_dir():
        return []
    found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    for path in found:
        if path.suffix != f".{suffix}" or not path.stem.isdigit() or len(path.stem) != 20:
            raise ChainBroken(f"{path} is no slot of this table: move it away")
    return found


def base_of(path: Path) -> int:
    """The position at which a slot begins."""
    return int(path.stem)


def remove_stale(folder: Path) -> None:
    """Delete what dead processes have left in a staging folder."""
    if folder.is_dir():
        for path in folder.iterdir():
            pid = path.name.partition("-")[0]
            if pid.isdigit() and not psutil.pid_exists(int(pid)):
                path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    for each in reversed(list(_missing(folder))):
        each.mkdir(exist_ok=True)
        sync_folder(each.parent)


def _missing(folder: Path) -> Iterable[Path]:
    while not folder.is_dir():
        yield folder
        folder = folder.parent
