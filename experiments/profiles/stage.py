"""Where a role is profiled: real brokers, topics behind a prefix of its own, a home of its own, and records to work on.

Invariant: the running application is never touched, and when a stage is closed its topics, groups and home are gone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient

from experiments.lab import produce
from experiments.profiles import inputs, runs
from experiments.profiles.runs import Load, Workload
from streaming.errors import BrokerUnavailable, UsageError
from streaming.generators.replay import SHIPPED
from streaming.home import Home
from streaming.lab import Lab
from streaming.topology import STREAMS, Role, RoleKind
from streaming.transports.kafka import KafkaTransport
from streaming.transports.kafka.settings import PRODUCER

BROKERS: Final = ("kafka",)
ADMIN_S: Final = 20.0
FILL_S: Final = 120.0
BURST_EVERY_S: Final = 2.0
FEED_EVERY_S: Final = 0.05


@dataclass
class Stage:
    """A role's surroundings for one run."""

    role: Role
    workload: Workload
    home: Home
    lab: Lab
    _stop: threading.Event = field(default_factory=threading.Event)
    _feeder: threading.Thread | None = None

    @property
    def transport(self) -> KafkaTransport:
        """The stage's own corner of the cluster."""
        return KafkaTransport(self.lab.kafka, prefix=self.lab.prefix)

    def arguments(self) -> list[str]:
        """The command line that runs the role, by itself until its workload is done."""
        words = [*self._command(), "--home", str(self.home.root)]
        if self.workload.messages is not None:
            words += ["--messages", str(self.workload.messages)]
        if self.workload.seconds is not None:
            words += ["--for", f"{self.workload.seconds:g}"]
        return words

    def prepare(self) -> None:
        """Make the topics, fill what the role reads; a load with a rate is fed from now on by begin_feeding()."""
        wanted = {*self.role.reads, *self.role.looks_up, *self.role.writes}
        transport = self.transport
        transport.create([STREAMS[name] for name in sorted(wanted)], replication=self.lab.replication)
        if self.role.looks_up:
            self._send("vehicles", self.workload.vehicles)
        if self.role.reads and self.workload.load is Load.BACKLOG:
            self._send(self.role.reads[0], self.records_at_most)

    @property
    def records_at_most(self) -> int:
        """How many records the role is given."""
        work = self.workload
        if work.messages is not None:
            return work.messages
        assert work.seconds is not None  # noqa: S101 - one of them ends the run: request() sees to it
        return round(work.seconds * (work.rate_hz if work.load is not Load.BACKLOG else 200_000))

    def begin_feeding(self) -> None:
        """Send the load at its rate, on a thread of this process, until the stage is closed."""
        if self.role.reads and self.workload.load is not Load.BACKLOG:
            self._feeder = threading.Thread(target=self._feed, name="feeder", daemon=True)
            self._feeder.start()

    def close(self) -> None:
        """Leave nothing: no topic, no group, no file."""
        self._stop.set()
        if self._feeder is not None:
            self._feeder.join()
        with contextlib.suppress(BrokerUnavailable, KafkaException):
            sweep(self.lab.kafka, self.lab.prefix)
        shutil.rmtree(self.home.root, ignore_errors=True)

    def _command(self) -> list[str]:
        if self.role.kind is RoleKind.TRANSFORMER:
            return ["transform", self.role.name.removesuffix("-transformer")]
        if self.role.kind is RoleKind.SINK:
            return ["sink", self.role.name]
        is_free = self.workload.load is Load.BACKLOG
        if self.role.name == "recording-replay":
            return ["produce", "positions", "--replay", str(SHIPPED), "--loop", "--speed", "max" if is_free else "10"]
        pace = "max" if is_free else f"{self.workload.rate_hz / self.workload.vehicles:g}"
        return ["produce", self.role.writes[0], *([] if self.role.writes[0] == "vehicles" else ["--rate", pace])]

    def _send(self, name: str, count: int) -> None:
        values, keys = self._payloads(name, count)
        producer = self._producer("profile-filler")
        for value, key in zip(values, keys, strict=True):
            produce(producer, self.lab.prefix + name, value=value, key=key)
        if left := producer.flush(FILL_S):
            raise BrokerUnavailable(f"{left} records of {name} are not confirmed")

    def _producer(self, client: str) -> Producer:
        """As the application's, but silent: its topics go before it does."""
        own = {"bootstrap.servers": self.lab.kafka, "client.id": client, "log_level": 0}
        return Producer({**PRODUCER, **own})

    def _payloads(self, name: str, count: int) -> tuple[list[bytes], list[bytes]]:
        work = self.workload
        return inputs.encoded(name, count, work.vehicles, work.seed, work.codec)

    def _feed(self) -> None:
        """Open loop: record i is due at i / rate; a burst holds back what is due and sends it at once."""
        name, every_s = self.role.reads[0], BURST_EVERY_S if self.workload.load is Load.BURST else FEED_EVERY_S
        values, keys = self._payloads(name, self.records_at_most)
        producer, began_s, sent = self._producer("profile-feeder"), time.monotonic(), 0
        while sent < len(values) and not self._stop.wait(every_s):
            due = min(round((time.monotonic() - began_s) * self.workload.rate_hz), len(values))
            for place in range(sent, due):
                produce(producer, self.lab.prefix + name, value=values[place], key=keys[place])
            sent = due
        producer.flush(ADMIN_S)


