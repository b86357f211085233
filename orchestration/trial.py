"""A node of its own, the application on it, and a plan of faults; what was counted, and a verdict that follows from it.

While a recording is replayed, as fast as the faults come (see feeding.py), the sink of positions and both transformers
are killed again and again, the sink's connections are cut between commit and acknowledgement, the node is killed once
and started again, and once it alarms (for memory with queues; with streams for its disk, the only alarm at which
RabbitMQ 3.10 holds their publishers back) while another sink stands still. At the end: verify, and a comparison with
the offline result.

Invariant: a fault that was asked for and did not happen, or a redelivery that never came, is a problem too: the run has
shown less than it says.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from orchestration import services
from orchestration.brokers import create_streams, rabbitmq_of, transport_of
from orchestration.feeding import FaultClock, Feed
from orchestration.offline import TABLES, differences, landed, worked_out
from orchestration.ordeal import Application, Killer, Unexpected, in_thread
from sinks.reader import slots
from streaming.cluster import ports
from streaming.cluster.rabbitmq import DisposableRabbitMQ, control
from streaming.codecs import codec
from streaming.errors import BrokerUnavailable
from streaming.generators.fleet import Fleet
from streaming.generators.positions import Measured
from streaming.home import Home
from streaming.lab import QUEUES, RABBITMQ_STREAMS, Lab
from streaming.topology import STREAMS
from streaming.transformers.flows import reference_table

SINK: Final = "positions-parquet"
TRANSFORMERS: Final = ("means-transformer", "alerts-transformer")
STANDS_STILL: Final = "position-means-parquet"  # while the node alarms
VEHICLES: Final = 50
RATE_HZ: Final = 10.0
SEED: Final = 20261126
FILE_SECONDS: Final = "0.3"
PORTS: Final = 200  # of a lab with a node, from its base on
_LIFE_S, _DROP_S = 6.0, 0.7  # a first guess at what a kill and a cut take
NODE_DIES_AT, ALARM_AT = 0.35, 0.6  # of the faults
_STANDSTILL_S: Final = 600.0  # without a fault and without a row that lands
_PATIENCE_S: Final = 60.0  # the node looks at its memory, and tells of its connections, every few seconds
say = Console(stderr=True, highlight=False, soft_wrap=True).print


@dataclass(frozen=True, slots=True)
class Alarm:
    """A limit that makes a node alarm, the one it was started with, and what the management API calls the alarm."""

    what: str
    setting: tuple[str, ...]
    alarming: str
    normal: str
    flag: str


ALARMS: Final = {
    QUEUES: Alarm("memory", ("set_vm_memory_high_watermark", "absolute"), "1MB", "1GiB", "mem_alarm"),
    RABBITMQ_STREAMS: Alarm("disk", ("set_disk_free_limit",), "100000GB", "1GB", "disk_free_alarm"),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to happen. `still_s`: for how long at least the node alarms while a sink stands still."""

    messages: int
    kills: int
    drops: int
    still_s: float = 20.0
    wait: str = "600s"
    seed: int = SEED

    @property
    def guess_s(self) -> float:
        """About how long the faults may take; the replay begins at that pace, and then goes by the faults."""
        return self.kills * _LIFE_S + self.drops * _DROP_S + self.still_s


@dataclass(slots=True)
class Counted:
    """What has happened on one broker. `problems`: everything that makes the run a failure, in words."""

    broker: str
    messages: int
    kills: dict[str, int] = field(default_factory=dict)
    moments: int = 0  # of the sink's kills: at a named moment of a commit
    drops: int = 0
    node_kills: int = 0
    alarms: int = 0
    blocked: int = 0  # connections that the broker held back during the alarm
    sent_meanwhile: int = 0  # when the last of the faults had happened
    redelivered: int = 0  # on queues by the broker's count; on streams at least, by the sink's own
    lost: int = 0
    duplicated: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    differs: list[str] = field(default_factory=list)  # from the offline result
    problems: list[str] = field(default_factory=list)
    took_s: float = 0.0


