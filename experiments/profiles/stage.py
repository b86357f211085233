"""Where a role is profiled: real brokers, a corner of them for itself, a home of its own, and records to work on.

Invariant: the running application is never touched, and when a stage is closed its topics, queues, groups and home are
gone, or closing it says what is left. The codecs alone need no broker: their stage is a home and nothing else.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import psutil

from experiments.profiles import alone, inputs, runs
from experiments.profiles.corners import FILL_RATE_HZ, At, Corner, corner
from experiments.profiles.runs import Load, Workload
from streaming import lab as labs
from streaming.codecs import CODECS
from streaming.errors import BrokerUnavailable, UsageError
from streaming.generators.replay import SHIPPED
from streaming.home import Home
from streaming.lab import KAFKA, QUEUES
from streaming.topology import ROLES, STREAMS, Role, RoleKind, role

BROKERS: Final = labs.BROKERS
NO_BROKER: Final = "none"
SUBJECTS: Final = (*ROLES, alone.CODECS)  # all that can be profiled
_READERS: Final = frozenset({RoleKind.TRANSFORMER, RoleKind.SINK})
TUNABLE: Final[Mapping[str, tuple[Collection[str], Collection[RoleKind]]]] = {  # where a setting changes anything
    "compression": ({KAFKA}, {RoleKind.GENERATOR}),
    "batch_bytes": ({KAFKA}, {RoleKind.GENERATOR}),
    "poll_records": ({KAFKA}, _READERS),
    "commit_records": (BROKERS, {RoleKind.TRANSFORMER}),
    "file_rows": (BROKERS, {RoleKind.SINK}),
    "parquet": (BROKERS, {RoleKind.SINK}),
    "prefetch": ({QUEUES}, _READERS),
    "partitions": ({KAFKA}, _READERS),
}
BURST_EVERY_S: Final = 2.0
FEED_EVERY_S: Final = 0.05
MOST_MADE: Final = 10_000_000  # records that wait in this process's memory, nearly a kilobyte each while they are made


def broker_of(subject: str, asked: str) -> str:
    """On which broker the subject is profiled: as asked; the codecs on none."""
    return NO_BROKER if subject == alone.CODECS else asked


@dataclass
class Stage:
    """A role's surroundings for one run; of the codecs alone (`role` None) there is no corner."""

    role: Role | None
    workload: Workload
    home: Home
    broker: str
    corner: Corner | None
    stop: threading.Event = field(default_factory=threading.Event)  # set by whoever wants the run to end early
    fault: Exception | None = None  # why feeding ended early
    _closing: threading.Event = field(default_factory=threading.Event)
    _feeder: threading.Thread | None = None

    def arguments(self) -> list[str]:
        """The command line that runs the role, by itself until its workload is done; empty for the codecs."""
        if self.role is None:
            return []
        words = [*self._command(self.role), "--home", str(self.home.root), "--broker", self.broker]
        if self.workload.messages is not None:
            words += ["--messages", str(self.workload.messages)]
        if self.workload.seconds is not None:
            words += ["--for", f"{self.workload.seconds:g}"]
        return words

    def prepare(self) -> None:
        """Make the streams, fill what the role reads; a load with a rate is fed from now on by begin_feeding()."""
        if self.role is None or self.corner is None:
            return
        self.corner.lab(self.workload, self.home).save(self.home)
        wanted = {*self.role.reads, *self.role.looks_up, *self.role.writes}
        partitions = self.workload.tuning.partitions
        self.corner.create([STREAMS[name].shaped(partitions) for name in sorted(wanted)])
        given = dict.fromkeys(self.role.looks_up, self.workload.vehicles)
        if self.role.reads and self.workload.load is Load.BACKLOG:
            given[self.role.reads[0]] = self.records_at_most
        for name, count in given.items():
            self._send(self.corner, name, count)

    @property
    def records_at_most(self) -> int:
        """How many records the role is given."""
        return _records_at_most(self.workload, self.corner.fill_rate_hz if self.corner else 0)

    def begin_feeding(self) -> None:
        """Send the load at its rate, on a thread of this process, until the stage is closed."""
        if self.role and self.corner and self.role.reads and self.workload.load is not Load.BACKLOG:
            feeding = (self.corner, self.role.reads[0])
            self._feeder = threading.Thread(target=self._feed, args=feeding, name="feeder", daemon=True)
            self._feeder.start()

    def close(self) -> None:
        """Leave nothing: no topic, no queue, no group, no file. BrokerUnavailable when the broker keeps something."""
        self._closing.set()
        if self._feeder is not None:
            self._feeder.join()
        shutil.rmtree(self.home.root, ignore_errors=True)
        if self.corner is not None:
            self.corner.sweep()

    def _command(self, of: Role) -> list[str]:
        if of.kind is RoleKind.TRANSFORMER:
            return ["transform", of.name.removesuffix("-transformer")]
        if of.kind is RoleKind.SINK:
            return ["sink", of.name]
        is_free = self.workload.load is Load.BACKLOG
        if of.name == "recording-replay":
            return ["produce", "positions", "--replay", str(SHIPPED), "--loop", "--speed", "max" if is_free else "10"]
        pace = "max" if is_free else f"{self.workload.rate_hz / self.workload.vehicles:g}"
        return ["produce", of.writes[0], *([] if of.writes[0] == "vehicles" else ["--rate", pace])]

    def _send(self, to: Corner, name: str, count: int) -> None:
        values, keys = self._payloads(name, count)
        with contextlib.closing(to.sender("profile-filler", self.stop.is_set)) as sender:
            sender.send(name, values, keys)
            sender.confirm()

    def _payloads(self, name: str, count: int) -> tuple[list[bytes], list[bytes]]:
        work = self.workload
        made = inputs.encoded(name, count, work.vehicles, work.seed, work.codec)
        if count and not made[0]:
            raise UsageError(f"a fleet of {work.vehicles} vehicles with seed {work.seed} gives no {name} to work on")
        return made

    def _feed(self, to: Corner, name: str) -> None:
        """Open loop: record i is due at i / rate; a burst holds back what is due and sends it at once."""
        every_s = BURST_EVERY_S if self.workload.load is Load.BURST else FEED_EVERY_S
        try:
            values, keys = self._payloads(name, self.records_at_most)
            with contextlib.closing(to.sender("profile-feeder", self._closing.is_set)) as sender:
                began_s, sent = time.monotonic(), 0
                while sent < len(values) and not self._closing.wait(every_s):
                    due = min(round((time.monotonic() - began_s) * self.workload.rate_hz), len(values))
                    sender.send(name, values[sent:due], keys[sent:due])
                    sent = due
                sender.confirm()
        except Exception as error:  # noqa: BLE001 - raised by whoever waits for the role: it would wait in vain
            self.fault = error


