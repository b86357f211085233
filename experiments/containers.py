"""Brokers in containers, controlled from the host through the engine: the same faults as for one's own.

Invariant: only containers of the compose project that was named are touched. No container of the lab has the engine's
socket, so this works from the host's command line only. After heal() every broker runs.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from experiments.faults import stuttering
from experiments.lab import Lab
from experiments.workload import Workload
from streaming.cluster import listeners
from streaming.errors import BrokerUnavailable, SetupError, UsageError

READY_TIMEOUT_S: Final = 120.0
_ENGINE_TIMEOUT_S: Final = 90.0


@dataclass(frozen=True, slots=True)
class ContainerBrokers:
    """The Kafka brokers kafka-1, kafka-2, … of a compose project. Broker numbers are those of the services' names."""

    project: str
    bootstrap_servers: str  # as this machine reaches them, in the order of their numbers

    @property
    def numbers(self) -> tuple[int, ...]:
        """All brokers' ids."""
        return tuple(range(1, len(self.bootstrap_servers.split(",")) + 1))

    @property
    def running(self) -> tuple[int, ...]:
        """Those that are up and not paused."""
        return tuple(number for number in self.numbers if self._state(number) == "running")

    def process_id(self, number: int) -> int:
        """Of a running broker, as this machine counts."""
        return int(self._inspect(number)["State"]["Pid"])

    def data_folder(self, number: int) -> Path:
        """Where the engine keeps a broker's partitions: <topic>-<partition>/. Root's, usually."""
        mounts = {mount["Destination"]: mount["Source"] for mount in self._inspect(number)["Mounts"]}
        return Path(mounts["/var/lib/kafka/data"])

    def log(self, number: int) -> Path:
        """The broker's own log, as the engine keeps it."""
        return Path(self._inspect(number)["LogPath"])

    def kill(self, number: int) -> None:
        """SIGKILL: no goodbye. The engine does not restart what was killed on request."""
        engine("kill", self._container(number))

    def stop(self, number: int) -> None:
        """Controlled shutdown: leaders move away first; returns when the broker is gone."""
        engine("stop", "-t", "60", self._container(number))

    def start(self, number: int) -> None:
        """Start again on the same data; returns when the broker is a member of the cluster."""
        engine("start", self._container(number))
        self._await(number)

    def pause(self, number: int) -> None:
        """The engine freezes the broker: connections stay open, nothing is answered."""
        engine("pause", self._container(number))

    def resume(self, number: int) -> None:
        """Let a frozen broker go on."""
        engine("unpause", self._container(number))

    def settings(self) -> dict[str, dict[str, str]]:
        """Every broker's settings under the broker's own names, for the provenance."""
        return {f"kafka-{number}": _settings(self._inspect(number)["Config"]["Env"]) for number in self.numbers}

    @contextlib.contextmanager
    def slow(self, number: int, *, stop_s: float, run_s: float) -> Iterator[None]:
        """A broker that hangs for `stop_s` after every `run_s`."""
        with stuttering(lambda: self.pause(number), lambda: self.resume(number), stop_s=stop_s, run_s=run_s):
            yield

    def heal(self) -> None:
        """Resume and start what is down, and wait until every broker is a member of the cluster."""
        for number in self.numbers:
            state = self._state(number)
            if state == "paused":
                self.resume(number)
            elif state != "running":
                engine("start", self._container(number))
        for number in self.numbers:
            self._await(number)

    def close(self) -> None:
        """Leave the cluster whole: it is not ours to end."""
        self.heal()

    def _await(self, number: int) -> None:
        """Return when the broker answers, and says that it is a member."""
        host, _, port = self.bootstrap_servers.split(",")[number - 1].rpartition(":")
        deadline = time.monotonic() + READY_TIMEOUT_S
        while number not in listeners.advertised(host, int(port)):
            if time.monotonic() > deadline:
                raise BrokerUnavailable(
                    f"kafka-{number} of {self.project} did not come back in {READY_TIMEOUT_S:.0f} s"
                )
            time.sleep(0.2)

    def _container(self, number: int) -> str:
        """The id of a broker's container; UsageError when the project has none."""
        if number not in self.numbers:
            raise UsageError(f"there is no broker {number}; there are {', '.join(map(str, self.numbers))}")
        found = containers(self.project, f"com.docker.compose.service=kafka-{number}", "--all")
        if not found:
            raise UsageError(f"the compose project {self.project!r} has no container kafka-{number}")
        return found[0]

    def _inspect(self, number: int) -> dict[str, Any]:
        [found] = json.loads(engine("inspect", self._container(number)))
        return dict(found)

    def _state(self, number: int) -> str:
        return str(self._inspect(number)["State"]["Status"])