class Ordeal:
    """One broker's application under a plan. Call run() once, inside the node's block."""

    def __init__(
        self, home: Home, lab: Lab, broker: str, node: DisposableRabbitMQ, plan: Plan, recording: Path
    ) -> None:
        self._home, self._lab, self._broker, self._node = home, lab, broker, node
        self._plan, self._recording = plan, recording
        self.counted = Counted(broker, plan.messages)
        self._redelivered = Redelivered(node)
        self._said_at = self._moved_at = 0.0
        self._seen: tuple[float, int, int] | None = None

    def run(self) -> Counted:
        """Everything; what went wrong is among the problems."""
        began = time.monotonic()
        application = Application(self._home, self._broker, environment={"STREAMGAUGE_FILE_SECONDS": FILE_SECONDS})
        with application:
            killers = self._killers(application)
            self._under_way(application, killers)
            self._take_counts(killers)
            application.revive(application.roles)
            code, report = application.verified(self._plan.wait)
        self._judge(code, report)
        self.counted.took_s = time.monotonic() - began
        return self.counted

    def _killers(self, application: Application) -> list[Killer]:
        plan, roles = self._plan, application.roles
        roles[SINK].stop()  # its first life under the killer may lose connections too
        first = Killer(roles[SINK], plan.kills, plan.seed, is_sink=True, drops=plan.drops)
        return [
            first,
            *(Killer(roles[name], plan.kills, plan.seed + at, leader=first) for at, name in enumerate(TRANSFORMERS, 1)),
        ]

    def _under_way(self, application: Application, killers: list[Killer]) -> None:
        clock = FaultClock(self._plan.messages / (VEHICLES * RATE_HZ), self._plan.guess_s)
        feed = Feed(self._home, self._lab, self._broker, self._recording, clock)
        at_work = [in_thread(killer) for killer in killers]
        feed.start()
        try:
            self._until_over(application, killers, feed, clock, lambda: not any(each.is_alive() for each in at_work))
        except BaseException:
            feed.stop()
            for killer in killers:
                killer.give_up()
            application.kill()
            for thread in (feed, *at_work):
                thread.join()
            raise

    def _until_over(
        self,
        application: Application,
        killers: list[Killer],
        feed: Feed,
        clock: FaultClock,
        have_ended: Callable[[], bool],
    ) -> None:
        steady = set(application.roles) - {SINK, *TRANSFORMERS}
        todo: list[tuple[float, Callable[[], None]]] = [
            (NODE_DIES_AT, self._restart_node),
            (ALARM_AT, lambda: self._hold_back(application)),
        ]
        while feed.is_alive() or not have_ended() or self._landed() < self._plan.messages:
            _raise_failure(feed, killers)
            share = min(killer.share for killer in killers)
            clock.happened(min(share, todo[0][0] if todo else 1.0))  # the node's faults are to meet records too
            if share < 1.0 or todo:
                self.counted.sent_meanwhile = feed.progress.records
            self._progress(killers, feed, clock)
            with contextlib.suppress(BrokerUnavailable):  # it may be too busy to answer; it counts on
                self._redelivered.look()
            application.revive(application.roles if have_ended() else steady)
            if todo and share >= todo[0][0]:
                todo.pop(0)[1]()
            self._insist_on_movement(share, feed)
            time.sleep(0.3)
        _raise_failure(feed, killers)

    def _insist_on_movement(self, share: float, feed: Feed) -> None:
        """Unexpected when no fault has happened, nothing was sent and nothing has landed for long."""
        now, seen = time.monotonic(), (share, feed.progress.records, self._landed())
        if seen != self._seen:
            self._seen, self._moved_at = seen, now
        elif now - self._moved_at > _STANDSTILL_S:
            raise Unexpected(
                f"{self._broker}: nothing has happened for {_STANDSTILL_S:.0f} s: {share:.0%} of the faults"
            )

    def _restart_node(self) -> None:
        say(f"{self._broker}: the node is killed and started again")
        self._redelivered.look(_PATIENCE_S)
        self._node.kill(1)
        self._node.start(1)
        self._redelivered.begin_again()
        self.counted.node_kills += 1

    def _hold_back(self, application: Application) -> None:
        """The node alarms: publishers must wait. A sink stands still, so that its messages pile up."""
        alarm = ALARMS[self._broker]
        say(f"{self._broker}: {alarm.what} alarm and a sink that stands still, {self._plan.still_s:.0f} s")
        still = application.roles[STANDS_STILL].process
        if still is None:
            raise Unexpected(f"{STANDS_STILL} does not run")
        node = self._node.nodes[0]
        still.send_signal(signal.SIGSTOP)
        control(node, *alarm.setting, alarm.alarming, timeout_s=300)
        try:
            began, seen = time.monotonic(), False
            while (passed := time.monotonic() - began) < self._plan.still_s or (not seen and passed < _PATIENCE_S):
                seen = self._is_held_back()
                time.sleep(0.5)
        finally:
            control(node, *alarm.setting, alarm.normal, timeout_s=300)
            still.send_signal(signal.SIGCONT)

    def _is_held_back(self) -> bool:
        """Whether the alarm, and a connection that is held back by it, were seen; counts them."""
        counted = self.counted
        with contextlib.suppress(BrokerUnavailable):  # it may be too busy to answer
            counted.alarms = max(counted.alarms, int(self._node.ask("/nodes")[0].get(ALARMS[self._broker].flag, False)))
            held = sum(each.get("state") == "blocked" for each in self._node.ask("/connections"))
            counted.blocked = max(counted.blocked, held)
        return bool(counted.alarms and counted.blocked)

    def _landed(self) -> int:
        return sum(slot.rows for slot in slots(self._home, self._broker, "positions_parquet"))

    def _progress(self, killers: list[Killer], feed: Feed, clock: FaultClock) -> None:
        if time.monotonic() - self._said_at < 5.0:
            return
        self._said_at = time.monotonic()
        kills = ", ".join(f"{killer.role.name} {killer.role.kills}" for killer in killers)
        drops = f"{killers[0].role.drops} of {self._plan.drops} connections cut"
        rows = f"{feed.progress.records:,} of {self._plan.messages:,} sent, {self._landed():,} landed"
        say(f"{self._broker}: {rows}; killed: {kills}; {drops}; faults for about {clock.left_s / 60:.1f} min more")

    def _take_counts(self, killers: list[Killer]) -> None:
        counted = self.counted
        counted.kills = {killer.role.name: killer.role.kills for killer in killers}
        counted.moments = sum("at random" not in moment for moment in killers[0].timeline)
        counted.drops = killers[0].role.drops
        on_queues = self._broker == QUEUES
        counted.redelivered = self._redelivered.look(_PATIENCE_S) if on_queues else killers[0].read_again

    def _judge(self, code: int, report: dict[str, Any]) -> None:
        counted, plan = self.counted, self._plan
        counted.lost, counted.duplicated = report["totals"]["lost"], report["totals"]["duplicated"]
        counted.rows = {table["table"]: table["rows"] for table in report["tables"]}
        if code:
            counted.problems.append(f"verify ended with {code}: {report['verdict']}")
        counted.problems += [
            f"{name}: {n} of {plan.kills} kills" for name, n in counted.kills.items() if n < plan.kills
        ]
        if counted.drops < plan.drops:
            counted.problems.append(f"{counted.drops} of {plan.drops} connections were cut after a commit")
        if not counted.redelivered:
            counted.problems.append("nothing was delivered again: the faults met nothing")
        if not counted.alarms or not counted.blocked:
            counted.problems.append(f"{counted.alarms} alarms of the node, {counted.blocked} connections held back")
        wanted = offline(self._home, self._lab, self._broker, self._recording)
        if empty := [name for name in TABLES if wanted[name].is_empty()]:
            counted.problems.append(f"the offline result has no {', '.join(empty)}: nothing to compare")
        counted.differs = differences(landed(self._home, self._broker), wanted)
        counted.problems += counted.differs


