"""What each producer attempted and what the broker confirmed, in intervals of sequences, on disk before it is sent.

One file per life of a producer, <folder>/<producer>/<epoch>.jsonl, one JSON object a line:

    {"open": {"producer": …, "epoch": …, "stream": …, "seed": …, "parameters": {…}, "at": "…Z"}}
    {"reserved": [a, b]}      fsynced before any sequence in it is sent
    {"confirmed": [a, b]}     the broker has them
    {"unknown": [a, b]}       sent, and the broker may or may not have them
    {"mark": µs}              fsynced before the mark is sent: nothing older than this will follow, in any later epoch
    {"closed": {"next": n, "mark": µs or null}}

Invariant: whatever instant the process is killed at, every sequence it may have sent lies in a reserved range. Ranges
are reserved far ahead (about ten seconds' worth), so this costs one fsync in ten seconds. A killed process may leave a
torn last line; nothing it would have allowed was done yet, so readers drop it.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from filelock import FileLock, Timeout

from streaming.durability import sync_folder
from streaming.errors import DataError, UsageError
from streaming.intervals import IntervalSet

FIRST_BLOCK: Final = 1_000
BLOCK_S: Final = 10.0  # a block that lasted less is followed by one twice its size
_SAFE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Account:
    """One epoch of one producer. Sequences run from 0; a mark is no sequence.

    `attempted` is exact, [0, next), when `closed`; otherwise it is what was reserved, an upper bound.
    """

    producer: str
    epoch: int
    stream: str
    attempted: IntervalSet
    confirmed: IntervalSet
    unknown: IntervalSet
    opened_at: datetime
    closed: bool
    opening: Mapping[str, Any]  # the whole first line: seed and parameters too
    mark_us: int | None = None


class Ledger:
    """The open ledger of this producer's present epoch. Holds an exclusive lock on the producer's folder."""

    def __init__(self, path: Path, opening: Mapping[str, Any], lock: FileLock, mark_us: int | None) -> None:
        self.producer: str = opening["producer"]
        self.epoch: int = opening["epoch"]
        self.stream: str = opening["stream"]
        self.previous_mark_us = mark_us  # what earlier epochs have promised: send nothing older
        self._lock = lock
        self._reserved = 0
        self._block = FIRST_BLOCK
        self._reserved_at = -BLOCK_S
        self._mark_us: int | None = None
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._write({"open": dict(opening)}, is_durable=True)
        sync_folder(path.parent)

    @classmethod
    def open(
        cls,
        folder: Path,
        producer: str,
        stream: str,
        *,
        seed: int | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Ledger:
        """Become `producer` for a new epoch, one above the highest in `folder` (home.ledgers(broker)).

        UsageError when the name cannot be a folder's name or another process is this producer now.
        """
        own = folder / checked_name(producer)
        own.mkdir(parents=True, exist_ok=True)
        lock = FileLock(own / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(
                f"producer {producer!r} is running already: stop it, or give this one another name (--producer)"
            ) from None
        try:
            return cls._next_epoch(own, producer, stream, {"seed": seed, "parameters": dict(parameters or {})}, lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def _next_epoch(cls, own: Path, producer: str, stream: str, given: Mapping[str, Any], lock: FileLock) -> Ledger:
        earlier = _epochs(own)
        epoch = earlier[-1][0] + 1 if earlier else 1
        opening = {"producer": producer, "epoch": epoch, "stream": stream, **given, "at": _now()}
        return cls(own / f"{epoch:06d}.jsonl", opening, lock, _last_mark_us(path for _, path in reversed(earlier)))

    def reserve(self, end: int) -> None:
        """Make sure that [0, end) is reserved on disk; call it before sending any of it."""
        if end <= self._reserved:
            return
        now = time.monotonic()
        if now - self._reserved_at < BLOCK_S:
            self._block = 2 * max(self._block, end - self._reserved)
        self._reserved_at = now
        start, self._reserved = self._reserved, max(end, self._reserved + self._block)
        self._write({"reserved": [start, self._reserved]}, is_durable=True)

    def confirm(self, start: int, end: int) -> None:
        """The broker has [start, end). Not fsynced: a confirmation that is lost makes nobody send or miss anything."""
        if start < end:
            self._write({"confirmed": [start, end]}, is_durable=False)

    def unknown(self, start: int, end: int) -> None:
        """[start, end) was sent and may or may not have arrived."""
        if start < end:
            self._write({"unknown": [start, end]}, is_durable=True)

    def mark(self, mark_us: int) -> None:
        """Promise, before sending a mark, that nothing older than `mark_us` follows."""
        self._mark_us = max(mark_us, self._mark_us or mark_us)
        self._write({"mark": mark_us}, is_durable=True)

    def close(self, next_sequence: int) -> None:
        """Write down where this epoch ended and stop being this producer. Nothing happens the second time."""
        if self._file < 0:
            return
        try:
            self._write({"closed": {"next": next_sequence, "mark": self._mark_us}}, is_durable=True)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Stop being this producer without a last word, as a crash would. Harmless after close()."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.abandon()

    def _write(self, entry: Mapping[str, Any], *, is_durable: bool) -> None:
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        written = os.write(self._file, line)
        if written != len(line):
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError(f"the ledger of {self.producer} took {written} of {len(line)} bytes: is the disk full?")
        if is_durable:
            os.fsync(self._file)


def read_ledgers(folder: Path) -> list[Account]:
    """Every account under `folder`, by producer and epoch; running producers' too. DataError if a file is damaged."""
    producers = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    accounts = (_read(path) for own in producers for _, path in _epochs(own))
    return [account for account in accounts if account is not None]


