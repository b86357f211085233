"""Roles and a broker are killed while data flows: nothing is lost, nothing is doubled, every mean is right."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import polars as pl
import pytest

from sinks.reader import scan
from streaming.cluster.kafka import DisposableCluster
from streaming.generators.fleet import Fleet
from streaming.generators.positions import Measured
from streaming.home import Home
from streaming.topology import ROLES, RoleKind
from tests.brokers.role_processes import Killer, RoleProcess, call, new_lab, verified

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(600)]
SEED = 20261125
KILLS = 10
# All that positions need but the two that are killed, so that verify finds every table that it expects.
REST = [
    name
    for name, role in ROLES.items()
    if name == "vehicles-generator"
    or (
        role.kind is not RoleKind.GENERATOR
        and name not in {"positions-parquet", "means-transformer", "diagnostics-parquet"}
    )
]


@pytest.fixture
def own_cluster() -> Iterator[DisposableCluster]:
    """Brokers for one test alone: the application's topics have fixed names."""
    with DisposableCluster() as cluster:
        yield cluster


def test_ten_kills_of_sink_and_transformer_and_one_of_a_broker_lose_and_double_nothing(
    own_cluster: DisposableCluster, tmp_path: Path
) -> None:
    home = new_lab(tmp_path / "home", own_cluster.bootstrap_servers, vehicles=300, rate_hz=10.1, seed=SEED)
    with ExitStack() as stack:
        steady = [stack.enter_context(RoleProcess(home, name)) for name in REST]
        sink = stack.enter_context(RoleProcess(home, "positions-parquet"))
        transformer = stack.enter_context(RoleProcess(home, "means-transformer"))
        for role in (*steady, sink, transformer):
            role.wait_until_ready()
        killers = [
            Killer(sink, KILLS, SEED, is_sink=True, longest_life_s=30),  # where nothing comes any more, no moment does
            Killer(transformer, KILLS, SEED + 1),
        ]
        threads = [threading.Thread(target=killer.run) for killer in killers]
        produced = threading.Thread(target=_produce, args=(home, 200_000))
        for thread in (produced, *threads):
            thread.start()
        _wait_for_rows(home, 20_000)
        own_cluster.kill(2)
        _wait_for_rows(home, 60_000)
        own_cluster.start(2)
        for thread in (produced, *threads):
            thread.join(400)
            assert not thread.is_alive()
        for role in (*steady, sink, transformer):
            role.revive()
        code, report = verified(home)
        assert {role.name: role.log()[-1500:] for role in (*steady, sink, transformer) if not role.is_running()} == {}
    assert (sink.kills, transformer.kills) == (KILLS, KILLS)
    assert code == 0, report
    rows = {table["table"]: table["rows"] for table in report["tables"]}
    assert rows["positions_parquet"] == 200_000
    means = scan(home, "kafka", "position_means_parquet").collect()
    assert means.select("source", "vehicle", "window_start").is_duplicated().sum() == 0
    late = scan(home, "kafka", "late_positions_parquet").select(pl.len()).collect().item()
    assert means["count"].sum() + late == 200_000


def test_half_a_million_replayed_positions_give_the_offline_means(
    own_cluster: DisposableCluster, tmp_path: Path
) -> None:
    recording = tmp_path / "drive.csv"
    _write_recording(recording, 500_000)
    home = new_lab(tmp_path / "home", own_cluster.bootstrap_servers)
    replayed = call(home, "produce", "positions", "--replay", str(recording), "--speed", "max", "--rebase", "keep")
    assert replayed.returncode == 0, replayed.stderr
    with ExitStack() as stack:
        for name in ("positions-parquet", "means-transformer", *REST):
            stack.enter_context(RoleProcess(home, name))
        code, report = verified(home)
    assert code == 0, report
    landed = scan(home, "kafka", "position_means_parquet").collect()
    expected = _offline_means(recording)
    found = landed.select(expected.columns).sort("vehicle", "window_start")
    assert len(found) == len(expected)
    assert found.select("vehicle", "window_start", "count").equals(expected.select("vehicle", "window_start", "count"))
    for column in ("latitude", "longitude", "speed_mps"):
        worst = (found[column] - expected[column]).abs().cast(pl.Float64).to_numpy().max()
        assert worst < 1e-8, column


def _produce(home: Home, messages: int) -> None:
    done = call(home, "produce", "positions", "--messages", str(messages), timeout_s=400)
    assert done.returncode == 0, done.stderr


def _write_recording(path: Path, rows: int) -> None:
    frame = Measured(Fleet(SEED, 50, 10.0)).advance(rows // 50)
    frame.write_csv(path, datetime_format="%Y-%m-%dT%H:%M:%S%.6fZ")


def _offline_means(path: Path) -> pl.DataFrame:
    """The two-second means by a plain group_by: another way than the transformer's."""
    rows = pl.read_csv(path).with_columns(
        pl.col("event_time").str.to_datetime("%Y-%m-%dT%H:%M:%S%.6fZ", time_unit="us").dt.replace_time_zone("UTC")
    )
    return (
        rows.group_by("vehicle", pl.col("event_time").dt.truncate("2s").alias("window_start"))
        .agg(
            pl.len().cast(pl.Int64).alias("count"),
            pl.col("latitude", "longitude", "speed_mps").mean(),
        )
        .sort("vehicle", "window_start")
    )


def test_two_of_three_brokers_away_for_a_while_lose_nothing(own_cluster: DisposableCluster, tmp_path: Path) -> None:
    """Confirmed records stay, the producer blocks and goes on by itself."""
    home = new_lab(tmp_path / "home", own_cluster.bootstrap_servers, vehicles=100, seed=SEED)
    with RoleProcess(home, "positions-parquet") as sink:
        producing = threading.Thread(target=_produce, args=(home, 15_000))
        producing.start()
        _wait_for_rows(home, 1)
        own_cluster.kill(1)
        own_cluster.kill(2)
        threading.Event().wait(8)
        own_cluster.start(1)
        own_cluster.start(2)
        producing.join(300)
        assert not producing.is_alive()
        sink.revive()
        _wait_for_rows(home, 15_000)
        code, report = verified(home, "5s")
    positions = next(table for table in report["tables"] if table["table"] == "positions_parquet")
    assert positions["rows"] == 15_000, report
    assert positions["counts"]["lost"] == positions["counts"]["duplicated"] == 0
    assert code in {0, 6}, "no transformer ran, so means may be pending"


def _wait_for_rows(home: Home, rows: int) -> None:
    deadline = time.monotonic() + 240
    while scan(home, "kafka", "positions_parquet").select(pl.len()).collect().item() < rows:
        assert time.monotonic() < deadline
        time.sleep(0.2)