def _records_at_most(work: Workload, fastest_hz: float) -> int:
    if work.messages is not None:
        return work.messages
    assert work.seconds is not None  # noqa: S101 - one of them ends the run: insist() sees to it
    return round(work.seconds * (work.rate_hz if work.load is not Load.BACKLOG else fastest_hz))


@contextlib.contextmanager
def stage(
    home: Home, subject: str, broker: str, workload: Workload, at: At | None, name: str, stop: threading.Event
) -> Iterator[Stage]:
    """A stage of this name on the broker at `at` (None for the codecs). UsageError for what can't be profiled.

    Setting `stop` ends the preparations early. BrokerUnavailable at the end when something is left on the broker.
    """
    insist(subject, broker, workload)
    sweep_leftovers(home)
    own = Home(runs.root(home) / f".stage-{os.getpid()}-{name}").open()
    chosen = None if subject == alone.CODECS else role(subject)
    place = corner(broker, at, chosen, f"profile-{name}-") if chosen is not None and at is not None else None
    made = Stage(chosen, workload, own, broker, place, stop)
    try:
        made.prepare()
        yield made
    except BaseException as error:
        try:
            made.close()
        except BrokerUnavailable as left:
            error.add_note(str(left))  # what went wrong first is what is raised
        raise
    made.close()


def insist(subject: str, broker: str, workload: Workload) -> None:
    """UsageError when this can't be profiled, before anything is started."""
    if subject not in SUBJECTS:
        raise UsageError(f"there is no {subject!r} to profile; there are {', '.join(SUBJECTS)}")
    if broker not in BROKERS and not (subject == alone.CODECS and broker == NO_BROKER):
        raise UsageError(f"--broker {broker}: profiles run on {', '.join(BROKERS)}")
    if workload.messages is None and workload.seconds is None:
        raise UsageError("a profile needs an end: messages, or seconds")
    if not (0 < workload.rate_hz < math.inf and workload.vehicles >= 1):  # nan is not above 0 either
        raise UsageError(f"rate_hz {workload.rate_hz:g}, vehicles {workload.vehicles}: both above 0")
    if workload.seconds is not None and not 0 < workload.seconds < math.inf:
        raise UsageError(f"{workload.seconds:g} seconds: above 0, and an end")
    if workload.codec not in CODECS:
        raise UsageError(f"codec {workload.codec}: there is {', '.join(CODECS)}")
    _insist_on_room(subject, broker, workload)
    workload.tuning.insist()
    if misplaced := [name for name in workload.tuning.given if not matters(name, subject, broker)]:
        raise UsageError(f"{', '.join(misplaced)}: of no consequence for {subject} on {broker}")
    if subject == alone.CODECS and workload.load is not Load.BACKLOG:
        raise UsageError("the codecs alone have no load: they go as fast as they can")
    if subject in ROLES and ROLES[subject].kind is RoleKind.GENERATOR and workload.load is Load.BURST:
        raise UsageError(f"{subject} makes its own load: backlog (as fast as it can) or steady, no burst")


def _insist_on_room(subject: str, broker: str, workload: Workload) -> None:
    if subject not in ROLES or not ROLES[subject].reads:
        return
    made = _records_at_most(workload, FILL_RATE_HZ[broker])
    if made > MOST_MADE:
        raise UsageError(
            f"{subject} would be given {made:,} records, made ahead in memory: {MOST_MADE:,} at most; "
            "ask for fewer messages or seconds, or for a load with a rate (--set load=steady)"
        )


def matters(setting: str, subject: str, broker: str) -> bool:
    """Whether this setting of a Tuning changes anything about the subject on this broker."""
    brokers, kinds = TUNABLE[setting]
    if broker not in brokers or subject not in ROLES or ROLES[subject].kind not in kinds:
        return False
    return setting != "parquet" or ROLES[subject].format == setting


def possible(subject: str, workload: Workload) -> Workload:
    """The workload as far as there is one: the fleet's reference data is published once, a record a vehicle."""
    if subject == "vehicles-generator" and workload.messages is not None:
        return replace(workload, messages=min(workload.messages, workload.vehicles))
    return workload


def sweep_leftovers(home: Home) -> None:
    """Delete the stages of runners that were killed."""
    for folder in runs.root(home).glob(".stage-*"):
        pid = folder.name.split("-")[1]
        if not (pid.isdigit() and psutil.pid_exists(int(pid))):
            shutil.rmtree(folder, ignore_errors=True)


def leftovers(home: Home) -> list[Path]:
    """Stages on disk."""
    return list(runs.root(home).glob(".stage-*"))
