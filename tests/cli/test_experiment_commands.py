"""`streamgauge experiment` from outside: the lock, an existing cluster, an interruption, a kill and what it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from experiments.run import find_runs, only_run
from streaming.cluster.kafka import DisposableCluster
from streaming.home import Home

PROGRAM = [sys.executable, "-m", "orchestration.cli", "experiment"]
SHORT = ("run", "keys", "--preset", "smoke", "--scene", "growth")
# Long enough to be interrupted on any machine: hundreds of trials.
LONG = ("run", "keys", "--preset", "smoke", "--scene", "growth", "--repetitions", "500")


def call(*arguments: str, home: Path, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, *arguments, "--home", str(home)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def wait_until(condition: Callable[[], object], within_s: float = 120) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "not within the time allowed"
        time.sleep(0.1)


def own_topics(kafka: DisposableCluster) -> list[str]:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    return [name for name in admin.list_topics(timeout=20).topics if name.startswith("lab-")]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return Home(tmp_path / "home").open().root


def test_the_list_has_each_experiment_with_its_factors_and_durations(home: Path) -> None:
    command = [*PROGRAM, "list", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    found = {each["name"]: each for each in json.loads(done.stdout)}
    assert {"consumer_groups", "keys", "retries"} <= set(found)
    keys = found["keys"]
    assert keys["expected_s"]["smoke"] < keys["expected_s"]["standard"] < keys["expected_s"]["thorough"]
    assert keys["scenes"]["growth"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "nothing"], "keys"),
        (["run", "keys", "--preset", "huge"], "--preset huge"),
        (["run", "keys", "--set", "colour=red"], "colour=red"),
        (["run", "keys", "--scene", "nowhere"], "growth"),
        (["run", "all", "--set", "colour=red"], "colour=red"),
        (["show", "latest"], "latest"),
    ],
)
def test_wrong_use_ends_with_2_before_anything_starts(arguments: list[str], says: str, home: Path) -> None:
    done = call(*arguments, home=home)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_while_another_experiment_runs_it_ends_with_5_and_says_which(home: Path) -> None:
    with only_run(Home(home), "retention", 0, lambda _: None):
        done = call(*SHORT, home=home)
    assert done.returncode == 5, done.stderr
    assert "retention" in done.stderr
    assert str(os.getpid()) in done.stderr
    assert "about" in done.stderr, "the expected duration is told before the launch"


@pytest.mark.brokers
@pytest.mark.timeout(600)
def test_on_an_existing_cluster_it_measures_and_leaves_no_topic(home: Path, kafka: DisposableCluster) -> None:
    done = call(*SHORT, "--json", "--bootstrap-servers", kafka.bootstrap_servers, home=home)
    assert done.returncode == 0, done.stderr
    (facts,) = json.loads(done.stdout)
    assert facts["status"] == "complete"
    assert facts["troubles"] == []
    assert any(each["estimate"] is not None for each in facts["findings"])
    wait_until(lambda: not own_topics(kafka))  # a broker may hear of it a little later


@pytest.mark.brokers
@pytest.mark.timeout(600)
def test_what_needs_to_break_brokers_is_skipped_on_somebody_elses(home: Path, kafka: DisposableCluster) -> None:
    skipped = ("run", "replication", "--preset", "smoke", "--scene", "survival", "--json")
    done = call(*skipped, "--bootstrap-servers", kafka.bootstrap_servers, home=home)
    assert done.returncode == 0, done.stderr
    (trouble,) = json.loads(done.stdout)[0]["troubles"]
    assert trouble["metric"] == "scene_skipped"
    assert "not the lab's" in trouble["note"]


@pytest.mark.brokers
@pytest.mark.timeout(600)
def test_an_interrupt_keeps_what_is_measured_and_a_kills_topics_go_with_the_next_run(
    home: Path, kafka: DisposableCluster
) -> None:
    def ended_by(number: signal.Signals) -> int:
        count = len(find_runs(Home(home)))
        process = subprocess.Popen(
            [*PROGRAM, *LONG, "--home", str(home), "--bootstrap-servers", kafka.bootstrap_servers],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: [each for each in find_runs(Home(home))[count:] if each.measurements.height])
            wait_until(lambda: own_topics(kafka))
            process.send_signal(number)
            return process.wait(120)
        finally:
            process.kill()
            process.wait()

    assert ended_by(signal.SIGTERM) == 130
    (kept,) = find_runs(Home(home))
    assert kept.provenance["reason"] == "interrupted by SIGTERM"
    assert kept.measurements.height
    wait_until(lambda: not own_topics(kafka))  # a broker may hear of it a little later

    assert ended_by(signal.SIGKILL) == -signal.SIGKILL
    killed = find_runs(Home(home))[-1]
    assert killed.provenance["status"] == "running"
    done = call(*SHORT, "--bootstrap-servers", kafka.bootstrap_servers, home=home)
    assert done.returncode == 0, done.stderr
    assert (killed.provenance["status"], killed.is_complete) == ("partial", False)
    wait_until(lambda: not own_topics(kafka))  # a broker may hear of it a little later
