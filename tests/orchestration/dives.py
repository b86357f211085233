"""A deep dive that the control room's Dagster runs: found in its midst, and what must be gone once terminated."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from experiments import provenance
from experiments.lab import BROKERS
from experiments.run import Run, find_runs
from orchestration.measuring import GRACE_S
from tests.orchestration.control_room import ControlRoom, wait_until

SECONDS: Final = GRACE_S + 5  # for a run to end its trial, its brokers and its processes


@dataclass(frozen=True)
class Dive:
    """One that has measured something and goes on: its own run, its processes, its brokers' data."""

    run: Run
    processes: list[psutil.Process]
    data: Path

    def is_alive(self) -> bool:
        """Whether a process of it is there that is more than an entry its parent has yet to read."""
        return any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in self.processes)


def ids(room: ControlRoom) -> set[str]:
    """Of all dives so far."""
    return {each.run_id for each in find_runs(room.home)}


def in_its_midst(room: ControlRoom, run_id: str, before: set[str]) -> Dive:
    """Dagster's run's dive, which is none of those before, once it has measured something."""
    room.wait_for(run_id, "STARTED")

    def measuring() -> list[Run]:
        return [each for each in find_runs(room.home) if each.run_id not in before and each.measurements.height]

    found = wait_until(lambda: measuring() or room.status(run_id) != "STARTED")
    assert room.status(run_id) == "STARTED", room.says(run_id)[-3000:]
    assert isinstance(found, list)
    (run,) = found
    (launched,) = [each for each in room.started() if "experiments.launch" in each.cmdline()]
    worker = launched.parent()
    assert worker is not None
    processes = [worker, *worker.children(recursive=True)]
    assert sum("kafka.Kafka" in each.cmdline() for each in processes) == 3
    data = (run.folder / BROKERS).readlink()
    assert data.is_dir()
    return Dive(run, processes, data)


def is_gone(room: ControlRoom, run_id: str, dive: Dive) -> None:
    """Just terminated: no process, no topic (they were its brokers'), no folder; what was measured is kept."""
    began = time.monotonic()
    room.wait_for(run_id, "CANCELED", within_s=2 * SECONDS)
    wait_until(lambda: not dive.is_alive(), within_s=SECONDS)
    wait_until(lambda: not dive.data.exists(), within_s=SECONDS)
    assert time.monotonic() - began < SECONDS
    assert not (dive.run.folder / BROKERS).is_symlink()
    assert dive.run.provenance["status"] == provenance.PARTIAL
    assert dive.run.provenance["reason"] == "interrupted by SIGTERM"
    assert dive.run.measurements.height