@contextlib.contextmanager
def stage(home: Home, role: Role, broker: str, workload: Workload, servers: str, name: str) -> Iterator[Stage]:
    """A stage of this name on the cluster at `servers`. UsageError for what can't be profiled."""
    insist(role, broker, workload)
    sweep_leftovers(home)
    own = Home(runs.root(home) / f".stage-{os.getpid()}-{name}").open()
    copies = min(
        3, len(AdminClient({"bootstrap.servers": servers, "log_level": 0}).list_topics(timeout=ADMIN_S).brokers)
    )
    lab = Lab(
        bootstrap_servers=servers,
        replication=copies,
        codec=workload.codec,
        vehicles=workload.vehicles,
        seed=workload.seed,
        prefix=f"profile-{name}-",
    )
    lab.save(own)
    made = Stage(role, workload, own, lab)
    try:
        made.prepare()
        yield made
    finally:
        made.close()


def insist(role: Role, broker: str, workload: Workload) -> None:
    """UsageError when this can't be profiled, before anything is started."""
    if broker not in BROKERS:
        raise UsageError(f"--broker {broker}: profiles run on {', '.join(BROKERS)}")
    if workload.load is Load.BURST and role.kind is RoleKind.GENERATOR:
        raise UsageError(f"{role.name} makes its own load: backlog (as fast as it can) or steady, no burst")
    if workload.messages is None and workload.seconds is None:
        raise UsageError("a profile needs an end: messages, or seconds")
    if workload.rate_hz <= 0 or workload.vehicles < 1:
        raise UsageError(f"rate_hz {workload.rate_hz:g}, vehicles {workload.vehicles}: both above 0")


def sweep(servers: str, prefix: str) -> None:
    """Delete every topic and group behind the prefix."""
    admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
    topics = [name for name in admin.list_topics(timeout=ADMIN_S).topics if name.startswith(prefix)]
    groups = [each.group_id for each in admin.list_consumer_groups().result(ADMIN_S).valid]
    mine = [group for group in groups if group.startswith(prefix)]
    for futures in (
        admin.delete_topics(topics) if topics else {},
        admin.delete_consumer_groups(mine) if mine else {},
    ):
        for future in futures.values():
            with contextlib.suppress(KafkaException):  # a static member that has just gone keeps its group for a while
                future.result(ADMIN_S)


def sweep_leftovers(home: Home) -> None:
    """Delete the stages of runners that were killed."""
    for folder in runs.root(home).glob(".stage-*"):
        pid = folder.name.split("-")[1]
        if not (pid.isdigit() and psutil.pid_exists(int(pid))):
            shutil.rmtree(folder, ignore_errors=True)


def leftovers(home: Home) -> list[Path]:
    """Stages on disk."""
    return list(runs.root(home).glob(".stage-*"))
