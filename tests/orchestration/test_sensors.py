"""Sensors: each row is reported once, whatever restarts; nothing is said when nothing has happened."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from orchestration import sensors
from orchestration.definitions import defs
from orchestration.sensors import flowing, landed
from orchestration.specs import STALE_AFTER
from sinks.reader import slots, slots_of
from streaming.batch import Outgoing
from streaming.home import Home
from streaming.lab import Lab
from streaming.topology import ROLES, STREAMS
from streaming.transports.memory import MemoryTransport
from tests.orchestration.landing_scenes import land, land_fleet, positions


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


class Watch:
    """One sensor, tick by tick, as the daemon runs it: the cursor of a tick is the start of the next."""

    def __init__(self, sensor: dg.SensorDefinition, home: Home, instance: dg.DagsterInstance) -> None:
        self.sensor, self.home, self.instance = sensor, home, instance
        self.cursor: str | None = None

    def tick(self) -> dg.SensorResult:
        context = dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, resources={"home": self.home}, definitions=defs()
        )
        result = self.sensor(context)
        if isinstance(result, dg.SkipReason):
            return dg.SensorResult(skip_reason=result)
        assert isinstance(result, dg.SensorResult)
        self.cursor = result.cursor
        return result


@pytest.fixture
def watch(home: Home, instance: dg.DagsterInstance) -> Watch:
    return Watch(landed, home, instance)


def reports(result: dg.SensorResult) -> dict[str, dg.AssetMaterialization]:
    """The materialisations by the asset's last name, each at most once."""
    found = [event for event in result.asset_events if isinstance(event, dg.AssetMaterialization)]
    assert len({event.asset_key for event in found}) == len(found)
    return {event.asset_key.path[-1]: event for event in found}


def number(event: dg.AssetMaterialization, name: str) -> Any:
    return event.metadata[name].value


def results(result: dg.SensorResult) -> dict[tuple[str, str], bool]:
    """Check results by table and check."""
    return {
        (event.asset_key.path[-1], event.check_name): event.passed
        for event in result.asset_events
        if isinstance(event, dg.AssetCheckEvaluation)
    }


def test_each_table_that_has_grown_is_reported_once(watch: Watch) -> None:
    land_fleet(watch.home)
    first = reports(watch.tick())
    assert set(first) == {
        *("positions_parquet", "vehicles_parquet", "position_means_parquet", "position_means_csv", "alerts_parquet")
    }
    positions_ = first["positions_parquet"]
    assert number(positions_, "dagster/row_count") == number(positions_, "new_rows") == 5400
    assert number(positions_, "files") == 4
    assert number(positions_, "next_offsets") == {"0": 4500, "1": 900}
    assert number(positions_, "size_bytes") == sum(
        slot.size_bytes for slot in slots(watch.home, "kafka", "positions_parquet")
    )
    assert number(positions_, "gaps") == 0


def test_nothing_is_reported_when_nothing_has_grown(watch: Watch) -> None:
    assert "nothing has landed" in str(watch.tick().skip_reason)
    land_fleet(watch.home)
    watch.tick()
    assert "nothing has landed" in str(watch.tick().skip_reason)


def test_new_rows_add_up_to_the_table_whenever_the_ticks_came(watch: Watch) -> None:
    total = 0
    for part in range(5):
        land(watch.home, "positions-parquet", positions(100, first=100 * part), partition=part % 2)
        report = reports(watch.tick())["positions_parquet"]
        total += number(report, "new_rows")
        assert number(report, "dagster/row_count") == total == 100 * (part + 1)


