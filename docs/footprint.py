"""What each process of a running lab takes: CPU and memory over a minute, written to docs/footprint.json.

    python -m docs.footprint --home HOME [--seconds 60]

Invariant: every number in the pages about CPU and memory comes from this file, and the file says machine, versions,
load and date. Memory is the proportional set size where the kernel tells it (shared pages counted once), at the end;
CPU is processor time over wall time, children included, so 100 % is one core whole.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psutil

from orchestration import services
from streaming.cluster import jars
from streaming.home import PROJECT_ROOT, Home
from streaming.lab import Lab

FOOTPRINT: Final = PROJECT_ROOT / "docs" / "footprint.json"
LIBRARIES: Final = ("dagster", "confluent-kafka", "polars", "pyarrow")


def main() -> None:
    """Measure and write."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--home", type=Path, default=None)
    asked.add_argument("--seconds", type=int, default=60)
    options = asked.parse_args()
    home = Home(options.home.absolute()) if options.home else Home.locate(os.environ)
    measured = measure(home, options.seconds)
    FOOTPRINT.write_text(json.dumps(measured, indent=2) + "\n")
    print(f"{len(measured['services'])} services in {FOOTPRINT}")


def measure(home: Home, seconds: float) -> dict[str, Any]:
    """Each service of the lab that runs now, over `seconds`."""
    lab = Lab.load(home)
    pids = {each.name: each.pid for each in services.status(home) if each.pid}
    load_before = os.getloadavg()[0]
    before, began = {name: cpu_seconds(pid) for name, pid in pids.items()}, time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - began
    rows = [
        {
            "service": name,
            "cpu_percent": round(100 * (cpu_seconds(pid) - before[name]) / passed, 1),
            "memory_mib": round(memory_bytes(pid) / 1024**2),
            "threads": sum(process.num_threads() for process in family(pid)),
        }
        for name, pid in pids.items()
        if psutil.pid_exists(pid)
    ]
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(passed, 1),
        "machine": machine(load_before),
        "versions": versions(),
        "lab": {name: value for name, value in asdict(lab).items() if name in {"vehicles", "rate_hz", "codec", "seed"}},
        "services": rows,
    }


def family(pid: int) -> list[psutil.Process]:
    """The process and what it has started."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def cpu_seconds(pid: int) -> float:
    """Processor time of the process and of its children, those that have ended included."""
    total = 0.0
    for process in family(pid):
        times = process.cpu_times()
        total += times.user + times.system
    own = psutil.Process(pid).cpu_times()
    return total + own.children_user + own.children_system


def memory_bytes(pid: int) -> int:
    """Proportional set size of the process and its children."""
    return sum(process.memory_full_info().pss for process in family(pid))


def machine(load_before: float) -> Mapping[str, Any]:
    """Where this was measured, and how busy the place was."""
    names = {line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")}
    return {
        "processor": ", ".join(sorted(names)) or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 1024**3, 1),
        "system": platform.freedesktop_os_release()["PRETTY_NAME"],
        "load_1_min": [round(load_before, 1), round(os.getloadavg()[0], 1)],
    }


def versions() -> Mapping[str, str]:
    """Of what did the work."""
    return {"python": platform.python_version(), "kafka": jars.KAFKA_VERSION, **{x: version(x) for x in LIBRARIES}}


def _cpuinfo() -> list[str]:
    return Path("/proc/cpuinfo").read_text().splitlines()


if __name__ == "__main__":
    main()
