"""Roles as real processes for the fault tests: started by the command line, killed by schedule, started again.

Seeded: the same seed kills after the same waits and at the same named moments; when a process gets there is the
machine's affair.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from orchestration.roles import create_topics
from sinks.slots import CHECKPOINTS
from streaming.errors import BrokerUnavailable, RestartRequired
from streaming.home import Home
from streaming.lab import Lab

PROGRAM = [sys.executable, "-m", "orchestration.cli"]
MAY_RESTART = {0, BrokerUnavailable.exit_code, RestartRequired.exit_code, -signal.SIGKILL}


def call(home: Home, *arguments: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a command of the lab to its end."""
    command = [*PROGRAM, *arguments, "--home", str(home.root)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def verified(home: Home, wait: str = "120s") -> tuple[int, dict[str, Any]]:
    """The exit code of verify, and its report."""
    done = call(home, "verify", "--json", "--wait", wait)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def new_lab(root: Path, bootstrap_servers: str, **settings: Any) -> Home:
    """A home whose lab uses an existing cluster; its topics are there."""
    home = Home(root).open()
    lab = Lab(bootstrap_servers=bootstrap_servers, **settings)
    lab.save(home)
    create_topics(lab)
    return home


@dataclass
class RoleProcess:
    """One role, kept running until stop(); `kills` are of this harness, `exits` what the process ended with."""

    home: Home
    name: str
    process: subprocess.Popen[bytes] | None = None
    kills: int = 0
    exits: list[int] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, crash_at: str = "") -> None:
        """Start it, to die at a named moment of its commits if one is given."""
        self.home.logs.mkdir(parents=True, exist_ok=True)
        with (self.home.logs / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*PROGRAM, "role", self.name, "--home", str(self.home.root)],
                env={**os.environ, "STREAMGAUGE_CRASH_AT": crash_at},
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """SIGKILL, whatever it is doing."""
        assert self.process is not None
        self.process.kill()
        self.ended()
        self.kills += 1

    def ended(self, timeout_s: float = 60) -> int:
        """Wait for its end; the exit code must be one after which a fresh start is right."""
        assert self.process is not None
        code = self.process.wait(timeout_s)
        self.exits.append(code)
        assert code in MAY_RESTART, f"{self.name} ended with {code}; see its log:\n{self.log()[-3000:]}"
        return code

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
        if self.is_running():
            assert self.process is not None
            self.process.terminate()
            assert self.ended() == 0, self.log()[-3000:]

    def wait_until_ready(self, timeout_s: float = 60) -> None:
        """Return when this process has reported progress, or has ended."""
        assert self.process is not None
        path, deadline = self.home.run / f"{self.name}.json", time.monotonic() + timeout_s
        while time.monotonic() < deadline and self.is_running():
            with contextlib.suppress(OSError, ValueError):
                if json.loads(path.read_text())["pid"] == self.process.pid:
                    return
            time.sleep(0.05)

    def log(self) -> str:
        """What it has written."""
        return (self.home.logs / f"{self.name}.log").read_text(errors="replace")


@dataclass
class Killer:
    """Kills a role `times` times: after random waits, a sink also at named moments of its commits, in turn."""

    role: RoleProcess
    times: int
    seed: int
    mean_wait_s: float = 1.0
    is_sink: bool = False
    timeline: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Start the role again and again; it runs at the end. Each life is given the time to begin its work."""
        chance = random.Random(self.seed)
        for number in range(self.times):
            if self.is_sink and number % 2:
                self._at_a_named_moment(chance)
            else:
                self._at_random(chance)
        self.role.start()

    def _at_random(self, chance: random.Random) -> None:
        if not self.role.is_running():
            self.role.start()
        self.role.wait_until_ready()
        threading.Event().wait(chance.expovariate(1 / self.mean_wait_s))
        self.role.kill()
        self.timeline.append("at random")

    def _at_a_named_moment(self, chance: random.Random) -> None:
        crash_at = f"{chance.choice(CHECKPOINTS)}:{chance.randint(1, 4)}"
        self.role.start(crash_at)
        self.role.ended(120)
        self.role.kills += 1
        self.timeline.append(crash_at)
