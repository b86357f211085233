"""A partition's folder of slots: what the names in it say, the lock of its lane, and its exchange for another.

    00000000000000000000.parquet                           one commit, from offset 0 to where its footer says
    00000000000000000000-00000000000000004711-40.parquet   forty commits merged, offsets [0, 4711)
    .begins-00000000000000004711-40                        forty commits up to offset 4711 were pruned

Invariant: a folder changes in two ways only. A sink adds one name, under the lane's shared lock. Keeping house puts a
whole new folder in its place, in one step of the kernel and under the exclusive lock. So whoever lists a folder sees
each record once, and a reader that opens a name it listed before an exchange finds that file or none.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from streaming.errors import ChainBroken, SetupError

LOCK_TIMEOUT_S: Final = 10.0
_SLOT: Final = re.compile(r"(\d{20})(?:-(\d{20})-(\d+))?\.([a-z]+)")
_BEGINS: Final = re.compile(r"\.begins-(\d{20})-(\d+)")
_AT_CWD: Final = -100
_EXCHANGE: Final = 2  # RENAME_EXCHANGE of renameat2(2)
_POLL_S: Final = 0.01
_ATTEMPTS: Final = 5  # a lane is merged at most every few minutes
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SlotName:
    """What a slot's name says. `next` is None for a slot as a sink commits it: its footer tells."""

    base: int
    next: int | None
    commits: int

    def covers(self, position: int) -> bool:
        """Whether the name proves that the record at a position is in the slot."""
        return self.base <= position < (self.base + 1 if self.next is None else self.next)


@dataclass(frozen=True, slots=True)
class Begin:
    """Where a chain begins: at 0, or behind what was pruned; and how many commits that was."""

    next: int = 0
    commits: int = 0


def slot_name(name: str, suffix: str | None = None) -> SlotName | None:
    """What a file's name says, or None when it is no slot's (of that format)."""
    found = _SLOT.fullmatch(name)
    if found is None or suffix not in {None, found[4]}:
        return None
    return SlotName(int(found[1]), int(found[2]) if found[2] else None, int(found[3] or 1))


def named(path: Path) -> SlotName:
    """What a slot's name says. ChainBroken when it is no slot's."""
    found = slot_name(path.name)
    if found is None:
        raise ChainBroken(f"{path} is no slot of this table: move it away")
    return found


def merged_name(base: int, end: int, commits: int, suffix: str) -> str:
    """The name of a slot that stands for several commits."""
    return f"{base:020d}-{end:020d}-{commits}.{suffix}"


def begins_name(begin: Begin) -> str:
    """The name of the empty file that says where a pruned chain begins."""
    return f".begins-{begin.next:020d}-{begin.commits}"


def begin_of(folder: Path) -> Begin:
    """Where the folder's chain begins."""
    names = os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208 - names are all we need
    found = [match for name in names if (match := _BEGINS.fullmatch(name))]
    return max((Begin(int(match[1]), int(match[2])) for match in found), key=lambda begin: begin.next, default=Begin())


def lock_path(high_water: Path) -> Path:
    """The lock of the lane that has this high-water mark."""
    return high_water.with_suffix(".lock")


@contextmanager
def locked(path: Path, *, exclusive: bool, timeout_s: float | None = None) -> Iterator[None]:
    """Hold a lock file; the kernel lets go of it when this process dies. TimeoutError after `timeout_s`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    with path.open("ab") as file:
        if timeout_s is None:
            fcntl.flock(file, kind)
        else:
            _lock_within(file.fileno(), kind, timeout_s, path)
        yield


def _lock_within(descriptor: int, kind: int, timeout_s: float, path: Path) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TimeoutError(errno.ETIMEDOUT, "somebody else holds the lock", str(path)) from None
            time.sleep(_POLL_S)
        else:
            return


def exchange(one: Path, other: Path) -> None:
    """Let two folders change places in one step: nobody ever sees neither, or both in one place."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_CWD, os.fsencode(one), _AT_CWD, os.fsencode(other), _EXCHANGE) == 0:
        return
    number = ctypes.get_errno()
    if number in {errno.EINVAL, errno.ENOSYS, errno.EXDEV}:
        raise SetupError(
            f"{other}: this file system can't exchange two folders in one step, so nothing was merged or pruned",
            "keep the lab's home on ext4, xfs, btrfs or tmpfs",
        )
    raise OSError(number, os.strerror(number), str(other))


def steadily(read: Callable[[], T]) -> T:
    """Read, and read again if a file went away meanwhile: what was merged lies under another name then.

    `read` must look into the folder anew each time. FileNotFoundError when a file stays away.
    """
    for _ in range(_ATTEMPTS - 1):
        try:
            return read()
        except FileNotFoundError:
            continue
    return read()
