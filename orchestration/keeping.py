"""Keeping house in the lab's home: what is merged, what goes because it is old, and how much that is.

Invariant: nothing goes that a running process needs or that verify would miss: tables are pruned by sinks.prune, which
notes what went; ledgers are folded, never cut; of leavings only what is older than one wants to keep, and of staging
only what no living process holds. Nothing here imports Dagster.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from sinks.lanes import GRACE_S, remove_replaced
from sinks.merge import Merged, Policy, merge
from sinks.prune import KEEP, Pruned, prune
from sinks.reader import role_of, tables
from sinks.slots import remove_if_stale
from streaming.errors import UsageError
from streaming.generators.ledger import fold
from streaming.home import Home

Say = Callable[[str], None]
LEAST_KEPT: Final = timedelta(hours=1)
# Folders below the home whose every file is somebody's result or put-aside input, and whose names nobody relies on.
_LEAVINGS: Final = ("rejected/*", "soak/*", "bench/*", "experiments/*/*")
_POLICY: Final = Policy()
_ROTATED_LOGS: Final = "logs/*.log.*"


@dataclass(frozen=True, slots=True)
class Leaving:
    """A file or folder that went, or would go. `path` is below the home."""

    path: str
    size_bytes: int
    age_days: float


@dataclass(frozen=True, slots=True)
class House:
    """What one round of pruning did, or would do. `busy`: tables that somebody else had in hand."""

    slots: list[Pruned]
    leavings: list[Leaving]
    folded_bytes: int
    busy: list[str]

    @property
    def size_bytes(self) -> int:
        """All that was given back."""
        given = sum(each.size_bytes for each in self.slots) + sum(each.size_bytes for each in self.leavings)
        return given + self.folded_bytes


def merge_home(home: Home, policy: Policy = _POLICY, *, progress: Say = lambda _: None) -> list[Merged]:
    """Merge the small files of every table of every broker; a table that somebody else has in hand is left."""
    done: list[Merged] = []
    for broker, table in _tables(home):
        try:
            done += merge(home, broker, table, policy, progress=progress)
        except TimeoutError:
            progress(f"{broker}/{table} is left: another process keeps house there")
    return done


def prune_home(home: Home, keep: timedelta = KEEP, *, dry_run: bool = False, progress: Say = lambda _: None) -> House:
    """Let go of what is older than `keep`; see House. UsageError when that is less than an hour."""
    if keep < LEAST_KEPT:
        raise UsageError(f"keep {keep}: at least {LEAST_KEPT.total_seconds() / 3600:g} h, or what just landed would go")
    pruned: list[Pruned] = []
    busy: list[str] = []
    for broker, table in _tables(home):
        try:
            pruned += prune(home, broker, table, keep, dry_run=dry_run, progress=progress)
        except TimeoutError:
            busy.append(f"{broker}/{table}")
    leavings = [*_staged(home, dry_run=dry_run), *_old(home, keep, dry_run=dry_run)]
    folded = sum(fold(folder, dry_run=dry_run) for folder in (home.root / "ledgers").glob("*"))
    return House(pruned, leavings, folded, busy)


def _tables(home: Home) -> Iterator[tuple[str, str]]:
    """Every broker's tables, of the roles that this program knows."""
    for folder in sorted((home.root / "warehouse").glob("*")):
        for table in tables(home, folder.name):
            try:
                role_of(table)
            except UsageError:
                continue
            yield folder.name, table


def _staged(home: Home, *, dry_run: bool) -> list[Leaving]:
    """What dead processes have left in staging; a file that is being made has had the time to be locked."""
    found: list[Leaving] = []
    for leaving in _files(home, "staging/*/*/*"):
        path = home.root / leaving.path
        if leaving.age_days * 86_400 < GRACE_S:
            continue
        if path.is_dir() or remove_if_stale(path, dry_run=dry_run):
            found.append(leaving)
    for folder in (home.root / "staging").glob("*/*") if not dry_run else ():
        remove_replaced(folder, GRACE_S)
    return found


def _old(home: Home, keep: timedelta, *, dry_run: bool) -> list[Leaving]:
    patterns = (*_LEAVINGS, _ROTATED_LOGS)
    found = [each for pattern in patterns for each in _files(home, pattern) if each.age_days > keep / timedelta(days=1)]
    for leaving in found if not dry_run else ():
        path = home.root / leaving.path
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return found


def _files(home: Home, pattern: str) -> list[Leaving]:
    return [_leaving(home, path) for path in sorted(home.root.glob(pattern)) if not path.is_symlink()]


def _leaving(home: Home, path: Path) -> Leaving:
    files = [path, *(each for each in path.rglob("*") if each.is_file())] if path.is_dir() else [path]
    status = [each.lstat() for each in files]
    newest = (
        max(status[0].st_ctime, status[0].st_mtime)
        if path.suffix == ".replaced"
        else max(each.st_mtime for each in status)
    )
    size = sum(each.st_size for each in status[path.is_dir() :])
    return Leaving(str(path.relative_to(home.root)), size, (time.time() - newest) / 86_400)
