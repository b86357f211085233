"""The contenders by name: how each is installed, started with the same job, and called by the cluster.

Invariant: all of them read, write and look up the same topics, commit equally often, and are static members of their
group, so that one that comes back after a kill need not wait for its own old session to end.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from experiments.processors import kafka_streams, quix
from streaming.cluster import jars, tether
from streaming.transformers.windows import LATENESS_US

OURS, KAFKA_STREAMS, QUIX = "Streamgauge", "Kafka Streams", "Quix Streams"
AT_LEAST_ONCE: Final = ", at least once"
ROLES: Final = ("means-transformer", "alerts-transformer")
COMMIT_INTERVAL_MS: Final = 500  # the application's own
_INSTALL: Final = MappingProxyType({KAFKA_STREAMS: kafka_streams.install, QUIX: quix.install})


@dataclass(frozen=True, slots=True)
class Job:
    """One contender's work. `system` is one of the names above; the strangers' may end in AT_LEAST_ONCE.

    `application` is its name on the cluster, with which all topics and groups begin or that they contain; `state` a
    folder for its local state and its log. `is_prompt`: Kafka Streams without its cache of records.
    """

    system: str
    bootstrap_servers: str
    application: str
    state: Path
    is_prompt: bool = False

    @property
    def group(self) -> str:
        """The group that reads the positions."""
        return self.topic(ROLES[0]) if self.system == OURS else self.application

    @property
    def log(self) -> Path:
        """What its processes say."""
        return self.state / "log.txt"

    def topic(self, stream: str) -> str:
        """The topic of an application's stream."""
        return f"{self.application}-{stream}"

    def is_state(self, topic: str) -> bool:
        """Whether it keeps its state in this topic."""
        return self.application in topic and (topic.endswith("_state") or "changelog" in topic)


def install(system: str, progress: Callable[[str], None] = lambda _: None) -> None:
    """Make the contender ready to start; does nothing when it is. SetupError saying why when that can't be done."""
    _INSTALL.get(system.removesuffix(AT_LEAST_ONCE), lambda _: None)(progress)


def start(job: Job) -> list[subprocess.Popen[bytes]]:
    """Its processes. They end with this one at the latest."""
    job.state.mkdir(parents=True, exist_ok=True)
    name = job.system.removesuffix(AT_LEAST_ONCE)
    if name == OURS:
        commands = [_application(job, role) for role in ROLES]
    else:
        commands = [{KAFKA_STREAMS: kafka_streams, QUIX: quix}[name].command(_words(job) | settings(job))]
    return [_start(command, job.log) for command in commands]


def settings(job: Job) -> dict[str, Any]:
    """What a stranger's process is told beyond the topics; nothing for our own, which take their defaults."""
    is_exact = not job.system.endswith(AT_LEAST_ONCE)
    if job.system.startswith(QUIX):
        guarantee = "exactly-once" if is_exact else "at-least-once"
        return {"guarantee": guarantee, "commit_interval_ms": COMMIT_INTERVAL_MS}
    if not job.system.startswith(KAFKA_STREAMS):
        return {}
    given = {
        "application.id": job.application,
        "bootstrap.servers": job.bootstrap_servers,
        "processing.guarantee": "exactly_once_v2" if is_exact else "at_least_once",
        "commit.interval.ms": COMMIT_INTERVAL_MS,
        "state.dir": str(job.state / "rocksdb"),
        "group.instance.id": "only",
    }
    return {"settings": given | ({"statestore.cache.max.bytes": 0} if job.is_prompt else {})}


def described(job: Job) -> dict[str, Any]:
    """Its version and what it is told, for a run's provenance: without what is of this run or machine only."""
    told = settings(job)
    told |= told.pop("settings", {})
    version = {KAFKA_STREAMS: jars.KAFKA_VERSION, QUIX: quix.REQUIREMENT}.get(job.system.removesuffix(AT_LEAST_ONCE))
    own = ("application.id", "bootstrap.servers", "state.dir")
    return ({"version": version} if version else {}) | {name: told[name] for name in told if name not in own}


def _words(job: Job) -> dict[str, Any]:
    streams = {"positions": "positions", "vehicles": "vehicles", "means": "position_means", "alerts": "alerts"}
    topics = {word: job.topic(stream) for word, stream in (streams | {"late": "late_positions"}).items()}
    common = {"bootstrap_servers": job.bootstrap_servers, "application": job.application}
    return common | topics | {"state": str(job.state / "rocksdb"), "grace_ms": LATENESS_US // 1000}


def _application(job: Job, role: str) -> list[str]:
    words: Mapping[str, str] = {
        "role": role,
        "bootstrap_servers": job.bootstrap_servers,
        "prefix": job.topic(""),
        "state": str(job.state),
    }
    return [sys.executable, "-m", "experiments.processors.application", json.dumps(words)]


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as said:
        return subprocess.Popen(
            tether.tethered(command),
            env=tether.environment(),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
