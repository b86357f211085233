"""The application on one broker as real role processes, and what may befall them: kills, cut connections, a dead node.

Everything is counted as it happens; that nothing was lost or doubled is for verify and for a comparison with the
offline result (see offline.py) to say. Seeded: the same seed kills after the same waits and at the same named moments;
where in its work a process is then, is the machine's affair.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self

from orchestration.injection import DROPPED
from sinks.slots import CHECKPOINTS
from streaming.errors import BrokerUnavailable, RestartRequired, StreamgaugeError
from streaming.home import PROJECT_ROOT, Home
from streaming.lab import KAFKA, service_name
from streaming.topology import ROLES, RoleKind

PROGRAM: Final = (sys.executable, "-m", "orchestration.cli")
MAY_RESTART: Final = frozenset({0, BrokerUnavailable.exit_code, RestartRequired.exit_code, -signal.SIGKILL})
STACKS_S: Final = 2.0  # given to a process that does not end, to write where it is
ACKNOWLEDGES_NEXT: Final = CHECKPOINTS[-1]  # all is durable and visible, and the broker does not know
_STREAMS: Final = frozenset({"positions", "vehicles", "position_means", "late_positions", "alerts"})
# Everything that a replay of positions needs, so that verify finds each table that it expects.
NEEDED: Final = tuple(
    name
    for name, role in ROLES.items()
    if not role.made_by
    and (name == "vehicles-generator" or (role.kind is not RoleKind.GENERATOR and set(role.reads) <= _STREAMS))
)
REPLAY_LOG: Final = "replay.log"
NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


class Unexpected(StreamgaugeError):
    """A process ended, or did not begin, in a way that no fault explains."""


def call(home: Home, *arguments: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a command of the lab to its end."""
    command = [*PROGRAM, *arguments, "--home", str(home.root)]
    return subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)


def verified(home: Home, wait: str = "120s", broker: str = KAFKA) -> tuple[int, dict[str, Any]]:
    """The exit code of verify, and its report. Unexpected when there is none."""
    done = call(home, "verify", "--broker", broker, "--json", "--wait", wait, timeout_s=1_800)
    if not done.stdout:
        raise Unexpected(f"verify said nothing but: {done.stderr[-3000:]}")
    report: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, report


