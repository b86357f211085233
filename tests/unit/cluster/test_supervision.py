"""A supervisor with small real programs: order, crashes, exit codes, orphans."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from streaming.cluster.supervision import Service, Supervisor

RUNS_ON = "import signal, pathlib; pathlib.Path('began').touch(); signal.pause()"
WITH_CHILD = f"import subprocess, sys, signal; subprocess.Popen([sys.executable, '-c', {RUNS_ON!r}]); signal.pause()"


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    made = Supervisor(tmp_path, run=tmp_path / "run", logs=tmp_path / "logs")
    yield made
    made.shut_down()


def service(tmp_path: Path, name: str, program: str, **options: object) -> Service:
    script = tmp_path / f"{name}.py"
    script.write_text(program)
    command = (sys.executable, str(script))
    return Service(name, "programs", command, tmp_path, tmp_path / "logs" / f"{name}.log", **options)  # type: ignore[arg-type]


def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)


def state(supervisor: Supervisor, name: str = "one") -> str:
    return next(each.state for each in supervisor.states() if each.name == name)


def pid(supervisor: Supervisor, name: str = "one") -> int:
    found = next(each.pid for each in supervisor.states() if each.name == name)
    assert found
    return found


def test_nothing_starts_before_it_is_told_to_and_states_keep_the_order(tmp_path: Path, supervisor: Supervisor) -> None:
    supervisor.launch([service(tmp_path, name, RUNS_ON) for name in ("zebra", "ant")], {})
    assert [(each.name, each.state) for each in supervisor.states()] == [("zebra", "STOPPED"), ("ant", "STOPPED")]
    supervisor.start(["ant"])
    until(lambda: state(supervisor, "ant") == "RUNNING")
    assert state(supervisor, "zebra") == "STOPPED"


def test_a_stop_lets_the_program_finish_what_it_does(tmp_path: Path, supervisor: Supervisor) -> None:
    program = (
        "import signal, time, pathlib, sys\n"
        "def end(*_): time.sleep(1); pathlib.Path('finished').touch(); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end); pathlib.Path('began').touch()\n"
        "while True: signal.pause()"
    )
    supervisor.launch([service(tmp_path, "one", program)], {})
    supervisor.start(["one"])
    until((tmp_path / "began").exists)
    supervisor.stop(["one"])
    assert (tmp_path / "finished").exists()
    assert state(supervisor) == "STOPPED"


def test_a_program_that_does_not_stop_is_killed_after_its_time(tmp_path: Path, supervisor: Supervisor) -> None:
    program = (
        "import signal, pathlib; signal.signal(signal.SIGTERM, signal.SIG_IGN); pathlib.Path('began').touch()\n"
        "while True: signal.pause()"
    )
    supervisor.launch([service(tmp_path, "one", program, stop_timeout_s=1)], {})
    supervisor.start(["one"])
    until((tmp_path / "began").exists)
    process = psutil.Process(pid(supervisor))
    begin = time.monotonic()
    supervisor.stop(["one"])
    assert not process.is_running()
    assert time.monotonic() - begin < 20  # supervisord would give it 30 s


def test_a_killed_program_is_started_again_after_a_pause(tmp_path: Path, supervisor: Supervisor) -> None:
    supervisor.launch([service(tmp_path, "one", RUNS_ON, final_exit_codes=(0, 65))], {})
    supervisor.start(["one"])
    until((tmp_path / "began").exists)
    first = pid(supervisor)
    os.kill(first, signal.SIGKILL)
    until(lambda: state(supervisor) == "BACKOFF")
    until(lambda: state(supervisor) == "RUNNING")
    assert pid(supervisor) != first


def test_the_pauses_between_crashes_grow(tmp_path: Path, supervisor: Supervisor) -> None:
    program = "import time; print(time.time(), file=open('starts', 'a')); raise SystemExit(75)"
    supervisor.launch([service(tmp_path, "one", program, final_exit_codes=(0, 65))], {})
    supervisor.start(["one"])
    starts = tmp_path / "starts"
    until(lambda: starts.exists() and len(starts.read_text().split()) >= 3)
    first, second, third = map(float, starts.read_text().split()[:3])
    assert second - first >= 1.0
    assert third - second >= 2.0


@pytest.mark.parametrize("code", [0, 2, 3, 65])
def test_an_exit_that_needs_a_person_is_not_restarted(tmp_path: Path, supervisor: Supervisor, code: int) -> None:
    program = f"print('x', file=open('starts', 'a')); raise SystemExit({code})"
    supervisor.launch([service(tmp_path, "one", program, final_exit_codes=(0, 2, 3, 65))], {})
    supervisor.start(["one"])
    until(lambda: state(supervisor) == "EXITED")
    until(lambda: time.time() - (tmp_path / "starts").stat().st_mtime > 2)  # a restart would have come after 1 s
    assert (tmp_path / "starts").read_text().count("x") == 1
    assert supervisor.states()[0].exit_code == code


def test_shutting_down_ends_children_of_children(tmp_path: Path, supervisor: Supervisor) -> None:
    supervisor.launch([service(tmp_path, "one", WITH_CHILD)], {})
    supervisor.start(["one"])
    until(lambda: len(supervisor.survivors()) == 3)
    found = supervisor.survivors()
    socket = Path((tmp_path / "run" / "socket").read_text())
    supervisor.shut_down()
    assert not [process for process in found if process.is_running()]
    assert not socket.parent.exists()
    assert not supervisor.is_up


def test_killing_the_supervisor_ends_its_services_and_what_remains_is_found(
    tmp_path: Path, supervisor: Supervisor
) -> None:
    supervisor.launch([service(tmp_path, "one", WITH_CHILD), service(tmp_path, "two", RUNS_ON)], {})
    supervisor.start(["one", "two"])
    until(lambda: len(supervisor.survivors()) == 4)
    (boss,) = supervisor.pids() - {pid(supervisor, "one"), pid(supervisor, "two")}
    os.kill(boss, signal.SIGKILL)
    until(lambda: len(supervisor.survivors()) == 1)  # the child of a child is not tethered
    assert supervisor.end_survivors() == 1
    supervisor.launch([service(tmp_path, "one", RUNS_ON)], {})
    assert state(supervisor) == "STOPPED"


def test_names_with_percent_signs_quotes_and_spaces_arrive_as_they_are(tmp_path: Path) -> None:
    root = tmp_path / "50% of a 'home'"
    root.mkdir()
    supervisor = Supervisor(root, run=root / "run", logs=root / "logs")
    value = 'a "b" \\ %(c)s, d=e'
    program = "import os; open('value', 'w').write(os.environ['VALUE'])"
    try:
        supervisor.launch([service(root, "one", program, environment={"VALUE": value}, final_exit_codes=(0,))], {})
        supervisor.start(["one"])
        until(lambda: state(supervisor) == "EXITED")
        assert (root / "value").read_text() == value
    finally:
        supervisor.shut_down()
