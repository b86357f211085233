"""A sink killed at every named moment of its commit: each record is in the files exactly once, or in quarantine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sinks.reader import quarantine_scan, quarantine_slots, scan, slots
from sinks.slots import CHECKPOINTS
from streaming.home import Home
from tests.crash.landing import BATCH, PARTITIONS, POISON, RECORDS, batches, sink_for, table_for

CHILD = Path(__file__).with_name("landing.py")
BAD = {at for at in range(RECORDS) if at % POISON == POISON - 1}


def run(home: Path, crash_at: str, file_format: str, *off: str) -> int:
    command = [sys.executable, str(CHILD), str(home), crash_at, file_format, *off]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in {0, -signal.SIGKILL}, done.stderr
    return done.returncode


def landed(home: Path, file_format: str) -> dict[int, list[int]]:
    frame = scan(Home(home), "kafka", table_for(file_format)).select("_partition", "_offset", "sequence").collect()
    assert frame.filter(pl.col("_offset") != pl.col("sequence")).is_empty(), "a row slipped to another offset"
    return {p: sorted(frame.filter(pl.col("_partition") == p)["_offset"]) for p in PARTITIONS}


def assert_exact(home: Path, file_format: str) -> None:
    good = sorted(set(range(RECORDS)) - BAD)
    assert landed(home, file_format) == dict.fromkeys(PARTITIONS, good)
    aside = quarantine_scan(Home(home), "kafka", table_for(file_format)).collect()
    assert sorted(aside.select("partition", "_offset").rows()) == sorted((p, at) for p in PARTITIONS for at in BAD)
    assert set(aside["payload"]) == {b"poison"}


def assert_tidy(home: Path, file_format: str) -> None:
    table = Home(home).warehouse("kafka") / table_for(file_format)
    for path in table.rglob("*"):
        assert path.is_dir() or (path.suffix == f".{file_format}" and path.stem.isdigit()), path
    assert not any((Home(home).staging("kafka") / table_for(file_format)).iterdir()), "staging is left over"


@pytest.mark.parametrize("file_format", ["parquet", "csv"])
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_a_kill_at_any_moment_of_the_commit_loses_and_doubles_nothing(
    tmp_path: Path, checkpoint: str, file_format: str
) -> None:
    kills = sum(run(tmp_path, f"{checkpoint}:{times}", file_format) == -signal.SIGKILL for times in (1, 3))
    assert kills == 2, "the checkpoint was not reached"
    assert run(tmp_path, "", file_format) == 0
    assert_exact(tmp_path, file_format)
    assert_tidy(tmp_path, file_format)


def test_starting_again_after_the_end_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path, "", "parquet")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    run(tmp_path, "", "parquet")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == before


def zombie_scene(home: Path) -> None:
    """Two sinks own partition 0; the second commits twice while the first sleeps, then the first wakes and goes on."""
    first, second = sink_for(home, "parquet", "first"), sink_for(home, "parquet", "second")
    feed = batches("positions", 0, 0)
    first.resume(0)
    second.resume(0)
    for batch in feed[:3]:
        first.write(batch)
    for chosen in (feed[:5], feed[5:6]):
        for batch in chosen:
            second.write(batch)
        second.commit()
    first.commit()
    displaced = first.displaced()
    position = displaced.get(0, 3 * BATCH)
    for batch in batches("positions", 0, position):
        first.write(batch)
    first.commit()


def test_of_two_owners_one_wins_each_slot_and_nothing_is_doubled(tmp_path: Path) -> None:
    zombie_scene(tmp_path)
    assert landed(tmp_path, "parquet")[0] == sorted(set(range(RECORDS)) - BAD)


def test_without_an_exclusive_commit_the_zombie_does_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", os.replace)
    zombie_scene(tmp_path)
    found = landed(tmp_path, "parquet")[0]
    assert len(found) != len(set(found)) or set(found) != set(range(RECORDS)) - BAD


def test_a_position_one_too_low_doubles_records_after_a_crash(tmp_path: Path) -> None:
    run(tmp_path, "after_link:2", "parquet", "position")
    run(tmp_path, "", "parquet", "position")
    found = landed(tmp_path, "parquet")[0]
    assert len(found) > len(set(found))


def test_acknowledging_before_the_commit_loses_records_in_a_crash(tmp_path: Path) -> None:
    """The control for the rule that position and data commit as one: here the position goes first."""
    acknowledged = 0
    sink = sink_for(tmp_path, "parquet")
    sink.resume(0)
    for batch in batches("positions", 0, 0)[:4]:
        sink.write(batch)
        acknowledged = batch.next_offset
    del sink  # killed before its commit
    resumed = sink_for(tmp_path, "parquet")
    resumed.resume(0)
    for batch in batches("positions", 0, acknowledged):
        resumed.write(batch)
    resumed.commit()
    assert set(landed(tmp_path, "parquet")[0]) != set(range(RECORDS)) - BAD


def test_a_failed_fsync_publishes_nothing_and_the_next_commit_has_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = sink_for(tmp_path, "parquet")
    sink.resume(0)
    for batch in batches("positions", 0, 0):
        sink.write(batch)
    real = os.fsync

    def failing(descriptor: int) -> None:
        if not os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112
            raise OSError(5, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output"):
        sink.commit()
    assert slots(Home(tmp_path), "kafka", "positions_parquet") == []
    monkeypatch.setattr(os, "fsync", real)
    sink.commit()
    assert landed(tmp_path, "parquet")[0] == sorted(set(range(RECORDS)) - BAD)
    assert_tidy(tmp_path, "parquet")


def test_a_rotation_of_poison_alone_moves_the_position(tmp_path: Path) -> None:
    sink = sink_for(tmp_path, "parquet")
    sink.resume(0)
    sink.write(type(batches("positions", 0, 0)[0])("positions", 0, [b"poison"] * 5, np.arange(5, dtype=np.int64)))
    assert sink.commit() == {0: 5}
    assert sink_for(tmp_path, "parquet").resume(0) == 5
    assert [slot.rows for slot in quarantine_slots(Home(tmp_path), "kafka", "positions_parquet")] == [5]
