"""The command line from outside: quick to start, clear about wrong use, honest exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import verdicts
from experiments.verdicts import Verdict
from streaming.home import Home

PROGRAM = [sys.executable, "-m", "orchestration.cli"]


def call(*arguments: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, *arguments, *(["--home", str(home)] if home else [])]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


COMMANDS = ["demo", "up", "down", "status", "logs", "start", "stop", "restart", "doctor", "reset"]
COMMANDS += ["produce", "transform", "sink", "verify"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    done = call(command, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_the_overview_names_every_command() -> None:
    done = call("--help")
    assert all(command in done.stdout for command in COMMANDS)


def test_starting_up_imports_neither_dagster_nor_a_client() -> None:
    program = (
        "import sys, orchestration.cli\n"
        "heavy = {'dagster', 'confluent_kafka', 'pika', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported at start-up: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_role_processes_do_not_import_dagster() -> None:
    program = (
        "import sys, orchestration.roles, orchestration.services, orchestration.demo\n"
        "sys.exit('imported dagster' if 'dagster' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sink", "nothing-parquet"], "positions-parquet"),
        (["transform", "nothing"], "means-transformer"),
        (["produce", "nothing"], "positions-generator"),
        (["produce", "positions", "--rate", "fast"], "--rate fast"),
        (["produce", "positions", "--replay", "no-such-file.csv"], "no-such-file.csv"),
        (["produce", "positions", "--for", "a while"], "a while"),
        (["up", "--port-base", "80"], "--port-base 80"),
        (["logs", "nobody"], "nobody"),
        (["start", "nobody"], "the lab is down"),
    ],
)
def test_wrong_use_ends_with_2_and_names_the_culprit(arguments: list[str], says: str, tmp_path: Path) -> None:
    done = call(*arguments, home=tmp_path / "home")
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_no_broker_ends_with_4_and_the_address(tmp_path: Path) -> None:
    done = call("produce", "positions", "--bootstrap-servers", "127.0.0.1:9", "--messages", "1", home=tmp_path / "home")
    assert done.returncode == 4, done.stderr
    assert "127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_home_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "format-version").write_text("999\n")
    done = call("status", home=tmp_path)
    assert done.returncode == 3
    assert "999" in done.stderr


def test_status_of_a_lab_that_is_down_is_an_empty_list(tmp_path: Path) -> None:
    done = call("status", "--json", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_status_names_a_regression_that_stands_and_keeps_it_out_of_the_json(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").open()
    worse = Verdict(verdicts.REGRESSION, "positions-csv on kafka", True, "9 µs a record, before: 3", "streamgauge up")
    verdicts.keep(home, worse)
    done = call("status", home=home.root)
    assert done.returncode == 0, done.stderr
    assert "profile regression: positions-csv on kafka: 9 µs a record" in done.stdout
    quiet = call("status", "--json", home=home.root)
    assert json.loads(quiet.stdout) == []
    assert "profile regression" in quiet.stderr
    verdicts.keep(home, replace(worse, is_bad=False))
    assert "regression" not in call("status", home=home.root).stdout


def test_reset_deletes_only_after_a_yes(tmp_path: Path) -> None:
    home = tmp_path / "home"
    call("status", home=home)
    refused = subprocess.run(
        [*PROGRAM, "reset", "--home", str(home)], input="n\n", capture_output=True, text=True, timeout=60, check=False
    )
    assert refused.returncode == 1
    assert home.exists()
    assert call("reset", "--yes", home=home).returncode == 0
    assert not home.exists()


def test_reset_refuses_a_folder_that_is_no_home(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    done = call("reset", "--yes", home=tmp_path)
    assert done.returncode == 3
    assert (tmp_path / "precious.txt").read_text() == "mine"
