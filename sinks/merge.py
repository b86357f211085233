"""Merging small files: adjacent commits of one partition become one file, and nobody sees a row twice or not at all.

A sink commits every few seconds, so a partition gains thousands of small files a day. Here a folder is made beside the
warehouse that holds the merged files and links to all others; it takes the old one's place in one step (see folders).
Invariant: before that step nothing has changed, and after it everything has, whenever this process is killed. A merged
file holds its parts' rows, value for value: they are compared before the step. Its name covers exactly their offsets.

Left alone are the last slots of a partition, from which a sink resumes; those committed within a quarter of an hour of
the table's newest, for what is measured of recent commits; and neighbours whose columns differ, for a merge converts
nothing. What was replaced stays in staging for some minutes, for who is listing it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from sinks.folders import merged_name, named
from sinks.formats import FORMATS, Footer
from sinks.lanes import (
    EXCHANGE_CHECKPOINTS,
    GRACE_S,
    KEPT_AT_END,
    Lane,
    footer_of,
    keeping,
    lanes,
    prepared,
    remove_replaced,
    replace,
)
from sinks.slots import Checkpoint
from streaming.home import Home

# The moments of a merge at which the crash tests kill it, in order.
CHECKPOINTS: Final = (
    "merge_begun",
    "merge_written",
    "merge_synced",
    *EXCHANGE_CHECKPOINTS,
)
_OWN: Final = frozenset({"base", "next", "count", "first", "last", "writer", "commits"})
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Policy:
    """What is worth a merge. A merged file has at most so many rows and bytes, and was at least `fewest` files."""

    settled_s: float = 900.0  # how long before the table's newest commit a slot must have been committed
    rows: int = 1_000_000
    size_bytes: int = 32 * 1024**2
    fewest: int = 8
    grace_s: float = GRACE_S


@dataclass(frozen=True, slots=True)
class Merged:
    """One merge that took place."""

    table: str
    partition: int
    base: int
    next: int
    parts: int
    rows: int
    size_before_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Part:
    """A slot that may be merged. `kind` is what all parts of a merge must have in common."""

    path: Path
    footer: Footer
    size_bytes: int
    modified_ns: int
    kind: object

    @property
    def base(self) -> int:
        return named(self.path).base

    def follows(self, other: _Part) -> bool:
        """Whether one file could hold both."""
        return self.kind == other.kind and self.base == other.footer.next


def merge(
    home: Home,
    broker: str,
    table: str,
    policy: Policy = Policy(),
    *,
    checkpoint: Checkpoint = lambda _: None,
    progress: Say = lambda _: None,
) -> list[Merged]:
    """Merge a table's small files, and its quarantine's. TimeoutError: another process keeps house there.

    OSError, ChainBroken: nothing was replaced in the partition at hand; the ones before it are merged. SetupError: the
    file system can't exchange folders.
    """
    done: list[Merged] = []
    with keeping(home, broker, table):
        remove_replaced(home.staging(broker) / table, policy.grace_s)
        for lane in lanes(home, broker, table, checkpoint):
            try:
                done += _merge_lane(lane, policy)
            except TimeoutError as error:
                progress(f"{lane.folder} is left as it is: {error}")
    return done


def _merge_lane(lane: Lane, policy: Policy) -> Iterator[Merged]:
    groups = list(_groups(_parts(lane, policy), policy))
    if not groups:
        return
    with prepared(lane) as folder:
        lane.checkpoint("merge_begun")
        new = [_write(lane, folder, group) for group in groups]
        replace(lane, folder, [part.path for group in groups for part in group])
    for path, group in zip(new, groups, strict=True):
        yield Merged(
            table=lane.table,
            partition=lane.partition,
            base=group[0].base,
            next=group[-1].footer.next,
            parts=len(group),
            rows=sum(part.footer.rows for part in group),
            size_before_bytes=sum(part.size_bytes for part in group),
            size_bytes=(lane.folder / path.name).stat().st_size,
        )


def _parts(lane: Lane, policy: Policy) -> list[_Part]:
    """What may be merged. A slot that can't be read is ChainBroken: then verify has the word."""
    paths = lane.paths()
    if len(paths) <= KEPT_AT_END:
        return []
    newest_ns = max(path.stat().st_mtime_ns for path in paths)
    settled_ns = newest_ns - int(policy.settled_s * 1e9)
    found: list[_Part] = []
    for path in paths[:-KEPT_AT_END]:
        status = path.stat()
        if status.st_mtime_ns > settled_ns:
            break
        found.append(_Part(path, footer_of(path), status.st_size, status.st_mtime_ns, _kind(path)))
    return found