def checked_name(producer: str) -> str:
    """The name, when it may become a folder's name; UsageError otherwise."""
    if not _SAFE_NAME.fullmatch(producer):
        raise UsageError(
            f"producer {producer!r}: letters, digits, '.', '_' and '-' only, at most 100, the first a letter or digit"
        )
    return producer


def fresh_name(prefix: str) -> str:
    """A producer name nobody has had: `prefix`, made safe, and the present time in base 36."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", prefix).strip("-._") or "producer"
    number, digits = time.time_ns() // 1_000, ""
    while number:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return checked_name(f"{safe[:80]}-{digits}")


def fold(folder: Path, *, dry_run: bool = False) -> int:
    """Rewrite the ledgers of all epochs that are over, each as its few ranges. Returns how many bytes that saves.

    An epoch is over when its producer has a later one: only then could nobody write to it any more. What a ledger says
    stays the same, or it stays as it is.
    """
    return sum(
        _fold(path, dry_run=dry_run) for own in folder.glob("*") for _, path in _epochs(own)[:-1] if own.is_dir()
    )


def _fold(path: Path, *, dry_run: bool) -> int:
    account = _read(path)
    if account is None:
        return 0
    entries: list[Mapping[str, Any]] = [{"open": account.opening}]
    for kind in ("reserved", "confirmed", "unknown"):
        entries += [{kind: pair} for pair in _ranges(list(_entries(path)), kind).ranges]
    entries += [{"mark": account.mark_us}] if account.mark_us is not None else []
    entries += [entry for entry in _entries(path) if "closed" in entry]
    text = b"".join(json.dumps(entry, separators=(",", ":")).encode() + b"\n" for entry in entries)
    saved = path.stat().st_size - len(text)
    if saved <= 0 or dry_run:
        return max(0, saved)
    scratch = path.with_suffix(".new")
    with scratch.open("wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if _read(scratch) != account:
        scratch.unlink()
        return 0
    scratch.replace(path)
    sync_folder(path.parent)
    return saved


def _read(path: Path) -> Account | None:
    """The account in a file; None if the process was killed before its first line was whole."""
    entries = list(_entries(path))
    if not entries:
        return None
    opening, closing = entries[0]["open"], next((e["closed"] for e in entries if "closed" in e), None)
    marks = [entry["mark"] for entry in entries if "mark" in entry]
    reserved = _ranges(entries, "reserved")
    return Account(
        producer=opening["producer"],
        epoch=opening["epoch"],
        stream=opening["stream"],
        attempted=IntervalSet.of_ranges([(0, closing["next"])]) if closing else reserved,
        confirmed=_ranges(entries, "confirmed"),
        unknown=_ranges(entries, "unknown"),
        opened_at=datetime.fromisoformat(opening["at"]),
        closed=closing is not None,
        opening=opening,
        mark_us=max(marks, default=None),
    )


def _ranges(entries: list[dict[str, Any]], kind: str) -> IntervalSet:
    return IntervalSet.of_ranges(entry[kind] for entry in entries if kind in entry)


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a ledger. A last line without its end, or unreadable, was torn by a crash."""
    *whole, _torn = path.read_bytes().split(b"\n")
    for number, line in enumerate(whole, start=1):
        try:
            entry = json.loads(line)
        except ValueError as error:
            if number == len(whole):
                return
            raise DataError(f"{path} line {number} can't be read ({error}): restore the file from a copy") from error
        yield entry


def _epochs(own: Path) -> list[tuple[int, Path]]:
    """(epoch, file) of one producer, rising."""
    return sorted((int(path.stem), path) for path in own.glob("*.jsonl") if path.stem.isdecimal())


def _last_mark_us(newest_first: Iterator[Path]) -> int | None:
    """The latest promise of earlier epochs: each began after the promises before it, so the first found counts."""
    accounts = (_read(path) for path in newest_first)
    return next((account.mark_us for account in accounts if account and account.mark_us is not None), None)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