def engine(*words: str, timeout_s: float = _ENGINE_TIMEOUT_S) -> str:
    """What the engine that the environment or the docker context names answers. SetupError when it can't be asked."""
    try:
        done = subprocess.run(["docker", *words], capture_output=True, text=True, check=True, timeout=timeout_s)
    except FileNotFoundError as error:
        raise SetupError("there is no docker command here", "install the engine's command line") from error
    except subprocess.TimeoutExpired as error:
        raise SetupError(f"docker {words[0]}: no answer in {timeout_s:.0f} s", "is the machine overloaded?") from error
    except subprocess.CalledProcessError as error:
        raise SetupError(
            f"docker {words[0]}: {error.stderr.strip()}", "is the engine up, and does DOCKER_HOST name it?"
        ) from error
    return done.stdout.strip()


def containers(project: str, label: str, *options: str) -> list[str]:
    """Names of a compose project's containers that have the label and run; with `--all` of every one."""
    of_project = f"label=com.docker.compose.project={project}"
    named = "{{.Names}}"
    return engine("ps", *options, "--format", named, "--filter", of_project, "--filter", f"label={label}").split()


def broker_containers(project: str, *options: str) -> list[str]:
    """Names of a compose project's Kafka brokers that run or are paused; with `--all` of every one."""
    named = '{{.Names}} {{.Label "com.docker.compose.service"}}'
    of_project = f"label=com.docker.compose.project={project}"
    found = engine("ps", *options, "--format", named, "--filter", of_project).splitlines()
    pairs = (line.partition(" ")[::2] for line in found)
    return sorted(name for name, service in pairs if re.fullmatch(r"kafka-\d+", service))


def broker_process_ids(project: str) -> list[int]:
    """Of the brokers' containers, as the engine's machine counts."""
    return [state["Pid"] for state in _states(broker_containers(project)).values()]


def revive(project: str, names: Sequence[str]) -> None:
    """Start and resume these brokers of a project, and wait until they are well; those that were removed are left out.

    Returns after READY_TIMEOUT_S in any case: what runs on them waits for a broker longer than this does.
    """
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        states = _states([each for each in broker_containers(project, "--all") if each in names])
        for name, state in states.items():
            if state["Status"] == "paused":
                engine("unpause", name)
            elif state["Status"] != "running":
                engine("start", name)
        if all(each["Status"] == "running" and not _is_starting(each) for each in states.values()):
            return
        time.sleep(0.5)


def _states(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    found = json.loads(engine("inspect", *names)) if names else []
    return {each["Name"].removeprefix("/"): each["State"] for each in found}


def _is_starting(state: Mapping[str, Any]) -> bool:
    return bool(state.get("Health", {}).get("Status") == "starting")


def container_brokers(workload: Workload, project: str, bootstrap_servers: str) -> Callable[[str, Path], Lab]:
    """Opens labs on the brokers of a compose project, which are whole again when the lab is closed."""

    def open_lab(run_id: str, folder: Path) -> Lab:
        brokers = ContainerBrokers(project, bootstrap_servers)
        lab = Lab(run_id, bootstrap_servers, folder, workload, brokers)
        lab.settings["brokers"] = brokers.settings()
        return lab

    return open_lab


def _settings(environment: list[str]) -> dict[str, str]:
    """KAFKA_LOG_DIRS=… as log.dirs, the way the official image reads it."""
    pairs = (line.split("=", 1) for line in environment if line.startswith("KAFKA_"))
    return {name.removeprefix("KAFKA_").lower().replace("_", "."): value for name, value in pairs}