@dataclass
class RoleProcess:
    """One role, kept running until stop(); `kills` are of this harness, `exits` what the process ended with."""

    home: Home
    name: str
    broker: str = KAFKA
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    kills: int = 0
    exits: list[int] = field(default_factory=list)
    is_told: bool = field(default=False, init=False)  # to stop, in this life

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def service(self) -> str:
        """Its name among the lab's processes: of its log and its progress."""
        return service_name(self.broker, self.name)

    def start(self, crash_at: str = "", drop_at: str = "") -> None:
        """Start it; to die, or to lose its connections, at named moments of its commits if any are given."""
        self.home.logs.mkdir(parents=True, exist_ok=True)
        self.is_told = False
        asked = {"STREAMGAUGE_CRASH_AT": crash_at, "STREAMGAUGE_DROP_AT": drop_at}
        with (self.home.logs / f"{self.service}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*PROGRAM, "role", self.name, "--broker", self.broker, "--home", str(self.home.root)],
                cwd=PROJECT_ROOT,
                env={**os.environ, **self.environment, **asked},
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """SIGKILL, whatever it is doing."""
        self._started.kill()
        if self.ended() == -signal.SIGKILL:  # it may just have ended by itself
            self.kills += 1

    def ended(self, timeout_s: float = 60) -> int:
        """Wait for its end. Unexpected: it does not come, or with a code after which no fresh start is right."""
        if not self.ends_within(timeout_s):
            self._give_up()
            raise Unexpected(f"{self.service} did not end within {timeout_s:.0f} s; its log:\n{self.log()[-8000:]}")
        code = self._started.wait()
        self.exits.append(code)
        if code not in MAY_RESTART:
            raise Unexpected(f"{self.service} ended with {code}; see its log:\n{self.log()[-3000:]}")
        return code

    def ends_within(self, timeout_s: float) -> bool:
        """Wait for its end for so long; whether it came."""
        try:
            self._started.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _give_up(self) -> None:
        """Kill it, for it must not outlive this harness; before that it may write its stacks into the log."""
        self._started.send_signal(signal.SIGUSR1)
        self.ends_within(STACKS_S)
        self._started.kill()
        self._started.wait()

    def revive(self) -> None:
        """Start it afresh if it has ended, as the supervisor would; the exit code must be one that asks for it."""
        if not self.is_running():
            self.ended()
            self.start()

    def is_running(self) -> bool:
        """Whether the process lives."""
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """SIGTERM, and a clean end."""
        self.tell_to_stop()
        self.has_stopped()

    def tell_to_stop(self) -> None:
        """SIGTERM, if it lives: once, for a second one kills a process that is just ending."""
        self.wait_until_ready()  # one that was just started does not listen to signals yet
        if self.is_running():
            self._started.terminate()
            self.is_told = True

    def has_stopped(self) -> None:
        """Wait for its end, if it was told to; Unexpected when it is not a clean one."""
        if self.is_told and (code := self.ended()):
            raise Unexpected(f"{self.service} was told to stop and ended with {code}:\n{self.log()[-3000:]}")

    def wait_until_ready(self, timeout_s: float = 60) -> bool:
        """Return when this process has reported progress (True), has ended, or time is up."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self.is_running():
            if self.progress().get("pid") == self._started.pid:
                return True
            time.sleep(0.05)
        return False

    def progress(self) -> dict[str, Any]:
        """What it, or its predecessor, has said last about how far it is; empty before the first time."""
        with contextlib.suppress(OSError, ValueError):
            said: dict[str, Any] = json.loads((self.home.run / f"{self.service}.json").read_text())
            return said
        return {}

    def log(self) -> str:
        """What it has written."""
        return (self.home.logs / f"{self.service}.log").read_text(errors="replace")

    @property
    def drops(self) -> int:
        """How often, in all its lives, connections were cut at the named moment; a moment without any is none."""
        return len(re.findall(rf"{DROPPED} \w+: [1-9]", self.log()))

    @property
    def pid(self) -> int:
        """Of its newest life."""
        return self._started.pid

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            raise Unexpected(f"{self.service} was never started")
        return self.process


@dataclass
class Killer:
    """Kills a role `times` times: after random waits, a sink also at named moments of its commits, in turn.

    A sink also loses its connections between commit and acknowledgement, `drops` times over all its lives. Each life is
    given the time to begin its work. `read_again`: what it had taken in and not committed when it died at a named
    moment, so at least that much is read again by the next. With a `leader`, there are never more kills than that one's
    and one: both come to their end together, and the faster one does not take the processor from the slower.
    """

    role: RoleProcess
    times: int
    seed: int
    mean_wait_s: float = 1.0
    is_sink: bool = False
    drops: int = 0
    longest_life_s: float = 120.0
    leader: Killer | None = None
    read_again: int = 0
    is_over: bool = False  # give_up() was called
    timeline: list[str] = field(default_factory=list)
    failure: Exception | None = None
    _named: int = 0  # named moments that came

    def run(self) -> None:
        """Start the role again and again; it runs at the end, when all that was asked for has happened.

        What goes wrong is left in `failure`, and raised.
        """
        try:
            chance = random.Random(self.seed)  # noqa: S311 - a fault's moment is no secret
            while self.role.kills < self.times:
                if self.is_sink and len(self.timeline) % 2:
                    self._at_a_named_moment(chance)
                else:
                    self._at_random(chance)
            self._start("")
            while self.share < 1.0 and not self.is_over:  # connections are left to be cut
                if not self.role.is_running():
                    self.role.ended()
                    self._start("")
                time.sleep(0.2)
        except Exception as failure:
            self.failure = failure
            raise

    def give_up(self) -> None:
        """Start no further life: the thread that runs this ends when the present one does."""
        self.is_over = True

    @property
    def share(self) -> float:
        """How much of what was asked for has happened, 0 to 1."""
        cut = self.role.drops / self.drops if self.drops else 1.0
        return min(self.role.kills / self.times, cut, 1.0)

    def _at_random(self, chance: random.Random) -> None:
        if not self.role.is_running():
            self._start("")
        self.role.wait_until_ready()
        self._let_the_leader_go_first()
        time.sleep(chance.expovariate(1 / self.mean_wait_s))
        self.role.kill()
        self.timeline.append("at random")

    def _at_a_named_moment(self, chance: random.Random) -> None:
        crash_at = f"{CHECKPOINTS[self._named % len(CHECKPOINTS)]}:{chance.randint(1, 4) + self._cuts_due()}"
        self._start(crash_at)
        if not self.role.ends_within(self.longest_life_s):  # nothing to commit any more: the moment never came
            self.role.kill()
            crash_at = f"at random, {crash_at} did not come"
        elif self.role.ended() == -signal.SIGKILL:
            self.role.kills += 1
            self._named += 1
            self._count_again(crash_at)
        else:
            return  # it asks for a fresh start, for the broker is away: the moment is still to come
        self.timeline.append(crash_at)

    def _let_the_leader_go_first(self) -> None:
        leader = self.leader
        while leader and self.role.kills > leader.role.kills and not (leader.failure or self.is_over):
            self.role.revive()
            time.sleep(0.05)

    def _count_again(self, crash_at: str) -> None:
        if CHECKPOINTS.index(crash_at.partition(":")[0]) >= CHECKPOINTS.index("after_link"):
            return  # it is durable
        said = self.role.progress()
        known = said["records"] - said["committed"] if said.get("pid") == self.role.pid else 0
        self.read_again += max(1, known)  # progress is told once a second; a commit has a record at least

    def _start(self, crash_at: str) -> None:
        if self.is_over:
            raise Unexpected(f"{self.role.service}: its killer was told to give up")
        due = self._cuts_due()
        self.role.start(crash_at, f"{ACKNOWLEDGES_NEXT}:{due}" if due else "")

    def _cuts_due(self) -> int:
        """How many of the drops that are left this life gets: the last one all of them."""
        left = max(0, self.drops - (self.role.drops if self.drops else 0))
        lives = (self.times - self.role.kills) // 2 + 1  # those that end at random may come to none
        return -(-left // lives)


class Application:
    """The roles of one broker's application; started on entry and stopped cleanly at the end.

    `environment` goes to each of them.
    """

    def __init__(
        self, home: Home, broker: str, *, names: Iterable[str] = NEEDED, environment: Mapping[str, str] = NOTHING
    ) -> None:
        self.home, self.broker = home, broker
        self.roles = {name: RoleProcess(home, name, broker, environment) for name in names}

    def __enter__(self) -> Self:
        try:
            for role in self.roles.values():
                role.start()
            for role in self.roles.values():
                while not role.wait_until_ready(120):
                    role.revive()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            for role in () if kind else self.roles.values():
                role.tell_to_stop()  # all at once
            for role in () if kind else self.roles.values():
                role.has_stopped()
        finally:
            self.kill()

    def kill(self) -> None:
        """End all at once."""
        for role in self.roles.values():
            if role.is_running() and role.process is not None:
                role.process.kill()
                role.process.wait()

    def replay(self, recording: Path) -> subprocess.Popen[bytes]:
        """Begin to replay a recording as fast as it goes, its times kept; the process, which logs beside the roles'."""
        words = ["produce", "positions", "--replay", str(recording), "--speed", "max", "--rebase", "keep"]
        with (self.home.logs / REPLAY_LOG).open("ab") as log:
            return subprocess.Popen(
                [*PROGRAM, *words, "--broker", self.broker, "--home", str(self.home.root)],
                cwd=PROJECT_ROOT,
                stdout=log,
                stderr=log,
            )

    def revive(self, names: Iterable[str]) -> None:
        """Start those afresh that have ended and ask for it."""
        for name in names:
            self.roles[name].revive()

    def verified(self, wait: str = "120s") -> tuple[int, dict[str, Any]]:
        """The exit code of verify, and its report."""
        return verified(self.home, wait, self.broker)


def in_thread(killer: Killer) -> threading.Thread:
    """A killer at work."""
    thread = threading.Thread(target=_quietly, args=(killer,), name=f"kills-{killer.role.service}", daemon=True)
    thread.start()
    return thread


def _quietly(killer: Killer) -> None:
    with contextlib.suppress(Exception):  # it is in killer.failure
        killer.run()
