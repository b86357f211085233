"""The harness leaves no process behind, and says where one stood that did not end."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestration.ordeal import RoleProcess, Unexpected
from streaming.home import Home

_DEAF = """
import faulthandler, signal, threading
signal.signal(signal.SIGTERM, signal.SIG_IGN)
faulthandler.register(signal.SIGUSR1, all_threads=True)

def where_it_stands():
    print("deaf", flush=True)
    threading.Event().wait()

where_it_stands()
"""


def test_a_role_that_does_not_end_is_killed_and_its_stacks_are_in_the_error(tmp_path: Path) -> None:
    role = RoleProcess(Home(tmp_path).open(), "alerts-transformer")
    role.home.logs.mkdir()
    with (role.home.logs / "alerts-transformer.log").open("wb") as log:
        role.process = subprocess.Popen([sys.executable, "-c", _DEAF], stdout=subprocess.PIPE, stderr=log)
    assert role.process.stdout
    with role.process.stdout as said:
        assert said.readline() == b"deaf\n"
    role.process.terminate()
    with pytest.raises(Unexpected, match=r"did not end within 0 s(.|\n)*in where_it_stands"):
        role.ended(timeout_s=0.2)
    assert role.process.returncode == -signal.SIGKILL