def _raise_failure(feed: Feed, killers: list[Killer]) -> None:
    for failure in (feed.failure, *(killer.failure for killer in killers)):
        if failure:
            raise failure


class Redelivered:
    """How many messages the node's queues have delivered again: its own counter, which begins anew when it starts."""

    def __init__(self, node: DisposableRabbitMQ) -> None:
        self._port = node.nodes[0].ports.prometheus
        self._earlier = self._latest = 0

    def look(self, timeout_s: float = 10.0) -> int:
        """The number up to now. BrokerUnavailable when the node does not answer in time."""
        connection = http.client.HTTPConnection(ports.HOST, self._port, timeout=timeout_s)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException) as error:
            raise BrokerUnavailable(f"the node's counters can't be read: {error}") from error
        finally:
            connection.close()
        found = re.findall(r"^rabbitmq_global_messages_redelivered_total\{.*quorum.*\} (\S+)$", text, re.MULTILINE)
        self._latest = sum(int(float(number)) for number in found)
        return self._earlier + self._latest

    def begin_again(self) -> None:
        """The node was started anew."""
        self._earlier, self._latest = self._earlier + self._latest, 0


def offline(home: Home, lab: Lab, broker: str, recording: Path) -> dict[str, Any]:
    """What is to have landed, with the reference data that the broker holds."""
    transport = transport_of(home, lab, broker)
    vehicles, _ = reference_table(transport.read_all("vehicles"), codec(lab.codec, STREAMS["vehicles"].schema))
    return worked_out(recording, vehicles)


def record(path: Path, messages: int) -> None:
    """A recording of so many positions of the simulated fleet."""
    rows = Measured(Fleet(SEED, VEHICLES, RATE_HZ)).advance(-(-messages // VEHICLES)).head(messages)
    rows.write_parquet(path)


def new_lab(root: Path, brokers: tuple[str, ...], *, nodes: int = 1) -> tuple[Home, Lab]:
    """A home and a lab with so many nodes of its own, on ports that are free."""
    home = Home(root).open()
    chance = random.SystemRandom()
    for _ in range(100):
        base = chance.randrange(20_000, 28_000 - PORTS)
        lab = Lab(port_base=base, brokers=brokers, vehicles=VEHICLES, seed=SEED, rabbitmq_nodes=nodes)
        if all(ports.is_free(port) for port in services.ports_of(lab).values()):
            lab.save(home)
            return home, lab
    raise Unexpected("no free ports for a node")


def undergo(home: Home, lab: Lab, broker: str, plan: Plan, recording: Path) -> tuple[Counted, str]:
    """A node, the application, the plan; what was counted, and the node's version."""
    with DisposableRabbitMQ(cluster=rabbitmq_of(home, lab)) as node:
        version = str(node.ask("/overview")["rabbitmq_version"])
        create_streams(home, lab)
        return Ordeal(home, lab, broker, node, plan, recording).run(), version
