"""Roles under both profilers on real brokers: what is kept, what is interrupted, what is left behind (nothing).

A representative few, for each run costs seconds: a generator, a transformer and a sink, scalene and cProfile. All roles
go through the same code; `streamgauge profile all` runs every one of them.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from confluent_kafka.admin import AdminClient

from experiments.profiles import calls, results, runs, scalene_report, stage
from experiments.profiles.runner import Request, profile, survivors
from experiments.profiles.runs import Load, Profiler, Run, Status, Workload
from streaming.cluster.kafka import DisposableCluster
from streaming.home import Home

FEW = Workload(messages=20_000)
SAMPLED = Workload(messages=300_000)  # a second of work and more: a sampling profiler looks every ten milliseconds
PATIENCE_S = 120.0


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").open()


@pytest.mark.brokers
def test_a_sink_under_cprofile_has_a_profile_a_thread_and_nothing_is_left(kafka: DisposableCluster, home: Home) -> None:
    run = profile(home, Request("positions-parquet", profiler=Profiler.CPROFILE, workload=FEW), kafka.bootstrap_servers)
    folder = check(home, kafka, run)
    found = pl.read_parquet(folder / results.CALLS)
    assert set(found["thread"]) >= {"main", "sink"}
    sink = found.filter(pl.col("thread") == "sink", pl.col("function") == "decode")
    assert sink["calls"].sum() >= 1, "the work is on the sink's thread, which a profile of the main one does not see"
    assert (folder / results.FIGURE).exists()
    turns = pl.read_parquet(folder / results.TURNS)
    assert turns.filter(pl.col("thread") == "sink")["records"].sum() == 20_000
    main = turns.filter(pl.col("thread") == "main")
    assert run.loop_s is not None
    assert sum(main["wait_s"].to_list()) + sum(main["work_s"].to_list()) == pytest.approx(run.loop_s, rel=0.02)
    assert calls.top(found, "own_s")["own_s"][0] > 0


@pytest.mark.brokers
def test_a_transformer_under_scalene_has_hot_lines_and_a_page(kafka: DisposableCluster, home: Home) -> None:
    run = profile(
        home, Request("means-transformer", profiler=Profiler.SCALENE, workload=SAMPLED), kafka.bootstrap_servers
    )
    folder = check(home, kafka, run)
    lines = pl.read_parquet(folder / results.LINES)
    assert lines["cpu"].sum() > 0.05, "our own lines are in the samples"
    assert lines["cpu"].sum() <= 1.01
    assert lines.filter(pl.col("file").str.starts_with("streaming/"), pl.col("cpu") > 0).height >= 1
    assert (folder / scalene_report.HTML).stat().st_size > 100_000


@pytest.mark.brokers
def test_a_generator_is_profiled_and_its_turns_are_kept(kafka: DisposableCluster, home: Home) -> None:
    run = profile(home, Request("positions-generator", profiler=Profiler.NONE, workload=FEW), kafka.bootstrap_servers)
    folder = check(home, kafka, run)
    assert pl.read_parquet(folder / results.TURNS)["records"].sum() == 20_000


@pytest.mark.brokers
@pytest.mark.parametrize(("profiler", "number"), [("scalene", signal.SIGTERM), ("cprofile", signal.SIGINT)])
def test_an_interrupted_run_keeps_its_profile_and_leaves_no_process(
    kafka: DisposableCluster, home: Home, profiler: str, number: signal.Signals
) -> None:
    words = [sys.executable, "-m", "orchestration.cli", "profile", "positions-parquet", "--with", profiler, "--json"]
    load = ["--seconds", "300", "--set", f"load={Load.STEADY}", "--set", "rate_hz=500"]
    where = ["--bootstrap-servers", kafka.bootstrap_servers, "--home", str(home.root)]
    process = subprocess.Popen([*words, *load, *where], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        wait_for(lambda: records_taken(home) > 0, process)
        process.send_signal(number)
        said, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == 130
    run = runs.found(home, "latest")
    assert run.status is Status.INTERRUPTED
    assert json.loads(said)["run"]["name"] == run.name
    assert run.committed == run.records > 0, "what it held was committed before it ended"
    folder = check(home, kafka, run, status=Status.INTERRUPTED)
    kept = results.LINES if profiler == "scalene" else results.CALLS
    assert len(pl.read_parquet(folder / kept)) > 0


def check(home: Home, kafka: DisposableCluster, run: Run, *, status: Status = Status.COMPLETE) -> Path:
    """What must hold of every run; its folder."""
    folder = runs.folder_of(home, run)
    assert run.status is status, f"{run.reason}\n{(folder / 'role.log').read_text()[-3000:]}"
    assert replace(runs.found(home, run.name), provenance={}) == replace(run, provenance={}), "run.json says the same"
    if status is Status.COMPLETE:
        assert run.records == run.committed == run.workload.messages
        assert run.cpu_us_per_record is not None
    assert survivors(folder) == []
    assert stage.leftovers(home) == []
    topics = AdminClient({"bootstrap.servers": kafka.bootstrap_servers, "log_level": 0}).list_topics(timeout=20).topics
    left = [name for name in topics if name.startswith(f"profile-{run.name}-")]
    assert left == []
    return folder


def records_taken(home: Home) -> int:
    """How many records the profiled role has taken in so far."""
    for path in runs.root(home).glob(".stage-*/run/positions-parquet.json"):
        try:
            return int(json.loads(path.read_text())["records"])
        except (OSError, ValueError):
            return 0
    return 0


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None, "it ended before it was interrupted"
        time.sleep(0.1)
