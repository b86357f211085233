"""`streamgauge experiment run all --preset smoke` as a person runs it, on real brokers: every deep dive in turn."""

from __future__ import annotations

import subprocess
import sys

import polars as pl
import pytest

from experiments.deep_dives import DEEP_DIVES
from experiments.findings import UNJUDGED
from experiments.launch import find
from streaming.home import Home

SUITE_S = 1_500  # a loaded machine takes several times the four minutes of a quiet one


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, subprocess.CompletedProcess[str]]:
    """The home with all runs, and how the command ended."""
    home = Home(tmp_path_factory.mktemp("suite") / "home")
    command = [sys.executable, "-m", "orchestration.cli", "experiment", "run", "all", "--preset", "smoke"]
    done = subprocess.run(
        [*command, "--home", str(home.root)], capture_output=True, text=True, timeout=SUITE_S, check=False
    )
    return home, done


@pytest.mark.brokers
@pytest.mark.timeout(SUITE_S)
@pytest.mark.parametrize("name", DEEP_DIVES)
def test_a_deep_dive_measures_its_claims_without_a_failed_trial(
    name: str, suite: tuple[Home, subprocess.CompletedProcess[str]]
) -> None:
    home, command = suite
    dive, done = DEEP_DIVES[name], find(home, name)
    assert done.is_complete, command.stderr
    assert done.measured.troubles()["note"].to_list() == []
    measured = done.findings.filter(pl.col("repetitions") > 0)
    assert measured.height >= 3, done.findings["says"].to_list()
    assert set(done.findings["verdict"]) == {"unknown"}  # one repetition decides nothing
    assert not done.findings["says"].str.starts_with(UNJUDGED).any()
    assert not list((done.folder / "figures").glob("*.txt")), "a figure that is not drawn has no trials"
    assert {path.stem for path in done.figures} <= {each.name for each in dive.figures}
    assert done.figures


@pytest.mark.brokers
@pytest.mark.timeout(SUITE_S)
def test_the_suites_exit_code_says_that_all_went_well(suite: tuple[Home, subprocess.CompletedProcess[str]]) -> None:
    assert suite[1].returncode == 0, suite[1].stderr[-3000:]
