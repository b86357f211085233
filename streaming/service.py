"""The one loop of each long-running role: source → sink, and source → step → source. It names no broker.

Invariant: a position is acknowledged after its effect is durable, never before; what was read and not committed when
the loop ends, however it ends, is read again by the next one.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import polars as pl

from streaming.batch import Batch, Outgoing
from streaming.errors import RestartRequired
from streaming.interfaces import Codec, Sink, Source, Step, Transaction, Transactional, Transport
from streaming.landing import Landing
from streaming.progress import Progress
from streaming.topology import Role, state_stream, stream

S = TypeVar("S")
_log = logging.getLogger(__name__)
_POLL_S: Final = 0.1
_QUEUE_PATIENCE_S: Final = 2.0
_ABORTS_IN_A_ROW: Final = 5
RECORDS_PER_COMMIT: Final = 200_000


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop without being told: after `for_s` seconds, or when at least `messages` records are done."""

    for_s: float | None = None
    messages: int | None = None


@dataclass(slots=True)
class _Ending:
    """When the loop is over."""

    stop: threading.Event
    limits: Limits
    started_at: float

    def has_come(self, records: int) -> bool:
        if self.stop.is_set():
            return True
        if self.limits.messages is not None and records >= self.limits.messages:
            return True
        return self.limits.for_s is not None and time.monotonic() - self.started_at >= self.limits.for_s


def run_sink(
    transport: Transport,
    role: Role,
    sink: Sink,
    *,
    stop: threading.Event,
    progress: Progress,
    limits: Limits = Limits(),
    instance: int = 0,
) -> None:
    """Land the role's stream until `stop` is set or a limit is reached; then commit and leave the group.

    Polling happens here, everything the sink does on one thread beside it. DataError, Fenced and the like end the
    loop; whatever was not committed by then is read again next time. RestartRequired when the disk fails.
    """
    ending = _Ending(stop, limits, time.monotonic())
    turns = progress.turns.beside("sink") if progress.turns else None
    landing = Landing(sink, progress.commits, turns, on_quarantine=progress.rejects)
    try:
        source = transport.source(role.reads[0], role.name, landing, instance=instance)
    except BaseException:
        landing.close()
        raise
    try:
        _land(source, landing, ending, progress)
        landing.finish()
        source.acknowledge(landing.take_acknowledged())
    finally:
        _let_go(source.close, landing.close)
        progress.write()


def _let_go(*closings: Callable[[], None]) -> None:
    """Call each of them; the first error is raised at the end, unless another one is on its way up already."""
    errors: list[Exception] = []
    is_failing = sys.exc_info()[0] is not None
    for closing in closings:
        try:
            closing()
        except Exception as error:  # noqa: BLE001 - raised below, after the others had their turn
            _log.exception("while closing")
            errors.append(error)
    if errors and not is_failing:
        raise errors[0]


def _land(source: Source, landing: Landing, ending: _Ending, progress: Progress) -> None:
    progress.begins()
    while not ending.has_come(progress.records):
        with progress.waiting():
            batches = source.poll(_POLL_S)
        progress.took(sum(map(len, batches)))
        with progress.waiting():  # for room in the sink's queue
            _hand_over(batches, source, landing, ending)
        source.acknowledge(landing.take_acknowledged())
        for partition, offset in landing.take_displaced().items():
            source.seek(partition, offset)
            progress.retries()
        progress.tick()
    progress.ends()


def _hand_over(batches: list[Batch], source: Source, landing: Landing, ending: _Ending) -> None:
    """Queue the batches; an empty list is a chance to commit what has become due. Pauses the source while it can't."""
    tagged = landing.tagged(batches)
    if landing.offer(tagged, _QUEUE_PATIENCE_S if batches else 0) or not batches:
        return
    source.pause()
    while not (landing.offer(tagged, _POLL_S) or ending.stop.is_set()):
        source.poll(0)  # delivers nothing, keeps the membership alive
    source.resume()