def _kind(path: Path) -> object:
    """Its own columns and, where the file tells, the topic it comes from."""
    if path.suffix == ".csv":
        with path.open("rb") as file:
            return file.readline()
    facts = {name: value for name, value in footer_of(path).facts.items() if name not in _OWN}
    return sorted(facts.items()), list(pl.read_parquet_schema(path).items())


def _groups(parts: Sequence[_Part], policy: Policy) -> Iterator[list[_Part]]:
    """Runs of neighbours that fit into one file and are many enough to be worth it."""
    group: list[_Part] = []
    rows = size_bytes = 0
    for part in parts:
        rows, size_bytes = rows + part.footer.rows, size_bytes + part.size_bytes
        if group and (not part.follows(group[-1]) or rows > policy.rows or size_bytes > policy.size_bytes):
            if len(group) >= policy.fewest:
                yield group
            group, rows, size_bytes = [], part.footer.rows, part.size_bytes
        group.append(part)
    if len(group) >= policy.fewest:
        yield group


def _write(lane: Lane, folder: Path, group: Sequence[_Part]) -> Path:
    """The group as one file, synced, and the same as its parts; as old as the last of them."""
    commits = sum(named(part.path).commits for part in group)
    path = folder / merged_name(group[0].base, group[-1].footer.next, commits, lane.suffix)
    paths = [part.path for part in group]
    with path.open("xb") as file:
        if lane.suffix == "csv":
            file.writelines(_lines(paths))
        else:
            FORMATS["parquet"].write(_rows(paths), file, _facts(group, commits))
        file.flush()
        lane.checkpoint("merge_written")
        os.utime(file.fileno(), ns=(group[-1].modified_ns, group[-1].modified_ns))
        os.fsync(file.fileno())
    lane.checkpoint("merge_synced")
    _check(path, group)
    return path


def _rows(paths: Sequence[Path]) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path, hive_partitioning=False) for path in paths], rechunk=True)


def _lines(paths: Sequence[Path]) -> Iterator[bytes]:
    """The first file as it is; of the others what follows the header."""
    for number, path in enumerate(paths):
        whole = path.read_bytes()
        yield whole if number == 0 else whole[whole.index(b"\n") + 1 :]


def _facts(group: Sequence[_Part], commits: int) -> Mapping[str, str]:
    first, last = group[0].footer.facts, group[-1].footer.facts
    offsets = [part.footer.facts for part in group if "first" in part.footer.facts]
    facts = {name: value for name, value in first.items() if name not in _OWN} | {
        "base": first["base"],
        "next": last["next"],
        "count": str(sum(int(part.footer.facts["count"]) for part in group)),
        "writer": "merge",
        "commits": str(commits),
    }
    return facts | ({"first": offsets[0]["first"], "last": offsets[-1]["last"]} if offsets else {})


def _check(path: Path, group: Sequence[_Part]) -> None:
    """OSError unless the file, read back, is its parts: position, number of rows, and every value of every column."""
    back, paths = FORMATS[path.suffix[1:]].footer(path), [part.path for part in group]
    expected = (sum(part.footer.rows for part in group), group[-1].footer.next)
    if path.suffix == ".csv":
        is_same = path.read_bytes() == b"".join(_lines(paths))
    else:
        is_same = _rows([path]).equals(_rows(paths))
    if (back.rows, back.next) != expected or not is_same:
        raise OSError(errno.EIO, f"{path} is not what its {len(group)} parts are; they stay", str(path))
