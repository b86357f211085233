"""Programs that end with their parent, and that slow down when they keep ending."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from streaming.cluster import tether

SLEEPS = [sys.executable, "-c", "import signal; signal.pause()"]
STARTS_ONE = (
    "import os, subprocess, sys, signal\n"
    "from streaming.cluster import tether\n"
    "program = 'import signal; print(1, flush=True); signal.pause()'\n"
    "child = subprocess.Popen(tether.tethered([sys.executable, '-c', program]),\n"
    "    stdout=subprocess.PIPE, env={**os.environ, tether.PARENT: str(os.getpid())})\n"
    "child.stdout.readline(); print(child.pid, flush=True); signal.pause()"
)


def test_the_program_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", STARTS_ONE], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.kill()
        child.wait(10)


def test_it_does_not_start_when_the_parent_had_gone_already() -> None:
    stranger = {**os.environ, tether.PARENT: "1"}
    done = subprocess.run(
        tether.tethered(SLEEPS), env=stranger, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr.strip()) == (1, "tether: the parent has gone")


def test_the_program_takes_the_launchers_place_and_does_not_see_whom_it_is_tied_to() -> None:
    program = [sys.executable, "-c", f"import os; print(os.getpid(), os.environ.get({tether.PARENT!r}))"]
    environment = {**os.environ, tether.PARENT: str(os.getpid())}
    with subprocess.Popen(tether.tethered(program), env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.communicate(timeout=30)[0].split() == [str(process.pid), "None"]


def test_a_missing_program_is_named() -> None:
    command = tether.tethered(["no-such-program"])
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 127
    assert "no-such-program" in done.stderr


def test_a_start_soon_after_the_last_waits_and_a_late_one_does_not(tmp_path: Path) -> None:
    pace = tmp_path / "pace"
    command = tether.tethered([sys.executable, "-c", "pass"], pace=pace)
    pace.write_text(f"{time.time()} 0.2")
    begin = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    assert time.monotonic() - begin >= 1.0
    pace.write_text(f"{time.time() - tether.SHORT_LIFE_S - 1} 16.0")
    subprocess.run(command, check=True, capture_output=True)
    assert pace.read_text().split()[1] == "0.0"


def test_starting_it_loads_nothing_heavy() -> None:
    program = "import sys, streaming.cluster.tether; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert not [name for name in ("psutil", "polars", "jgo", "subprocess", "supervisor") if f"'{name}'" in loaded]
