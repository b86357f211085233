"""Putting a new folder in a partition's place: what merging and pruning have in common.

Invariant: whoever keeps house prepares a whole folder beside the warehouse, with links to all slots that stay, and lets
it change places with the old one in one step, while no sink commits there. Before that step nothing has changed, after
it everything has; a folder that was prepared and not used, or replaced, is nobody's and is deleted later.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import polars as pl

from sinks.folders import LOCK_TIMEOUT_S, begin_of, begins_name, exchange, lock_path, locked
from sinks.formats import Footer, footer
from sinks.reader import role_of
from sinks.slots import Checkpoint, committed
from streaming.durability import sync_folder
from streaming.errors import ChainBroken
from streaming.home import Home

# The moments of an exchange at which the crash tests kill it, in order.
EXCHANGE_CHECKPOINTS: Final = (
    "folder_linked",
    "folder_synced",
    "lane_locked",
    "folders_exchanged",
    "exchange_synced",
)
KEPT_AT_END: Final = 2  # the slots from which a sink resumes
GRACE_S: Final = 600.0  # how long what was replaced is kept for who is listing it
_PREPARED: Final = ".replaced"
_DOOMED: Final = ".doomed"


@dataclass(frozen=True, slots=True)
class Lane:
    """One partition's folder, and what belongs to it."""

    folder: Path
    staging: Path
    lock: Path
    suffix: str
    table: str
    kind: str  # table or quarantine
    checkpoint: Checkpoint = field(default=lambda _: None, compare=False)

    @property
    def partition(self) -> int:
        """The partition's number."""
        return int(self.folder.name.removeprefix("p="))

    def paths(self) -> list[Path]:
        """Its slots, by base."""
        return committed(self.folder, self.suffix)


def footer_of(path: Path) -> Footer:
    """What a slot says of itself. ChainBroken when it can't be read."""
    try:
        return footer(path)
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise ChainBroken(f"{path} can't be read: {error}") from error


@contextmanager
def keeping(home: Home, broker: str, table: str) -> Iterator[None]:
    """One merge or prune of a table at a time. TimeoutError at once when there is another."""
    with locked(home.high_water(broker) / table / "keeping.lock", exclusive=True, timeout_s=0):
        yield


def lanes(home: Home, broker: str, table: str, checkpoint: Checkpoint = lambda _: None) -> Iterator[Lane]:
    """The partitions of a table and of its quarantine."""
    marks = home.high_water(broker) / table
    for tree, kind in ((home.warehouse(broker), "table"), (home.quarantine(broker), "quarantine")):
        suffix = "parquet" if kind == "quarantine" else str(role_of(table).format)
        for folder in sorted((tree / table).glob("p=*")):
            lock = lock_path(marks / f"{folder.name}.{kind}.json")
            yield Lane(folder, home.staging(broker) / table, lock, suffix, table, kind, checkpoint)


@contextmanager
def prepared(lane: Lane) -> Iterator[Path]:
    """A new folder beside the warehouse; gone afterwards if it did not take the lane's place."""
    folder = lane.staging / f"{uuid.uuid4().hex}{_PREPARED}"
    folder.mkdir(parents=True)
    inode = folder.stat().st_ino
    try:
        yield folder
    finally:
        with suppress(FileNotFoundError):
            if folder.stat().st_ino == inode:
                _remove(folder)


def replace(lane: Lane, folder: Path, gone: Sequence[Path], begins: str | None = None) -> None:
    """Let a prepared folder, plus links to all slots but those `gone`, take the lane's place.

    OSError: nothing has changed: one of `gone` is gone already, or the lane is busy (TimeoutError). `begins`: the name
    of the file that says where the chain begins from now on; None: as it did.
    """
    names = {path.name for path in gone}
    (folder / begins).touch() if begins else _link_begin(lane, folder)
    _link_rest(lane, folder, names)
    lane.checkpoint("folder_linked")
    sync_folder(folder)
    lane.checkpoint("folder_synced")
    with locked(lane.lock, exclusive=True, timeout_s=LOCK_TIMEOUT_S):
        _link_rest(lane, folder, names)  # what the sink has committed meanwhile
        if missing := [path for path in gone if not path.exists()]:
            raise FileNotFoundError(errno.ENOENT, "merged or pruned by another process", str(missing[0]))
        sync_folder(folder)
        sync_folder(folder.parent)
        lane.checkpoint("lane_locked")
        exchange(folder, lane.folder)
        lane.checkpoint("folders_exchanged")
        sync_folder(lane.folder.parent)
        sync_folder(folder.parent)
    lane.checkpoint("exchange_synced")


def _link_begin(lane: Lane, folder: Path) -> None:
    begin = begin_of(lane.folder)
    if begin.next:
        os.link(lane.folder / begins_name(begin), folder / begins_name(begin))


def _link_rest(lane: Lane, folder: Path, gone: set[str]) -> None:
    for path in lane.paths():
        if path.name not in gone and not (folder / path.name).exists():
            os.link(path, folder / path.name)


def remove_replaced(staging: Path, grace_s: float) -> int:
    """Delete folders that were replaced, or that a dead merge has prepared, when nobody lists them any more."""
    removed = 0
    for folder in staging.glob(f"*{_PREPARED}") if staging.is_dir() else ():
        with suppress(FileNotFoundError):
            status = folder.stat()
            if max(status.st_mtime, status.st_ctime) + grace_s <= time.time():
                _remove(folder)
                removed += 1
    for folder in staging.glob(f"*{_DOOMED}") if staging.is_dir() else ():
        shutil.rmtree(folder, ignore_errors=True)
    return removed


def _remove(folder: Path) -> None:
    """First under another name: whoever wants to put this folder into a lane's place finds it gone, not half empty."""
    doomed = folder.with_suffix(_DOOMED)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
