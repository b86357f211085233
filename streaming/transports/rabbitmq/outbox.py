"""Read, compute, write as one without broker transactions: an outbox file; implements interfaces.Transaction.

A commit is one file, replaced atomically: the step's state, how far the input is used up, and the outputs. Only then
are the outputs published and confirmed, and the input acknowledged. Whoever starts after a crash publishes the file's
outputs again (the next stage, or the broker, knows them by their identities), takes up the state, and drops the input
that is used up already. Invariant: state, used input and outputs in the file belong together.

A lock on the folder keeps a second process of the same role and instance out, on this machine.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from filelock import FileLock, Timeout

from streaming.batch import Batch, Outgoing
from streaming.durability import replace_file
from streaming.errors import ChainBroken, Fenced
from streaming.identities import Identities
from streaming.interfaces import Offsets, Publisher, Remembered, Source

PARTITION: Final = 0
LOCK_TIMEOUT_S: Final = 10.0  # a predecessor that was killed is gone by then
_MAGIC: Final = b"SGOUTBOX1"
_HEAD = struct.Struct(">II")  # bytes of the header, checksum of all that follows


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one commit made true. `used` is the input's own account of it, as JSON can hold it."""

    number: int = 0
    state: bytes | None = None
    used: Any = None
    outputs: tuple[Outgoing, ...] = ()
    publishing_ids: Mapping[str, int] = field(default_factory=dict)  # of each stream's first output

    def pack(self) -> bytes:
        """As bytes; unpack() reads them back."""
        blobs = [self.state or b""]
        for each in self.outputs:
            sizes = np.array([[len(value), len(key)] for value, key in zip(each.values, each.keys, strict=True)], "<u4")
            blobs += [sizes.tobytes(), *each.values, *each.keys]
        header = {
            "number": self.number,
            "state": None if self.state is None else len(self.state),
            "used": self.used,
            "outputs": [(each.stream, len(each.values)) for each in self.outputs],
            "publishing_ids": dict(self.publishing_ids),
        }
        head = json.dumps(header).encode()
        body = head + b"".join(blobs)
        return _MAGIC + _HEAD.pack(len(head), zlib.crc32(body)) + body

    @classmethod
    def unpack(cls, packed: bytes) -> Outcome:
        """The inverse of pack(). ValueError when the bytes are not whole."""
        size, checksum = _HEAD.unpack_from(packed, len(_MAGIC))
        body = packed[len(_MAGIC) + _HEAD.size :]
        if not packed.startswith(_MAGIC) or zlib.crc32(body) != checksum:
            raise ValueError("not an outbox, or a damaged one")
        header, rest = json.loads(body[:size]), _Cursor(body, size)
        state = None if header["state"] is None else rest.take(header["state"])
        outputs = tuple(_unpack_output(stream, count, rest) for stream, count in header["outputs"])
        return cls(header["number"], state, header["used"], outputs, header["publishing_ids"])


@dataclass(slots=True)
class _Cursor:
    data: bytes
    at: int

    def take(self, size: int) -> bytes:
        self.at += size
        return self.data[self.at - size : self.at]


def _unpack_output(stream: str, count: int, rest: _Cursor) -> Outgoing:
    sizes = np.frombuffer(rest.take(8 * count), "<u4").reshape(count, 2).tolist()
    values = [rest.take(value) for value, _ in sizes]
    return Outgoing(stream, values, [rest.take(key) for _, key in sizes])


@dataclass(frozen=True, slots=True)
class OutboxFile:
    """The newest outcome of one role's instance, and whether its outputs are known to be sent."""

    folder: Path

    def read(self) -> Outcome:
        """The newest outcome; the empty one at the very first start. ChainBroken when it is damaged."""
        try:
            return Outcome.unpack((self.folder / "outcome").read_bytes())
        except FileNotFoundError:
            return Outcome()
        except (ValueError, struct.error, KeyError) as error:
            raise ChainBroken(f"{self.folder / 'outcome'} can't be read: {error}") from error

    def write(self, outcome: Outcome) -> None:
        """Replace it, durably."""
        replace_file(self.folder / "outcome", outcome.pack(), lasts=True)

    def is_sent(self, number: int) -> bool:
        """Whether the outputs of this outcome need not be published again."""
        try:
            return int((self.folder / "sent").read_text()) >= number
        except (FileNotFoundError, ValueError):
            return False

    def remembered(self, used: Callable[[Any], int | Identities]) -> Remembered | None:
        """What is committed, for those who only look; `used` reads the outcome's account. None before the first."""
        outcome = self.read()
        if outcome.state is None or outcome.used is None:
            return None
        unsent = {} if self.is_sent(outcome.number) else {each.stream: len(each.values) for each in outcome.outputs}
        return Remembered(outcome.state, used(outcome.used), unsent)

    def mark_sent(self, number: int) -> None:
        """Note it; not durably, for publishing once more does no harm."""
        replace_file(self.folder / "sent", str(number))


