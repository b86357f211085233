"""Keeping house in Dagster and from the command line: merges and prunes, and what sensors and summaries make of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from assets.audit import audit
from assets.chains import look
from assets.store import summary_path
from assets.vehicle_hours import vehicle_hours
from orchestration.housekeeping import merge_schedule, merge_small_files, prune_old, prune_schedule
from orchestration.keeping import prune_home
from orchestration.resources import RESOURCES
from orchestration.specs import external_assets
from sinks.formats import footer
from sinks.lanes import keeping
from sinks.merge import Policy, merge
from sinks.prune import prune
from sinks.reader import scan, slots
from streaming.home import PROJECT_ROOT, Home
from tests.orchestration.landing_scenes import land, positions

TABLE = "positions_parquet"
AT_ONCE = Policy(settled_s=0, fewest=3, grace_s=0)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Twelve slots of one partition, an hour apart, as if the last commit were now."""
    home = Home(tmp_path).open()
    land(home, "positions-parquet", *(positions(100, first=100 * part) for part in range(12)))
    for number, slot in enumerate(slots(home, "kafka", TABLE)):
        os.utime(slot.path, (time.time() - 3600 * (11 - number),) * 2)
    return home


def test_a_merge_changes_no_count_but_that_of_files_and_bytes(home: Home) -> None:
    before = look(home, "kafka", TABLE)
    merge(home, "kafka", TABLE, AT_ONCE)
    after = look(home, "kafka", TABLE, before.extent)
    assert (after.newer, after.is_afresh) == ([], False)
    assert after.extent.version == before.extent.version
    assert (after.extent.rows, after.extent.files) == (1200, 3)
    assert after.extent.size_bytes == sum(slot.size_bytes for slot in slots(home, "kafka", TABLE))
    assert after.extent.committed_at == before.extent.committed_at
    anew = look(home, "kafka", TABLE)
    assert anew.extent == after.extent


def test_an_audit_goes_on_after_a_merge_and_still_finds_what_is_doubled(home: Home) -> None:
    assert audit(home, "kafka", TABLE).read == 12
    merge(home, "kafka", TABLE, AT_ONCE)
    account = audit(home, "kafka", TABLE)
    assert (account.read, account.duplicates, account.gaps) == (0, 0, [])
    land(home, "positions-parquet", positions(10, first=50))
    account = audit(home, "kafka", TABLE)
    assert (account.read, account.duplicates) == (1, 10)
    assert audit(home, "kafka", TABLE, full=True).duplicates == 10


def test_a_merge_over_the_place_where_the_last_look_ended_is_counted_anew(home: Home) -> None:
    before = look(home, "kafka", TABLE)
    land(home, "positions-parquet", *(positions(100, first=1200 + 100 * part) for part in range(4)))
    merge(home, "kafka", TABLE, AT_ONCE)
    after = look(home, "kafka", TABLE, before.extent)
    assert after.is_afresh
    assert after.extent.rows == 1600


def test_a_pruned_chain_has_no_gap_and_is_counted_from_where_it_begins(home: Home) -> None:
    before = look(home, "kafka", TABLE)
    prune(home, "kafka", TABLE, timedelta(hours=5))
    after = look(home, "kafka", TABLE, before.extent)
    assert after.is_afresh
    account = audit(home, "kafka", TABLE)
    assert (account.gaps, account.duplicates) == ([], 0)
    assert account.extent.rows == after.extent.rows == 100 * len(slots(home, "kafka", TABLE)) < 1200


def hours(home: Home) -> pl.DataFrame:
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            [*external_assets(), vehicle_hours],
            selection=[vehicle_hours],
            instance=instance,
            resources={**RESOURCES, "home": home},
        )
    assert result.success
    return pl.read_parquet(summary_path(home, "vehicle_hours"))


def test_the_summary_is_the_same_before_and_after_a_merge(home: Home) -> None:
    before = hours(home)
    merge(home, "kafka", TABLE, AT_ONCE)
    assert hours(home).equals(before)