class _Flow(Generic[S]):
    """Each partition's state, and what was read since its last commit."""

    def __init__(self, step: Step[S], role: Role, codecs: Mapping[str, Codec], progress: Progress) -> None:
        self._step = step
        self._codecs = codecs
        self._reads = role.reads[0]
        self._progress = progress
        self._states: dict[int, S] = {}
        self._pending: dict[int, list[Batch]] = {}

    def restore(self, partition: int, snapshot: bytes | None) -> None:
        """The partition begins here, or again; what was pending is read again."""
        self._states[partition] = self._step.initial(partition) if snapshot is None else self._step.load(snapshot)
        self._pending.pop(partition, None)

    def forget(self, partition: int) -> None:
        """The partition goes to somebody else."""
        self._states.pop(partition, None)
        self._pending.pop(partition, None)

    def add(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            self._pending.setdefault(batch.partition, []).append(batch)

    @property
    def pending_records(self) -> int:
        return sum(len(batch) for batches in self._pending.values() for batch in batches)

    def commit(self, transaction: Transaction) -> bool:
        """One transaction for all that is pending. When it did not happen, restore() has replaced the states."""
        count, rejected = self.pending_records, 0
        states, outputs = dict[int, S](), dict[str, list[pl.DataFrame]]()
        for partition, batches in self._pending.items():
            decoded = self._codecs[self._reads].decode([value for batch in batches for value in batch.values])
            rejected += len(decoded.rejections)
            states[partition], made = self._step.advance(self._states[partition], decoded.table)
            for name, table in made.items():
                outputs.setdefault(name, []).append(table)
        offsets = {partition: batches[-1].next_offset for partition, batches in self._pending.items()}
        dumped = {partition: self._step.dump(state) for partition, state in states.items()}
        encoded, began_s = self._encoded(outputs), time.monotonic()
        with self._progress.waiting():  # for the brokers: all that is handed over is made before
            is_committed = transaction.commit(encoded, dumped, offsets)
        if not is_committed:
            return False
        self._pending = {}
        self._states.update(states)
        self._progress.rejects(rejected)
        self._progress.commits(count, time.monotonic() - began_s)
        return True

    def _encoded(self, outputs: Mapping[str, list[pl.DataFrame]]) -> list[Outgoing]:
        tables = {name: pl.concat(parts) for name, parts in outputs.items()}
        return [
            Outgoing(name, self._codecs[name].encode(table), table[stream(name).key].cast(pl.Binary).to_list())
            for name, table in tables.items()
            if len(table)
        ]


def run_flow(  # noqa: PLR0913 - all but the first four are options
    transport: Transactional,
    role: Role,
    step: Step[Any],
    codecs: Mapping[str, Codec],
    *,
    stop: threading.Event,
    progress: Progress,
    limits: Limits = Limits(),
    instance: int = 0,
    records_per_commit: int = RECORDS_PER_COMMIT,
    commit_every_s: float = 0.5,
) -> None:
    """Run `step` between the role's streams until `stop` is set or a limit is reached; the last input is committed.

    `codecs` by stream, for what is read and each that is written. A commit costs 100-150 ms, so records are gathered
    for `commit_every_s` or up to about `records_per_commit`. Input that can't be decoded is counted and skipped: the
    input's Parquet sink quarantines it. RestartRequired when transactions are aborted again and again.
    """
    ending = _Ending(stop, limits, time.monotonic())
    flow = _Flow(step, role, codecs, progress)
    transaction = transport.transaction(
        role.reads[0],
        state_stream(role).name,
        role.name,
        restore=flow.restore,
        forget=flow.forget,
        instance=instance,
    )
    aborts = 0
    try:
        progress.begins()
        while not ending.has_come(progress.committed):
            _gather(transaction, flow, progress, records_per_commit, commit_every_s)
            if flow.commit(transaction):
                aborts = 0
            else:
                aborts += 1
                progress.retries()
            if aborts >= _ABORTS_IN_A_ROW:
                raise RestartRequired(f"{role.name}: {aborts} transactions in a row were aborted")
            progress.tick()
        progress.ends()
    finally:
        _let_go(transaction.close)
        progress.write()


def _gather(
    transaction: Transaction, flow: _Flow[Any], progress: Progress, records_per_commit: int, commit_every_s: float
) -> None:
    deadline = time.monotonic() + commit_every_s
    while (left_s := deadline - time.monotonic()) > 0 and flow.pending_records < records_per_commit:
        with progress.waiting():
            batches = transaction.poll(left_s)
        progress.took(sum(map(len, batches)))
        flow.add(batches)
