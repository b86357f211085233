"""The commit: a chain of files per partition, each named by the position it begins at.

A slot is written beside the warehouse, synced, and linked to its name: link(2) fails when the name is taken, so of two
owners of a partition exactly one wins each position. The base of a slot is the end of the one before it (0 for the
first), not its first record's offset, so that all owners want the same name. Invariant: what a folder of slots holds is
exactly the records below the end of its last slot, once each; a crash at any point leaves the chain as it was or one
slot longer.

Keeping house merges and prunes slots (see merge, prune). An owner that comes late to a position that was merged or
pruned since is told so, as if the name were still taken.

A start reads names, the last two slots and the high-water mark, so it is quick with many thousands of slots; what lies
in the middle is proven by their number here, and slot by slot by verify.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Final

import polars as pl

from sinks.folders import begin_of, lock_path, locked, named, slot_name
from sinks.formats import Footer, footer, format_of
from streaming.durability import sync_folder
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
_PARENTS_IN_HOME: Final = 4  # of a partition's folder: its table, the broker, the tree, the home


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


@dataclass(frozen=True, slots=True)
class _Mark:
    """How far a chain has ever been, and of which topic it is: a CSV can't say that of itself."""

    next: int
    slots: int
    cluster_id: str
    topic_id: str


class SlotChain:
    """One partition's committed slots, and the only way to add one. One thread at a time."""

    def __init__(
        self, place: Place, suffix: str, checkpoint: Checkpoint = lambda _: None, *, compression: str | None = None
    ) -> None:
        self._place = place
        self._format = format_of(suffix, compression)
        self._checkpoint = checkpoint
        self._slots = 0
        self._is_settled = False  # whether the names of its folders are known to be durable
        self.next = 0  # the position behind the last slot
        self.reload()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever committed."""
        return not self._slots

    def reload(self) -> None:
        """Read the chain. ChainBroken: a slot is missing, foreign or unreadable. TopicRecreated: another topic's."""
        with self._lane():
            paths = committed(self._place.folder, self._format.suffix)
            begin, mark = begin_of(self._place.folder), self._read_mark()
            if paths and base_of(paths[0]) != begin.next:
                raise ChainBroken(f"{paths[0]} is the first slot and begins at {base_of(paths[0])}: slots are missing")
            position = self._end_of(paths[-2:]) if paths else begin.next
        slots = begin.commits + sum(named(path).commits for path in paths)
        if mark and (position < mark.next or slots < mark.slots):
            raise ChainBroken(
                f"{self._place.folder} has {slots} slots up to {position}, but it had {mark.slots} up to "
                f"{mark.next}. Put the missing ones back, or move the table and {self._place.high_water} away to "
                f"start anew."
            )
        self.next, self._slots = position, slots

    def append(self, table: pl.DataFrame, next_offset: int) -> None:
        """Commit one slot [self.next, next_offset). SlotTaken when another owner was first.

        OSError: nothing is committed, unless it was the folder that could not be synced; then a second try ends in
        SlotTaken, by oneself. Nothing is left in staging either way.
        """
        if next_offset <= self.next:
            raise ValueError(f"{self._place.folder}: a slot from {self.next} to {next_offset} is none")
        self._settle()
        with self._scratch() as (scratch, file):
            self._write(table, scratch, file, next_offset)
            self._publish(scratch, self._place.folder / f"{self.next:020d}.{self._format.suffix}")
        self.next, self._slots = next_offset, self._slots + 1
        self._raise_mark()

    def _write(self, table: pl.DataFrame, scratch: Path, file: BinaryIO, next_offset: int) -> None:
        self._checkpoint("before_write")
        self._format.write(table, file, self._facts(table, next_offset))
        file.flush()
        self._checkpoint("after_write")
        os.fsync(file.fileno())
        written = self._format.footer(scratch)
        if (written.rows, written.next) != (len(table), next_offset):
            raise OSError(errno.EIO, f"{len(table)} rows up to {next_offset} were written, {written} came back")
        self._checkpoint("after_fsync")

    def _publish(self, scratch: Path, slot: Path) -> None:
        with self._lane():
            if self._is_passed():
                raise SlotTaken(f"{slot} was committed by another owner, and merged or pruned since")
            try:
                os.link(scratch, slot)  # the commit point
            except FileExistsError:
                raise SlotTaken(f"{slot} was committed by another owner") from None
        self._checkpoint("after_link")
        sync_folder(slot.parent)
        self._checkpoint("after_dirsync")

    def _is_passed(self) -> bool:
        """Whether the names in the folder prove that the next position is taken, though its own name is free."""
        names = map(slot_name, os.listdir(self._place.folder))  # noqa: PTH208 - no Path each
        return begin_of(self._place.folder).next > self.next or any(
            name.next is not None and name.next > self.next for name in names if name
        )

    def _lane(self) -> AbstractContextManager[None]:
        """While this is held no other folder takes the place of this one."""
        return locked(lock_path(self._place.high_water), exclusive=False)

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

    def _end_of(self, paths: list[Path]) -> int:
        """The position behind the last of these slots, each of which must begin where the one before it ends."""
        position = base_of(paths[0]) if paths else 0
        for path in paths:
            if base_of(path) != position:
                raise ChainBroken(f"{path}: the slot before it ends at {position}, so a slot is missing")
            position = self._read(path).next
        return position

    def _read(self, path: Path) -> Footer:
        try:
            found = footer(path)
        except (OSError, ValueError, pl.exceptions.PolarsError) as error:
            raise ChainBroken(f"{path} can't be read: {error}") from error
        if int(found.facts.get("base", base_of(path))) != base_of(path):
            raise ChainBroken(f"{path} was committed at {found.facts['base']} and renamed since")
        if named(path).next not in {None, found.next}:
            raise ChainBroken(f"{path} ends at {found.next}, and not where its name says")
        if "topic_id" in found.facts:
            self._check_identity(path, Identity(found.facts["cluster_id"], found.facts["topic_id"]))
        return found

    def _check_identity(self, path: Path, found: Identity) -> None:
        if found != self._place.identity:
            raise TopicRecreated(
                f"{path} comes from {found}, but {self._place.topic} is {self._place.identity} now: another cluster, "
                f"or a topic that was made anew. Move {self._place.folder.parent} and {self._place.high_water.parent} "
                f"away to start a new table."
            )

    def _read_mark(self) -> _Mark | None:
        path = self._place.high_water
        try:
            mark = _Mark(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise ChainBroken(
                f"{path} can't be read ({error}): delete it if the table's slots are all there"
            ) from error
        self._check_identity(path, Identity(mark.cluster_id, mark.topic_id))
        return mark

    def _raise_mark(self) -> None:
        """Never lowers it: an owner that was overtaken may come here late."""
        mark, identity = self._read_mark() or _Mark(0, 0, "", ""), self._place.identity
        raised = _Mark(max(mark.next, self.next), max(mark.slots, self._slots), identity.cluster_id, identity.topic_id)
        self._place.high_water.parent.mkdir(parents=True, exist_ok=True)
        with self._scratch() as (scratch, file):
            file.write(json.dumps(asdict(raised)).encode())
            file.flush()
            os.fsync(file.fileno())
            scratch.replace(self._place.high_water)
        self._checkpoint("after_high_water")

    @contextmanager
    def _scratch(self) -> Iterator[tuple[Path, BinaryIO]]:
        """A new file in staging, locked so that remove_stale() lets it be; gone from there afterwards."""
        self._place.staging.mkdir(parents=True, exist_ok=True)
        scratch = self._place.staging / f"{uuid.uuid4().hex}.{self._format.suffix}"
        try:
            with scratch.open("xb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield scratch, file
        finally:
            scratch.unlink(missing_ok=True)

    def _settle(self) -> None:
        """Make the folder, and its name durable: a predecessor may have died between making it and syncing that."""
        if self._is_settled:
            return
        self._place.folder.mkdir(parents=True, exist_ok=True)
        for parent in self._place.folder.parents[:_PARENTS_IN_HOME]:
            sync_folder(parent)
        self._is_settled = True


def committed(folder: Path, suffix: str) -> list[Path]:
    """The slots of one partition's folder in order of their bases. ChainBroken when something else lies there."""
    if not folder.is_dir():
        return []
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))  # noqa: PTH208 - no Path each
    for name in names:
        if slot_name(name, suffix) is None:
            raise ChainBroken(f"{folder / name} is no slot of this table: move it away")
    return [folder / name for name in names]


def base_of(path: Path) -> int:
    """The position at which a slot begins."""
    return named(path).base


def remove_stale(folder: Path) -> None:
    """Delete what dead processes have left in a staging folder; the living hold a lock on theirs."""
    for path in folder.iterdir() if folder.is_dir() else ():
        remove_if_stale(path)


def remove_if_stale(path: Path, *, dry_run: bool = False) -> bool:
    """Delete a file in staging that no process holds; whether there was such a file."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not dry_run:
                path.unlink()
    except OSError:
        return False
    return True
