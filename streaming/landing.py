"""A sink on a thread of its own, so that decoding and writing never hold up the source's polling.

Invariant: every call on the sink is made by that one thread, in the order of asking: a partition is released after all
that was read of it has been written, and nothing that was read before a displacement is written after it.
"""

from __future__ import annotations

import errno
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from streaming.batch import Batch
from streaming.errors import RestartRequired
from streaming.interfaces import Offsets, Sink
from streaming.turns import Turns

T = TypeVar("T")
_log = logging.getLogger(__name__)
_QUEUED_POLLS: Final = 4
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_FIRST_RETRY_S: Final = 1.0
_SLOWEST_RETRY_S: Final = 30.0


class Landing:
    """The sink's thread. Is the source's keeper too: resume() and release() wait for their turn in the queue.

    Each partition has an edition, counted up when it is released or displaced; a batch is tagged with the edition it
    was read in, and dropped when that is over.
    """

    def __init__(
        self,
        sink: Sink,
        on_commit: Callable[[int, float], None],
        turns: Turns | None = None,
        *,
        on_quarantine: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._sink = sink
        self._on_quarantine, self._quarantined = on_quarantine, sink.quarantined
        self._turns = turns
        self._idle_s, self._records = 0.0, 0  # of the sink's thread, for its turns
        self._on_commit = on_commit
        self._inbox: queue.Queue[tuple[Callable[[], Any], Future[Any]] | None] = queue.Queue(_QUEUED_POLLS)
        self._failure: BaseException | None = None
        self._is_hurried = threading.Event()
        self._lock = threading.Lock()  # guards what both threads touch: the three below
        self._acknowledged: dict[int, int] = {}
        self._displaced: dict[int, tuple[int, int]] = {}  # partition → edition, offset
        self._retry_s = _FIRST_RETRY_S
        self._written: dict[int, int] = {}  # records by partition since its last commit
        self._editions: dict[int, int] = {}  # the sink thread's own view
        self._tags: dict[int, int] = {}  # the polling thread's view, which follows
        self._thread = threading.Thread(target=self._serve, name="sink", daemon=True)
        self._thread.start()

    # Called by the polling thread.

    def tagged(self, batches: Sequence[Batch]) -> list[tuple[Batch, int]]:
        """The batches with the editions they were read in; to be called before the next poll."""
        return [(batch, self._tags.get(batch.partition, 0)) for batch in batches]

    def offer(self, tagged: list[tuple[Batch, int]], wait_s: float) -> bool:
        """Queue them for writing; False when there was no room in time. Raises what went wrong in the sink."""
        self.check()
        try:
            self._inbox.put((lambda: self._write(tagged), Future()), timeout=wait_s)
        except queue.Full:
            return False
        return True

    def check(self) -> None:
        """Raise what went wrong in the sink."""
        if self._failure is not None:
            raise self._failure

    def take_acknowledged(self) -> Offsets:
        """What has become durable since the last call."""
        with self._lock:
            taken, self._acknowledged = self._acknowledged, {}
        return taken

    def take_displaced(self) -> Offsets:
        """Partitions to be read again from another offset, since the last call."""
        with self._lock:
            taken, self._displaced = self._displaced, {}
        self._tags.update({partition: edition for partition, (edition, _) in taken.items()})
        return {partition: offset for partition, (_, offset) in taken.items()}

    def resume(self, partition: int) -> int | None:
        """Keeper."""
        return self._ask(lambda: self._sink.resume(partition))

    def release(self, partitions: Iterable[int], *, lost: bool) -> None:
        """Keeper: everything queued is written first. After a failure of the sink there is nothing to release."""
        released = list(partitions)
        if self._failure is None:
            self._ask(lambda: self._release(released, lost=lost))
        with self._lock:
            for partition in released:
                self._displaced.pop(partition, None)
                self._tags[partition] = self._editions.get(partition, 0)

    def finish(self) -> None:
        """Commit what is buffered. RestartRequired when the disk is full."""
        self._ask(self._commit_once)

    def close(self) -> None:
        """End the thread and drop what is not committed."""
        self._is_hurried.set()
        self._inbox.put(None)
        self._thread.join()
        if self._turns is not None:
            self._turns.write()
        self._sink.close()

    def _ask(self, action: Callable[[], T]) -> T:
        answer: Future[T] = Future()
        self._is_hurried.set()
        self._inbox.put((action, answer))
        try:
            return answer.result()
        finally:
            self._is_hurried.clear()

    # Called by the sink's thread.

    def _serve(self) -> None:
        while (asked := self._next()) is not None:
            action, answer = asked
            try:
                self.check()
                answer.set_result(action())
            except BaseException as failure:  # noqa: BLE001 - handed to the polling thread
                self._failure = self._failure or failure
                answer.set_exception(failure)

    def _next(self) -> tuple[Callable[[], Any], Future[Any]] | None:
        """What is asked next; ends a turn if they are kept."""
        if self._turns is None:
            return self._inbox.get()
        self._turns.end(self._idle_s, self._records)
        began_s = time.perf_counter()
        asked = self._inbox.get()
        self._idle_s += time.perf_counter() - began_s
        return asked

    def _write(self, tagged: list[tuple[Batch, int]]) -> None:
        for batch, edition in tagged:
            if edition == self._editions.get(batch.partition, 0):
                self._sink.write(batch)
                self._records += len(batch)
                self._written[batch.partition] = self._written.get(batch.partition, 0) + len(batch)
        if self._sink.is_due:
            self._commit_patiently()

    def _commit_patiently(self) -> None:
        """Commit; on a full disk wait for space, unless somebody waits for this thread: then a later turn tries."""
        while True:
            try:
                self._commit()
            except OSError as error:
                if error.errno not in _FULL:
                    raise _disk_failure(error) from error
                _log.error("disk full, nothing is lost, next attempt in %.0f s: %s", self._retry_s, error)
            else:
                self._retry_s = _FIRST_RETRY_S
                return
            if self._is_hurried.wait(self._retry_s):
                return
            self._retry_s = min(2 * self._retry_s, _SLOWEST_RETRY_S)

    def _commit_once(self) -> None:
        try:
            self._commit()
        except OSError as error:
            raise RestartRequired(f"not committed, it will be read again: {error}") from error

    def _commit(self) -> None:
        began_s = time.monotonic()
        offsets = self._sink.commit()
        count = sum(self._written.pop(partition, 0) for partition in offsets)
        self._on_commit(count, time.monotonic() - began_s)
        self._on_quarantine(self._sink.quarantined - self._quarantined)
        self._quarantined = self._sink.quarantined
        displaced = self._sink.displaced()
        for partition in displaced:
            self._begin_edition(partition)
        with self._lock:
            self._acknowledged.update(offsets)
            self._displaced.update({p: (self._editions[p], offset) for p, offset in displaced.items()})

    def _release(self, partitions: list[int], *, lost: bool) -> None:
        if not lost:
            try:
                self._commit()
            except OSError as error:
                if error.errno not in _FULL:
                    raise _disk_failure(error) from error
                _log.error("disk full, the next owner reads again what is not committed: %s", error)
                lost = True
        self._sink.release(partitions, lost=lost)
        for partition in partitions:
            self._begin_edition(partition)

    def _begin_edition(self, partition: int) -> None:
        self._editions[partition] = self._editions.get(partition, 0) + 1
        self._written.pop(partition, None)


def _disk_failure(error: OSError) -> RestartRequired:
    return RestartRequired(f"the sink's disk fails, what the kernel holds of it is not to be trusted: {error}")
