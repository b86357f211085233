"""Roles under both profilers on real brokers: what is kept, what is interrupted, what is left behind (nothing).

Every role once under each profiler, in a short form, on the three brokers in turns; `streamgauge profile all --broker
all --with both` is every one of them on each.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import cycle, product
from pathlib import Path

import polars as pl
import pytest
from confluent_kafka.admin import AdminClient

from experiments.profiles import calls, results, runs, scalene_report, stage, timing
from experiments.profiles.corners import RabbitCorner
from experiments.profiles.runner import Request, profile, survivors
from experiments.profiles.runs import Load, Profiler, Run, Status, Workload
from streaming.cluster import guests
from streaming.cluster.kafka import DisposableCluster
from streaming.cluster.rabbitmq import DisposableRabbitMQ
from streaming.errors import SetupError
from streaming.home import Home
from streaming.lab import BROKERS, KAFKA, QUEUES
from streaming.topology import ROLES, Stream, role
from streaming.transports.rabbitmq import queue_publisher

FEW = Workload(messages=20_000)
SAMPLED = Workload(messages=300_000)  # a second of work and more: a sampling profiler looks every ten milliseconds
PATIENCE_S = 120.0
GAP = 0.02  # of a loop's time, at most, may be in no turn
SAMPLERS = (Profiler.SCALENE, Profiler.CPROFILE)


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
    activities = pl.read_parquet(folder / results.ACTIVITIES)
    assert activities.filter(activity="other")["share"].sum() < 0.2, activities  # no thread's wait passes for work
    assert (folder / scalene_report.HTML).stat().st_size > 100_000


@pytest.mark.brokers
def test_a_generator_is_profiled_and_its_turns_are_kept(kafka: DisposableCluster, home: Home) -> None:
    run = profile(home, Request("positions-generator", profiler=Profiler.NONE, workload=FEW), kafka.bootstrap_servers)
    folder = check(home, kafka, run)
    assert pl.read_parquet(folder / results.TURNS)["records"].sum() == 20_000


# Every role under both profilers, each time on another broker.
RUNS = [(*each, broker) for each, broker in zip(product(SAMPLERS, ROLES), cycle(BROKERS), strict=False)]


@pytest.mark.brokers
@pytest.mark.parametrize(("profiler", "name", "broker"), RUNS)
def test_every_role_is_profiled_by_both_profilers_and_leaves_its_tables_and_nothing_else(
    kafka: DisposableCluster, rabbitmq: DisposableRabbitMQ, home: Home, broker: str, name: str, profiler: Profiler
) -> None:
    hosts, at = virtual_hosts(rabbitmq), kafka.bootstrap_servers if broker == KAFKA else rabbitmq
    run = profile(home, Request(name, broker, profiler, Workload(messages=2_000)), at)
    folder = check(home, kafka, run)
    assert virtual_hosts(rabbitmq) == hosts
    assert (folder / results.FIGURE).exists()
    assert len(pl.read_parquet(folder / results.TURNS)) > 0
    if profiler is Profiler.SCALENE:
        assert len(pl.read_parquet(folder / results.LINES)) > 0
        assert (folder / scalene_report.HTML).stat().st_size > 100_000
    else:
        assert len(pl.read_parquet(folder / results.CALLS)) > 0
        activities = pl.read_parquet(folder / results.ACTIVITIES)
        assert activities.filter(activity="other")["share"].sum() < 0.2, activities
        assert activities["share"].sum() == pytest.approx(1, abs=0.01), activities  # nothing of the time is left out


@pytest.mark.parametrize(("codec", "messages"), [("json", 7_001), ("avro", 23_000)])  # less than a round, and more
def test_the_codecs_alone_are_profiled_without_a_broker(home: Home, codec: str, messages: int) -> None:
    request = Request("codecs", "none", Profiler.CPROFILE, Workload(messages=messages, codec=codec))
    run = profile(home, request, None)
    folder = runs.folder_of(home, run)
    assert (run.status, run.records, run.committed) == (Status.COMPLETE, messages, messages), run.reason
    activities = pl.read_parquet(folder / results.ACTIVITIES)
    assert activities.filter(pl.col("activity").is_in(["encoding", "decoding"]))["share"].sum() > 0.8
    assert survivors(folder) == []


@pytest.mark.brokers
def test_a_role_is_profiled_as_it_was_set(kafka: DisposableCluster, home: Home) -> None:
    def ran(name: str, **settings: str) -> tuple[pl.DataFrame, pl.DataFrame]:
        request = Request(name, profiler=Profiler.CPROFILE, workload=FEW.changed(settings))
        folder = check(home, kafka, profile(home, request, kafka.bootstrap_servers))
        return pl.read_parquet(folder / results.TURNS), pl.read_parquet(folder / results.CALLS)

    turns, found = ran("positions-parquet", poll_records="4000", file_rows="4000", partitions="1")
    assert turns.filter(thread="main")["records"].max() == 4_000
    assert calls_of(found, "sinks/slots.py", "append") == 5, "a file of the one partition every 4,000 rows"
    turns, found = ran("means-transformer", poll_records="4000", commit_records="4000")
    assert turns["records"].max() == 4_000
    assert calls_of(found, "streaming/service.py", "commit") >= 5


def calls_of(found: pl.DataFrame, file: str, function: str) -> int:
    return int(found.filter(file=file, function=function)["calls"].sum())


class Bare(RabbitCorner):
    """A corner in which no queue takes anything."""

    def create(self, streams: Iterable[Stream]) -> None:  # noqa: ARG002 - that is the point
        super().create([])


@pytest.mark.brokers
def test_a_sender_whose_records_are_refused_is_closed(rabbitmq: DisposableRabbitMQ, home: Home) -> None:
    sink, hosts = role("positions-parquet"), virtual_hosts(rabbitmq)
    made = stage.Stage(sink, Workload(messages=10), home, QUEUES, Bare(rabbitmq, QUEUES, sink, "profile-bare-"))
    with pytest.raises(SetupError, match="no queue takes"):
        made.prepare()
    assert "profile-filler-amqp" not in running_threads()
    made.close()
    assert virtual_hosts(rabbitmq) == hosts


@pytest.mark.brokers
def test_a_stage_on_a_broker_that_stands_still_is_left_all_the_same_and_says_what_it_left(
    rabbitmq: DisposableRabbitMQ, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_publisher, "_CLOSE_TIMEOUT_S", 1.0)
    fed = Workload(messages=100_000, load=Load.STEADY, rate_hz=5_000)
    place = (home, "positions-parquet", QUEUES, fed, rabbitmq, "still", threading.Event())

    def breaks_off() -> None:
        with stage.stage(*place) as made:
            made.begin_feeding()
            wait_until(lambda: waiting_in(rabbitmq, "profile-still-") > 0)
            rabbitmq.pause(1)
            raise ZeroDivisionError

    try:
        with pytest.raises(ZeroDivisionError) as caught:
            breaks_off()
    finally:
        rabbitmq.resume(1)
    [note] = caught.value.__notes__
    assert "does not answer" in note
    assert stage.leftovers(home) == []
    assert "feeder" not in running_threads()
    wait_until(lambda: "profile-feeder-amqp" not in running_threads())  # its node can take leave of it again
    guests.dismiss(rabbitmq.nodes[0], rabbitmq.credentials, "profile-still-", QUEUES)


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
    [main] = timing.per_run(home, [run]).filter(thread="main").to_dicts()
    assert main["gap"] < GAP, "work and waiting of all turns are the loop's time"
    assert pl.read_parquet(folder / results.TURNS)["work_s"].to_numpy().min() > -1e-3, "nobody works less than nothing"
    assert survivors(folder) == []
    assert stage.leftovers(home) == []
    topics = AdminClient({"bootstrap.servers": kafka.bootstrap_servers, "log_level": 0}).list_topics(timeout=20).topics
    left = [name for name in topics if name.startswith(f"profile-{run.name}-")]
    assert left == []
    return folder


def virtual_hosts(node: DisposableRabbitMQ) -> set[str]:
    return {each["name"] for each in node.ask("/vhosts")}


def records_taken(home: Home) -> int:
    """How many records the profiled role has taken in so far."""
    for path in runs.root(home).glob(".stage-*/run/positions-parquet.json"):
        try:
            return int(json.loads(path.read_text())["records"])
        except (OSError, ValueError):
            return 0
    return 0


def running_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def waiting_in(node: DisposableRabbitMQ, prefix: str) -> int:
    """How many messages the queues of virtual hosts with this prefix hold."""
    queues = node.ask("/queues")
    return sum(each.get("messages", 0) for each in queues if each["vhost"].startswith(prefix))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    def holds() -> bool:
        assert process.poll() is None, "it ended before it was interrupted"
        return condition()

    wait_until(holds)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