def test_slots_from_before_a_schema_gained_a_column_change_no_summary_merged_or_not(home: Home) -> None:
    before = hours(home)
    for slot in slots(home, "kafka", TABLE)[:5]:
        facts = {f"streamgauge.{name}": value for name, value in footer(slot.path).facts.items()}
        pl.read_parquet(slot.path).drop("dilution").write_parquet(slot.path, metadata=facts)
    summary_path(home, "vehicle_hours").unlink()
    assert hours(home).equals(before)
    assert [each.parts for each in merge(home, "kafka", TABLE, AT_ONCE)] == [5, 5]
    summary_path(home, "vehicle_hours").unlink()
    assert hours(home).equals(before)
    assert audit(home, "kafka", TABLE, full=True).extent.rows == 1200
    assert scan(home, "kafka", TABLE).select(pl.col("dilution").null_count()).collect().item() == 500


def test_the_jobs_merge_and_prune_what_is_due(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = scan(home, "kafka", TABLE).collect().sort("_offset")
    run = merge_small_files.execute_in_process(resources={"home": home})
    assert run.success
    assert [slot.commits for slot in slots(home, "kafka", TABLE)] == [10, 1, 1]
    assert scan(home, "kafka", TABLE).collect().sort("_offset").equals(rows)
    for slot in slots(home, "kafka", TABLE):
        os.utime(slot.path, (time.time() - 40 * 86_400,) * 2)
    config = {"ops": {"prune_all": {"config": {"keep_days": 30.0}}}}
    assert prune_old.execute_in_process(resources={"home": home}, run_config=config).success
    assert scan(home, "kafka", TABLE).collect().height == 200


def test_a_merge_that_finds_another_at_work_leaves_the_table_for_the_next_time(home: Home) -> None:
    with keeping(home, "kafka", TABLE):
        assert merge_small_files.execute_in_process(resources={"home": home}).success
    assert len(slots(home, "kafka", TABLE)) == 12


def test_the_schedules_run_by_themselves_like_the_others() -> None:
    for schedule in (merge_schedule, prune_schedule):
        assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING


def call(home: Home, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestration.cli", *words, "--home", str(home.root)]
    return subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_line_merges_and_prunes_and_says_what(home: Home) -> None:
    done = call(home, "merge", "--json")
    assert done.returncode == 0, done.stderr
    assert [(each["table"], each["parts"]) for each in json.loads(done.stdout)["merged"]] == [(TABLE, 10)]
    oldest = slots(home, "kafka", TABLE)[0]
    os.utime(oldest.path, (time.time() - 40 * 86_400,) * 2)
    for words, left in ((("--dry-run",), 3), ((), 2)):
        done = call(home, "prune", "--json", *words)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert [(each["table"], each["rows"], each["next"]) for each in found["slots"]] == [(TABLE, 1000, 1000)]
        assert len(slots(home, "kafka", TABLE)) == left


@pytest.mark.parametrize(("words", "says"), [(("--keep", "soon"), "30d"), (("--keep", "0d"), "at least")])
def test_a_keep_that_makes_no_sense_is_refused(home: Home, words: tuple[str, ...], says: str) -> None:
    done = call(home, "prune", *words)
    assert done.returncode == 2
    assert says in done.stderr


def touched(path: Path, days: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x" * 10)
    os.utime(path, (time.time() - days * 86_400,) * 2)
    return path


def test_pruning_the_home_takes_old_leavings_and_nothing_else(home: Home) -> None:
    old = [
        touched(home.root / "rejected" / "drive.csv", 31),
        touched(home.root / "soak" / "samples.parquet", 31),
        touched(home.staging("kafka") / TABLE / "0123.parquet", 1),
        touched(home.logs / "gone-role.log.2", 31),
    ]
    kept = [
        touched(home.root / "rejected" / "new.csv", 29),
        touched(home.logs / "positions-parquet.log", 0),
        touched(home.logs / "gone-role.log", 40),
        touched(home.ledgers("kafka") / "p" / "000001.jsonl", 400),
        home.root / "format-version",
    ]
    dry = prune_home(home, timedelta(days=30), dry_run=True)
    assert all(path.exists() for path in old)
    assert {left.path for left in dry.leavings} == {str(path.relative_to(home.root)) for path in old}
    gone = prune_home(home, timedelta(days=30)).leavings
    assert [left.path for left in gone] == [left.path for left in dry.leavings]
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in kept)
    assert len(slots(home, "kafka", TABLE)) == 12
