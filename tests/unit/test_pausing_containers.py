"""An experiment on a compose project: its roles rest, its brokers break, and both run again whatever ends the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from experiments import pausing, provenance
from experiments.containers import engine
from streaming.errors import SetupError
from streaming.home import PROJECT_ROOT, Home
from tests.unit.fake_docker import PROJECT, add, install, states
from tests.unit.test_pausing import wait_until

BROKERS = ("kafka-1", "kafka-2", "kafka-3")
ROLES = ("positions-generator", "positions-parquet")
OTHERS = ("kafka-ui", "kafka-4", "vehicles-generator")  # no broker; stopped by somebody: a broker, a role
RUN = """
import pathlib, signal, sys
from experiments import pausing
from experiments.containers import engine
from streaming.home import Home
folder, home, *beside = sys.argv[1:]
with pausing.at_rest(Home(pathlib.Path(home)), "river", pauses=not beside):
    engine("kill", "river-kafka-2-1")
    engine("pause", "river-kafka-3-1")
    pathlib.Path(folder, "broken").touch()
    signal.pause()
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").open()


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a fake engine's containers: three brokers, two roles, and what must stay as it is."""
    folder = tmp_path / "engine"
    monkeypatch.setenv("PATH", f"{install(folder)}:{os.environ['PATH']}")
    for name in BROKERS:
        add(folder, name)
    for name in ROLES:
        add(folder, name, pausing.APPLICATION)
    for name in OTHERS:
        add(folder, name, pausing.APPLICATION if name.endswith("generator") else "", "exited")
    return folder


def running(docker: Path) -> set[str]:
    return {name for name, status in states(docker).items() if status == "running"}


@pytest.mark.parametrize("beside", [[], ["beside"]])
def test_brokers_and_then_roles_run_again_when_the_run_is_killed_with_its_whole_group(
    home: Home, docker: Path, beside: list[str]
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(docker), str(home.root), *beside], cwd=PROJECT_ROOT, start_new_session=True
    )
    try:
        wait_until(lambda: (docker / "broken").exists() or process.poll() is not None)
        assert process.poll() is None
        assert running(docker) == {"kafka-1", *(ROLES if beside else ())}
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
    wait_until(lambda: running(docker) == {*BROKERS, *ROLES})
    log = (docker / "log").read_text()
    assert f"start {PROJECT}-kafka-2-1\nunpause {PROJECT}-kafka-3-1\n" in log
    assert "kafka-4" not in log, "what somebody had stopped before stays stopped"
    if not beside:
        assert log.endswith(f"start {' '.join(f'{PROJECT}-{name}-1' for name in ROLES)}\n"), "the roles come last"


def test_roles_that_do_not_stop_are_no_pause(home: Home, docker: Path) -> None:
    (docker / "refused").write_text("stop")
    with pytest.raises(SetupError, match="does not rest"), pausing.at_rest(home, PROJECT):
        pytest.fail("it would measure beside them")
    assert running(docker) == {*BROKERS, *ROLES}


def test_roles_in_containers_that_run_on_are_contention(home: Home, docker: Path) -> None:
    with pausing.at_rest(home, PROJECT, pauses=False) as paused:
        found = provenance.contention(home, compose_project=PROJECT)
    assert paused == []
    assert f"2 containers of the live application {PROJECT} share the machine" in found
    with pausing.at_rest(home, PROJECT) as paused:
        assert sorted(paused) == [f"{PROJECT}-{name}-1" for name in ROLES]
        found = provenance.contention(home, compose_project=PROJECT)
    assert not any("live application" in each for each in found)


def test_how_busy_the_processors_are_now_is_contention_not_the_load_that_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (50.0, 50.0, 50.0))
    monkeypatch.setattr("psutil.cpu_percent", lambda _: 5.0)
    assert not [each for each in provenance.contention() if "busy" in each or "load" in each]
    monkeypatch.setattr("psutil.cpu_percent", lambda _: 60.0)
    assert "processors 60 % busy before the run" in provenance.contention()


def test_the_brokers_that_are_measured_are_no_contention(
    home: Home, docker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody's child, as a container's process is.
    orphan = f"{sys.executable} -c 'import signal; signal.pause()' kafka.Kafka > /dev/null 2>&1 & echo $!"
    pid = int(subprocess.run(["sh", "-c", orphan], capture_output=True, text=True, check=True).stdout)
    try:
        every = psutil.process_iter
        monkeypatch.setattr(psutil, "process_iter", lambda *a: (each for each in every(*a) if each.pid == pid))
        assert "1 other broker processes on this machine" in provenance.contention(home)
        add(docker, "kafka-1", pid=pid)
        add(docker, "kafka-2", pid=2**30)  # an engine elsewhere
        assert not [each for each in provenance.contention(home, compose_project=PROJECT) if "broker" in each]
    finally:
        os.kill(pid, signal.SIGKILL)


def test_the_guard_leaves_a_project_that_is_gone_alone(home: Home, docker: Path) -> None:
    with pausing.at_rest(home, PROJECT):
        for path in docker.glob("*.json"):
            path.unlink()
    assert states(docker) == {}
    assert engine("ps", "--all", "--format", "{{.Names}}") == ""