class Input(Protocol):
    """What is read, and the account of how much of it is used up."""

    def open(self, used: Any, keeper: _Keeper) -> Source:
        """Begin to read where `used` (None: nothing yet) ends. DataError when that place does not exist any more."""
        ...

    def begin(self) -> int | None:
        """Reading begins again behind what is used up, at the returned offset if there are any."""
        ...

    @property
    def is_used_up(self) -> bool:
        """Whether everything that was taken is used up."""
        ...

    def fresh(self, batch: Batch) -> Batch:
        """The part of a batch that is not used up and has not been taken yet; it counts as taken now."""
        ...

    def use(self, offset: int) -> Any:
        """The account once everything taken before `offset` is used up."""
        ...


class Output(Protocol):
    """Where outputs go."""

    def open(self, outcome: Outcome, *, is_sent: bool) -> Publisher:
        """A publisher that gives the outcome's outputs the identities they had; if those are sent, the ones behind."""
        ...

    def publishing_ids(self, publisher: Publisher, streams: Sequence[str]) -> Mapping[str, int]:
        """The ids that the next outputs will get, if this transport has any."""
        ...


@dataclass(slots=True)
class _Keeper:
    """The source's keeper: hands the committed state over whenever reading begins."""

    transaction: OutboxTransaction

    def resume(self, partition: int) -> int | None:
        return self.transaction.begin(partition)

    def release(self, partitions: Any, *, lost: bool) -> None:  # noqa: ARG002 - what was read comes again, either way
        for partition in partitions:
            self.transaction.forget(partition)


class OutboxTransaction:
    """One role's instance, reading one stream. `checkpoint` is called at the moments a crash test is interested in."""

    def __init__(
        self,
        folder: Path,
        reads: Input,
        writes: Output,
        *,
        restore: Callable[[int, bytes | None], None],
        forget: Callable[[int], None],
        checkpoint: Callable[[str], None] = lambda _: None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file, self._input, self._output = OutboxFile(folder), reads, writes
        self._restore, self.forget, self._checkpoint = restore, forget, checkpoint
        self._behind: int | None = None  # the offset behind everything polled
        self._lock = FileLock(folder / "lock")
        try:
            self._lock.acquire(timeout=LOCK_TIMEOUT_S)
        except Timeout:
            raise Fenced(f"another process works in {folder}") from None
        try:
            self._outcome = self._file.read()
            self._publisher = writes.open(self._outcome, is_sent=self._file.is_sent(self._outcome.number))
            self._send()
            self._source = reads.open(self._outcome.used, _Keeper(self))
        except BaseException:
            self._lock.release()
            raise

    def begin(self, partition: int) -> int | None:
        """Reading begins: hand over the state. Returns the offset to read from, where there are offsets."""
        self._behind = None
        self._restore(partition, self._outcome.state)
        return self._input.begin()

    def poll(self, timeout_s: float) -> list[Batch]:
        """What is new of the input."""
        fresh = []
        for batch in self._source.poll(timeout_s):
            part = self._input.fresh(batch)
            self._behind = batch.next_offset
            if len(part):
                fresh.append(part)
        return fresh

    def commit(self, outputs: Sequence[Outgoing], states: Mapping[int, bytes], offsets: Offsets) -> bool:
        """Always True when it returns: the file has decided, and the outputs are confirmed."""
        if offsets or outputs:
            self._write(outputs, states, offsets)
            self._send()
        # Repeats behind the last new record are done with as well.
        done = self._behind if self._input.is_used_up else offsets.get(PARTITION)
        if done is not None:
            self._source.acknowledge({PARTITION: done})
        return True

    def close(self) -> None:
        """Let go of connections and lock; what was polled and not committed will come again."""
        try:
            self._source.close()
            self._publisher.close()
        finally:
            self._lock.release()

    def _write(self, outputs: Sequence[Outgoing], states: Mapping[int, bytes], offsets: Offsets) -> None:
        outcome = Outcome(
            self._outcome.number + 1,
            states.get(PARTITION, self._outcome.state),
            self._input.use(offsets[PARTITION]) if offsets else self._outcome.used,
            tuple(outputs),
            self._output.publishing_ids(self._publisher, [each.stream for each in outputs]),
        )
        self._checkpoint("before_outcome")
        self._file.write(outcome)
        self._outcome = outcome
        self._checkpoint("after_outcome")

    def _send(self) -> None:
        """Publish the newest outcome's outputs, unless that is known to be done."""
        number = self._outcome.number
        if self._file.is_sent(number):
            return
        for each in self._outcome.outputs:
            self._publisher.publish(each)
        while not self._publisher.flush(1.0):
            pass
        self._checkpoint("after_confirms")
        self._file.mark_sent(number)