def test_a_tick_opens_only_slots_that_are_new(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    land(watch.home, "positions-parquet", *(positions(10, first=10 * part) for part in range(20)))
    watch.tick()
    opened: list[int] = []

    def counted(*asked: Any) -> Any:
        found = slots_of(*asked)
        opened.append(len(found))
        return found

    monkeypatch.setattr("assets.chains.slots_of", counted)
    land(watch.home, "positions-parquet", positions(10, first=200))
    watch.tick()
    assert sum(opened) == 2  # once for the report, once for the audit of its checks


def test_the_same_files_have_the_same_version_and_more_files_another(home: Home, instance: dg.DagsterInstance) -> None:
    land(home, "positions-parquet", positions(100))
    versions = [reports(Watch(landed, home, instance).tick())["positions_parquet"].tags for _ in range(2)]
    assert versions[0] == versions[1]
    land(home, "positions-parquet", positions(100, first=100))
    assert reports(Watch(landed, home, instance).tick())["positions_parquet"].tags != versions[0]


def test_a_little_growth_of_a_large_table_waits_for_more_or_for_five_minutes(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(watch.home, "positions-parquet", positions(1000))
    watch.tick()
    land(watch.home, "positions-parquet", positions(9, first=1000))
    assert reports(watch.tick()) == {}
    later_s = time.time() + sensors.REPORT_AFTER_S
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: later_s)
        assert number(reports(watch.tick())["positions_parquet"], "new_rows") == 9
    land(watch.home, "positions-parquet", positions(11, first=1009))
    assert number(reports(watch.tick())["positions_parquet"], "new_rows") == 11


def test_a_slot_that_is_gone_is_no_longer_counted_and_leaves_a_gap(watch: Watch) -> None:
    land(watch.home, "positions-parquet", *(positions(100, first=100 * part) for part in range(3)))
    watch.tick()
    slots(watch.home, "kafka", "positions_parquet")[1].path.unlink()
    result = watch.tick()
    report = reports(result)["positions_parquet"]
    assert (number(report, "dagster/row_count"), number(report, "new_rows")) == (200, -100)
    assert number(report, "gaps") == 1
    assert results(result)["positions_parquet", "no_gap"] is False
    assert watch.tick().skip_reason


def test_a_report_brings_the_results_of_its_tables_checks(watch: Watch) -> None:
    land(watch.home, "positions-parquet", positions(1500))
    assert results(watch.tick()) == {
        ("positions_parquet", name): True for name in ("no_gap", "no_duplicate", "quarantine_empty", "fresh", "ten_hz")
    }
    land(watch.home, "positions-parquet", positions(100, first=1450))
    assert results(watch.tick())["positions_parquet", "no_duplicate"] is False


def test_dagster_shows_reports_and_results_of_a_tick(home: Home, instance: dg.DagsterInstance) -> None:
    land(home, "positions-parquet", positions(1500))
    for event in Watch(landed, home, instance).tick().asset_events:
        instance.report_runless_asset_event(event)  # what the daemon does with them
    key = dg.AssetKey(["kafka", "tables", "positions_parquet"])
    newest = instance.get_latest_materialization_event(key)
    assert newest is not None
    assert newest.asset_materialization is not None
    assert number(newest.asset_materialization, "dagster/row_count") == 1500


def test_a_backlog_too_large_for_a_tick_is_left_to_the_refresh(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "AUDITED_ROWS", 1000)
    land(watch.home, "positions-parquet", positions(1500))
    result = watch.tick()
    assert set(reports(result)) == {"positions_parquet"}
    assert results(result) == {}
    assert len(result.run_requests or ()) == 1


def test_a_table_that_has_gone_stale_is_said_to_be_so_once(watch: Watch) -> None:
    land(watch.home, "positions-parquet", positions(100))
    [slot] = slots(watch.home, "kafka", "positions_parquet")
    long_ago = time.time() - 3600
    os.utime(slot.path, (long_ago, long_ago))
    assert results(watch.tick())["positions_parquet", "fresh"] is False
    assert watch.tick().skip_reason
    land(watch.home, "positions-parquet", positions(100, first=100))
    assert results(watch.tick())["positions_parquet", "fresh"] is True


def test_silence_alone_makes_a_flowing_table_stale(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    land_fleet(watch.home)
    watch.tick()
    later_s = time.time() + STALE_AFTER.total_seconds() + 1
    monkeypatch.setattr(time, "time", lambda: later_s)
    expected = {(table, "fresh") for table in ("positions_parquet", "position_means_parquet", "position_means_csv")}
    assert results(watch.tick()) == dict.fromkeys(expected, False)
    assert watch.tick().skip_reason


def test_the_summaries_are_asked_for_when_tables_grew_and_not_again_at_once(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(watch.home, "positions-parquet", positions(100))
    [asked] = watch.tick().run_requests or []
    land(watch.home, "positions-parquet", positions(100, first=100))
    assert not watch.tick().run_requests
    later_s = time.time() + sensors.REFRESH_AFTER_S
    monkeypatch.setattr(time, "time", lambda: later_s)
    [again] = watch.tick().run_requests or []
    assert asked.run_key != again.run_key
    later_s += sensors.REFRESH_AFTER_S
    assert watch.tick().skip_reason  # nothing has grown since


def test_no_refresh_is_asked_for_while_one_is_on_its_way(watch: Watch) -> None:
    run = watch.instance.create_run_for_job(defs().resolve_job_def("refresh"), status=dg.DagsterRunStatus.STARTED)
    land(watch.home, "positions-parquet", positions(100))
    assert not watch.tick().run_requests
    watch.instance.delete_run(run.run_id)
    assert len(watch.tick().run_requests or ()) == 1


def test_without_a_broker_generators_are_reported_and_topics_skipped(
    home: Home, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "BROKER_TIMEOUT_S", 0.5)
    home.root.mkdir()
    Lab(bootstrap_servers="127.0.0.1:35999").save(home)
    watch = Watch(flowing, home, instance)
    assert "127.0.0.1:35999" in str(watch.tick().skip_reason)
    home.run.mkdir()
    said = {"records": 100, "committed": 90, "rate_hz": 10.0, "started_at": 1.0, "written_at": 11.0}
    (home.run / "positions-generator.json").write_text(json.dumps(said))
    [report] = reports(watch.tick()).values()
    assert report.asset_key.path == ["kafka", "generators", "positions_generator"]
    assert number(report, "records_confirmed") == 90
    assert watch.tick().skip_reason


def test_a_topics_report_says_how_far_its_sinks_are_behind(home: Home) -> None:
    transport, lab = MemoryTransport(), Lab()
    known: dict[str, object] = {}
    stream = STREAMS["positions"]
    transport.create([stream], replication=1)
    publisher = transport.publisher("test")
    publisher.publish(Outgoing("positions", [b"x"] * 10, [b""] * 10, [0] * 10))
    assert publisher.flush(10)
    land(home, "positions-parquet", positions(4))
    report = sensors._topic_report(home, lab, transport, stream, known)
    assert report is not None
    assert number(report, "end_offsets_sum") == number(report, "offsets_held") == 10
    assert number(report, "lag of positions-parquet") == 6
    assert sensors._topic_report(home, lab, transport, stream, known) is None
    assert sensors.lag(home, ROLES["positions-parquet"], {0: 3, 5: 7}) == 7  # never negative, and whole without files
