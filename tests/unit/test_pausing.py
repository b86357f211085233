"""The live application rests while an experiment measures, and goes on afterwards, whatever ends the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from experiments import pausing
from experiments.run import Progress, find_runs
from streaming.cluster.supervision import Service, Supervisor
from streaming.home import PROJECT_ROOT, Home
from tests.unit.test_experiment_engine import start

ROLES = ("generator", "sink")
RUN = """
import pathlib, signal, sys
from streaming.home import Home
from tests.unit.test_experiment_engine import start
def stay(progress):
    if progress.phase == "measuring":
        pathlib.Path(sys.argv[1], "measuring").touch()
        signal.pause()
start(Home(pathlib.Path(sys.argv[1])).root, progress=stay)
"""


def wait_until(condition: Callable[[], object], within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "not within the time allowed"
        time.sleep(0.05)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").open()


@pytest.fixture
def lab(home: Home) -> Iterator[Supervisor]:
    """A lab of small processes: two roles, a broker that must stay, and a role that somebody has stopped."""
    made = Supervisor(home.root, run=home.run, logs=home.logs)

    def service(name: str, group: str) -> Service:
        wait = (sys.executable, "-c", "import signal; signal.pause()")
        return Service(name, group, wait, home.root, home.logs / f"{name}.log")

    roles = [service(name, pausing.APPLICATION) for name in (*ROLES, "stopped")]
    try:
        made.launch([service("broker", "brokers"), *roles], {})
        made.start(["broker", *ROLES])
        yield made
    finally:
        made.shut_down()


def running(lab: Supervisor) -> set[str]:
    return {each.name for each in lab.states() if each.pid}


def test_roles_rest_while_it_measures_and_go_on_afterwards(home: Home, lab: Supervisor) -> None:
    seen: list[set[str]] = []

    def look(progress: Progress) -> None:
        if progress.phase == "measuring":
            seen.append(running(lab))

    done = start(home.root, progress=look)
    assert done.is_complete
    assert seen
    assert all(each == {"broker"} for each in seen)
    assert running(lab) == {"broker", *ROLES}, "what somebody had stopped before stays stopped"
    assert done.provenance["paused"] == list(ROLES)
    assert not any("live application" in each for each in done.provenance["contention"])


def test_a_run_beside_the_live_application_says_so_in_its_findings(home: Home, lab: Supervisor) -> None:
    before = {each.name: each.pid for each in lab.states()}
    done = start(home.root, pauses=False)
    assert {each.name: each.pid for each in lab.states()} == before
    assert "2 roles of this home's live application share the machine" in done.findings["contention"].item()
    assert done.provenance["paused"] == []


def test_roles_go_on_when_the_run_is_killed_with_its_whole_group(home: Home, lab: Supervisor) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(home.root)], cwd=PROJECT_ROOT, start_new_session=True, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: (home.root / "measuring").exists() or process.poll() is not None)
        assert process.poll() is None
        assert running(lab) == {"broker"}
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
    wait_until(lambda: running(lab) == {"broker", *ROLES})
    assert find_runs(home)[0].provenance["paused"] == list(ROLES)


def test_a_killed_guard_costs_the_pause_nothing(home: Home, lab: Supervisor) -> None:
    def kill_the_guard(progress: Progress) -> None:
        if progress.phase == "measuring" and progress.done == 0:
            guards = subprocess.run(
                ["pgrep", "-f", f"experiments.pausing {home.root}"], capture_output=True, text=True, check=True
            )
            for each in guards.stdout.split():
                os.kill(int(each), signal.SIGKILL)

    assert start(home.root, progress=kill_the_guard).is_complete
    assert running(lab) == {"broker", *ROLES}


def test_a_lab_that_is_down_is_left_alone(home: Home) -> None:
    with pausing.at_rest(home) as paused:
        assert paused == []
    assert json.dumps(start(home.root).provenance["paused"]) == "[]"
