"""The demo in a short form, and the lab's life after it, as a person has it: real brokers, roles and Dagster."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from streaming.cluster import ports

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(900)]
PROGRAM = [sys.executable, "-m", "orchestration.cli"]


class Person:
    """Types commands and reads what they print."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def types(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*PROGRAM, *arguments],
            env={**os.environ, "STREAMGAUGE_HOME": str(self.home), "COLUMNS": "120"},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    def status(self) -> dict[str, Any]:
        return {each["name"]: each for each in json.loads(self.types("status", "--json").stdout)}

    def verify(self) -> dict[str, Any]:
        done = self.types("verify", "--json", "--wait", "120s")
        assert done.returncode == 0, done.stdout + done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def processes(self) -> list[psutil.Process]:
        """Every process that has this home in its environment or command, this one aside."""
        found = []
        for process in psutil.process_iter():
            try:
                told = [*process.environ().values(), *process.cmdline()]
            except (psutil.Error, OSError):
                continue
            if any(str(self.home) in text for text in told):
                found.append(process)
        return found


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    someone = Person(tmp_path_factory.mktemp("demo") / "home")
    yield someone
    someone.types("down")
    for process in someone.processes():
        process.kill()


@pytest.fixture(scope="module")
def shown(person: Person) -> str:
    """What the demo printed."""
    done = person.types("demo", "--seconds", "15", "--port-base", str(_free_base()))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_demo_says_what_landed_and_that_nothing_is_lost(shown: str) -> None:
    assert "nothing lost, nothing doubled" in shown
    for table in ("positions_parquet", "diagnostics_parquet", "vehicles_parquet", "position_means_csv", "alerts_csv"):
        assert table in shown


def test_the_five_lines_that_it_prints_read_the_files(shown: str, person: Person) -> None:
    lines = shown[shown.index("import polars") :].split("\n\n", maxsplit=1)[0]
    assert len(lines.strip().splitlines()) == 5
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "vehicle-001" in done.stdout


def test_dagster_answers_at_the_address_and_knows_the_lineage(shown: str) -> None:
    address = re.search(r"http://127\.0\.0\.1:\d+", shown)
    assert address
    query = {"query": "{assetNodes {assetKey {path} dependencyKeys {path}}}"}
    request = urllib.request.Request(  # noqa: S310 - our own address
        f"{address[0]}/graphql", json.dumps(query).encode(), {"Content-Type": "application/json"}
    )
    deadline = time.monotonic() + 300  # the demo waits 90 s for Dagster, then says that it is not there yet
    nodes: dict[str, set[str]] = {}
    while "kafka/tables/alerts_csv" not in nodes:
        assert time.monotonic() < deadline, nodes
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            nodes = {
                "/".join(node["assetKey"]["path"]): {"/".join(key["path"]) for key in node["dependencyKeys"]}
                for node in json.load(answer)["data"]["assetNodes"]
            }
        time.sleep(0.5)
    assert nodes["kafka/tables/alerts_csv"] == {"kafka/streams/alerts"}
    assert "kafka/streams/position_means" in nodes["kafka/streams/alerts"]


def test_everything_runs_and_listens_on_loopback_only(shown: str, person: Person) -> None:
    status = person.status()
    assert {name: each["state"] for name, each in status.items() if each["state"] != "RUNNING"} == {}
    listening = {
        connection.laddr.ip
        for process in person.processes()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


def test_one_role_stops_and_starts_while_the_rest_runs(shown: str, person: Person) -> None:
    before = person.status()
    assert person.types("stop", "positions-parquet").returncode == 0
    during = person.status()
    assert during["positions-parquet"]["state"] == "STOPPED"
    assert during["means-transformer"]["pid"] == before["means-transformer"]["pid"]
    assert person.types("start", "positions-parquet").returncode == 0
    assert person.status()["positions-parquet"]["state"] == "RUNNING"
    person.verify()


def test_a_taken_port_is_named_before_anything_starts(shown: str, person: Person, tmp_path: Path) -> None:
    base = json.loads((person.home / "lab.json").read_text())["port_base"]
    second = Person(tmp_path / "second")
    done = second.types("up", "--port-base", str(base))
    assert done.returncode == 3
    assert str(base + 91) in done.stderr
    assert "--port-base" in done.stderr
    assert second.processes() == []


def test_after_kill_minus_nine_of_everything_up_recovers_with_nothing_lost(shown: str, person: Person) -> None:
    before = sum(table["rows"] for table in person.verify()["tables"])
    for process in person.processes():
        process.send_signal(signal.SIGKILL)
    done = person.types("up")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum(table["rows"] for table in person.verify()["tables"]) > before


def test_down_leaves_no_process_and_up_to_date_files(shown: str, person: Person) -> None:
    done = person.types("down")
    assert done.returncode == 0, done.stderr
    assert person.processes() == []
    assert person.status() == {}


def _free_base() -> int:
    """A port base whose ports are free."""
    for base in range(40_000, 60_000, 300):
        if all(ports.is_free(base + offset) for offset in (30, 91, 92, 93, 191, 192, 193)):
            return base
    raise AssertionError("no free ports")
