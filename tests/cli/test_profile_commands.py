"""`streamgauge profile` as a user types it, on the codecs alone: they need no broker, and all else is the same."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.profiles import runs
from streaming.home import Home

PROGRAM = [sys.executable, "-m", "orchestration.cli", "profile"]
MESSAGES = 20_000
PATIENCE_S = 180
NO_BROWSER = {**os.environ, "BROWSER": "", "DISPLAY": "", "WAYLAND_DISPLAY": ""}


def call(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, *arguments, "--home", str(home)]
    told = NO_BROWSER | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=told)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of the codecs, under scalene and then under cProfile, and an undisturbed one at the end."""
    root = Home(tmp_path_factory.mktemp("profiles")).open().root
    for words in (["--with", "both"], ["--with", "none"]):
        done = call("codecs", "--messages", str(MESSAGES), *words, "--json", home=root)
        assert done.returncode == 0, done.stderr
    return root


def listed(home: Path) -> dict[str, str]:
    """Profiler → the run's name."""
    return {str(run.profiler): run.name for run in runs.listed(Home(home))}


def test_the_list_names_every_run_and_how_it_ended(home: Path) -> None:
    names = listed(home)
    assert set(names) == {"scalene", "cprofile", "none"}
    said = json.loads(call("list", "--json", home=home).stdout)
    assert [run["name"] for run in said] == sorted(names.values())
    shown = call("list", home=home).stdout
    assert all(name in shown for name in names.values())
    assert shown.count("complete") == len(names)


@pytest.mark.parametrize("name", ["latest", "codecs"])
def test_a_run_is_seen_by_a_roles_name_or_as_the_latest(home: Path, name: str) -> None:
    done = call("view", name, home=home)
    assert done.returncode == 0, done.stderr
    assert listed(home)["none"] in done.stdout, "the newest of all"
    assert f"{MESSAGES:,} records, {MESSAGES:,} committed" in done.stdout


def test_what_dominates_and_the_dearest_calls_are_shown(home: Path) -> None:
    done = call("view", listed(home)["cprofile"], home=home)
    assert all(word in done.stdout for word in ("what dominates", "encoding", "top 3 by own time", "top 3 by calls"))
    assert "by own time" in done.stdout


def test_the_latest_page_is_opened_though_a_later_run_has_none(home: Path, tmp_path: Path) -> None:
    opened = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o755)
    done = call("view", "--html", home=home, BROWSER=f"{browser} %s")
    page = Path(done.stdout.strip())
    assert (done.returncode, page.parent.name) == (0, listed(home)["scalene"])
    assert opened.read_text().strip() == page.as_uri()
    text = page.read_text()
    assert "streaming/codecs/json.py" in text
    assert not re.search(r'<(script|link)[^>]+(src|href)="https?://', text), "it needs nothing from elsewhere"


def test_without_a_browser_it_is_said_where_the_page_lies(home: Path) -> None:
    done = call("view", "latest", "--html", home=home)
    assert done.returncode == 0
    assert Path(done.stdout.strip()).exists()
    assert "no browser" in done.stderr


def test_scalenes_own_view_is_shown(home: Path) -> None:
    done = call("view", "latest", "--cli", home=home)
    assert done.returncode == 0, done.stderr
    assert "streaming/codecs/json.py" in done.stdout
    assert "Memory usage" in done.stdout


def test_snakeviz_serves_the_calls_of_the_latest_run_that_has_any(home: Path) -> None:
    command = [*PROGRAM, "view", "latest", "--snakeviz", "--home", str(home)]
    told = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": NO_BROWSER}
    with subprocess.Popen(command, **told) as process:  # type: ignore[call-overload]
        try:
            said = (re.search(r"http://(127\.0\.0\.1:\d+)(/\S+)", line) for line in process.stdout)
            address = next(found for found in said if found)
            assert listed(home)["cprofile"] in address[2]
            connection = http.client.HTTPConnection(address[1], timeout=PATIENCE_S)
            connection.request("GET", address[2])
            assert "decode" in connection.getresponse().read().decode()
            connection.close()
        finally:
            process.kill()


def test_two_runs_are_compared_and_what_else_differs_is_said(home: Path) -> None:
    names = listed(home)
    done = call("compare", names["scalene"], names["cprofile"], home=home)
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("encoding", "decoding", "beware: profiler: A scalene, B cprofile"))
    assert "beware: workload" not in done.stdout
    said = json.loads(call("compare", names["cprofile"], names["cprofile"], "--json", home=home).stdout)
    assert all(row["a_us"] == row["b_us"] > 0 for row in said["activities"])


def test_an_undisturbed_run_is_compared_by_its_cost_alone(home: Path) -> None:
    names = listed(home)
    done = call("compare", names["none"], names["cprofile"], home=home)
    assert done.returncode == 0, done.stderr
    assert "CPU µs a record" in done.stdout
    assert "encoding" not in done.stdout, "nothing is known of the other's, which is not 0"


def test_a_run_that_there_is_not_is_refused_with_the_names_of_those_that_there_are(home: Path) -> None:
    done = call("view", "positions-parquet", home=home)
    assert done.returncode == 2
    assert listed(home)["none"] in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["list", "--role", "nobody"], "--role nobody"),
        (["view", "--role", "nobody"], "--role nobody"),
        (["view", "latest", "--html", "--cli"], "one of them at a time"),
        (["view"], "no runs yet"),
    ],
)
def test_what_can_not_be_shown_is_refused_in_words(tmp_path: Path, words: list[str], says: str) -> None:
    done = call(*words, home=tmp_path / "home")
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
