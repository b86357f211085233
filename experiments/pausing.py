"""The live application of a home rests while an experiment measures on the same machine, and goes on afterwards.

Its roles are stopped in order, by the lab's supervisor or by the container engine; brokers and Dagster stay up.
Invariant: what was paused is started again when the run's process ends, by whatever signal: a guard in a process of its
own waits for just that. In containers the run breaks brokers that are not its own, so there the guard first lets those
run again that ran before, also where the roles were not to rest.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from experiments.containers import broker_containers, containers, engine, revive
from streaming.cluster.supervision import Supervisor
from streaming.errors import SetupError, StreamgaugeError
from streaming.home import Home

APPLICATION: Final = "application"  # the supervisor's group of the roles, and their containers' label
_LABEL: Final = f"streamgauge.group={APPLICATION}"
_PATIENCE_S: Final = 240.0
_CONTAINERS: Final = "--containers"  # the guard is told a compose project, not a home
_BESIDE: Final = "--beside"  # and that its roles run on
_STOP_S: Final = "60"  # the containers' own grace period


class Application(Protocol):
    """The roles of a lab, wherever they run."""

    def live(self) -> list[str]:
        """The names of the roles that run now; none when the lab is down."""

    def stop(self, names: Sequence[str]) -> None:
        """End these in order: each commits what it holds."""

    def start(self, names: Sequence[str]) -> None:
        """Start these again, unless the lab has been taken down meanwhile."""


class Processes:
    """The roles that a home's supervisor runs on this machine."""

    def __init__(self, home: Home) -> None:
        self._supervisor = Supervisor(home.root, run=home.run, logs=home.logs)

    def live(self) -> list[str]:
        """As Application."""
        if not self._supervisor.is_up:
            return []
        return [each.name for each in self._supervisor.states() if each.group == APPLICATION and each.pid]

    def stop(self, names: Sequence[str]) -> None:
        """As Application."""
        self._supervisor.stop(names)

    def start(self, names: Sequence[str]) -> None:
        """As Application."""
        if self._supervisor.is_up:
            self._supervisor.start(names)


class Containers:
    """The roles' containers of a compose project, seen from the engine's host, and its brokers that run at first.

    Its roles count as not live where they are not to rest (`pauses` is False).
    """

    def __init__(self, project: str, *, pauses: bool = True) -> None:
        self._project, self._pauses = project, pauses
        self._brokers = broker_containers(project)

    def live(self) -> list[str]:
        """As Application."""
        return live_containers(self._project) if self._pauses else []

    def stop(self, names: Sequence[str]) -> None:
        """As Application."""
        if names:
            engine("stop", "-t", _STOP_S, *names, timeout_s=_PATIENCE_S)

    def start(self, names: Sequence[str]) -> None:
        """As Application; the brokers before the roles."""
        try:
            revive(self._project, self._brokers)
        finally:
            left = set(names) & set(containers(self._project, _LABEL, "--all"))
            if left:
                engine("start", *sorted(left), timeout_s=_PATIENCE_S)


def live_roles(home: Home) -> list[str]:
    """The roles of this home's lab that run now on this machine; none when the lab is down."""
    return Processes(home).live()


def live_containers(project: str) -> list[str]:
    """The containers of a compose project's roles that run now."""
    return containers(project, _LABEL)


@contextlib.contextmanager
def at_rest(home: Home, compose_project: str | None = None, *, pauses: bool = True) -> Iterator[list[str]]:
    """The live roles rest within, also those of a compose project; gives their names, none when nothing runs.

    Where not `pauses`, the roles run on, and only the compose project's brokers are whole again afterwards. SetupError
    when roles run on that should rest.
    """
    with contextlib.ExitStack() as stack:
        paused: list[str] = []
        processes = Processes(home)
        if pauses and processes.live():
            paused += stack.enter_context(_guarded(processes, str(home.root)))
        if compose_project is not None:
            roles, words = Containers(compose_project, pauses=pauses), [] if pauses else [_BESIDE]
            paused += stack.enter_context(_guarded(roles, _CONTAINERS, compose_project, *words))
        yield paused


@contextlib.contextmanager
def _guarded(application: Application, *words: str) -> Iterator[list[str]]:
    are_live = bool(application.live())
    # In a session of its own: what ends the run's process group must not end the guard.
    with subprocess.Popen(
        [sys.executable, "-m", "experiments.pausing", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as guard:
        assert guard.stdin is not None and guard.stdout is not None  # noqa: S101, PT018 - for the type checker
        paused: list[str] = []
        try:
            named = guard.stdout.readline()
            paused = json.loads(named or "[]")
            if not named or (are_live and not paused):
                raise SetupError(
                    "the live application does not rest: see above what its guard said",
                    "stop its roles yourself, or let them run on and the findings say so: --beside",
                )
            yield paused
        finally:
            guard.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                guard.wait(_PATIENCE_S)
            if guard.poll() != 0:  # somebody has killed the guard
                guard.kill()
                application.start(paused)


def main() -> None:
    """The guard: stop the live roles, name them, wait for the end of standard input, start them again."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    words = sys.argv[1:]
    application: Application = Processes(Home(Path(words[0])))
    if words[0] == _CONTAINERS:
        application = Containers(words[1], pauses=_BESIDE not in words)
    names = application.live()
    try:
        application.stop(names)
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(names), flush=True)
        sys.stdin.read()
    finally:
        application.start(names)


if __name__ == "__main__":
    try:
        main()
    except StreamgaugeError as error:
        print(f"the guard of the live application: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
