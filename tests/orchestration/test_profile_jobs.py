"""Profiles in Dagster: jobs, schedules, one real profile whose regression is seen, and one that is terminated."""

from __future__ import annotations

import http.client
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import dagster as dg
import polars as pl
import pytest

from experiments import verdicts
from experiments.profiles import history, results, runs, scalene_report, stage
from experiments.profiles.runner import survivors
from experiments.profiles.runs import Load, Profiler, Run, Status, Workload
from orchestration import profiling
from orchestration.definitions import defs
from streaming.cluster.kafka import DisposableCluster
from streaming.home import Home
from streaming.lab import BROKERS, KAFKA
from streaming.topology import ROLES
from tests.orchestration.control_room import ENDED, ControlRoom, pages_served, wait_until

MESSAGES = 5_000


@pytest.fixture(scope="module")
def location() -> dg.Definitions:
    return defs()


def test_each_role_has_a_job_and_one_job_has_them_all(location: dg.Definitions) -> None:
    jobs = {job.name: job for job in location.resolve_all_job_defs()}
    for role in ROLES.values():
        assert jobs[profiling.job_name(role)].asset_layer.selected_asset_keys == {
            profiling.profile_key(role),
            profiling.HISTORY,
        }
    assert len(jobs[profiling.ALL].asset_layer.selected_asset_keys) == len(ROLES) + 1


def test_profiles_queue_with_whatever_else_starts_brokers(location: dg.Definitions) -> None:
    for role in ROLES.values():
        assert location.resolve_assets_def(profiling.profile_key(role)).op.pool == "brokers"


@pytest.mark.parametrize("name", [profiling.NIGHTLY, profiling.WEEKLY])
def test_a_schedule_is_off_until_switched_on_and_asks_for_valid_runs(location: dg.Definitions, name: str) -> None:
    schedule = location.resolve_schedule_def(name)
    assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED
    at = datetime(2026, 1, 4, 3, 20, tzinfo=UTC)
    context = dg.build_schedule_context(scheduled_execution_time=at, repository_def=location.get_repository_def())
    tick = schedule.evaluate_tick(context)
    assert [request.partition_key for request in tick.run_requests or ()] == list(BROKERS)
    for request in tick.run_requests or ():
        assert dg.validate_run_config(location.resolve_job_def(profiling.ALL), request.run_config)


def test_the_form_refuses_what_is_no_load(location: dg.Definitions) -> None:
    job = location.resolve_job_def(profiling.job_name(ROLES["positions-parquet"]))
    op = "profiles__positions_parquet"
    with pytest.raises(dg.DagsterInvalidConfigError, match="load"):
        dg.validate_run_config(job, {"ops": {op: {"config": {"load": "HEAVY"}}}})


def test_where_nothing_was_measured_the_check_says_so_and_shows_no_number() -> None:
    checked = profiling.regression_check(history.judged([before("none", cpu_s=0.0)], []))
    assert (checked.passed, checked.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "nothing was measured" in str(checked.metadata["says"].value)
    assert "cpu_us_per_record" not in checked.metadata
    told = profiling.regression_check(history.judged([before("some", cpu_s=0.05)], []))
    assert told.passed, "no verdict yet is no failure"
    assert told.metadata["cpu_us_per_record"].value == pytest.approx(1e6 * 0.05 / MESSAGES)


@pytest.mark.brokers
def test_a_role_is_profiled_and_a_dearer_one_is_a_warning(
    location: dg.Definitions, kafka: DisposableCluster, home: Home
) -> None:
    for number in range(5):  # what it cost before: next to nothing
        runs.write(home, before(f"20200101-00000{number}-before", cpu_s=0.0001 * (1 + number)))
    role = ROLES["positions-generator"]
    config = {"messages": MESSAGES, "timing_runs": 1, "bootstrap_servers": kafka.bootstrap_servers}
    with pages_served(home), dg.DagsterInstance.ephemeral() as instance:
        done = location.resolve_job_def(profiling.job_name(role)).execute_in_process(
            run_config={
                "ops": {"profiles__positions_generator": {"config": config}},
                "resources": {"home": {"config": {"root": str(home.root)}}},
            },
            partition_key="kafka",
            instance=instance,
        )
        assert done.success
        [history_made] = done.asset_materializations_for_node("profiles__history")
        assert history_made.metadata["dagster/row_count"].value == 6, "five from before and this one"
        [materialization] = done.asset_materializations_for_node("profiles__positions_generator")
        said = materialization.metadata
        assert {"hot_lines", "top_own_s", "top_calls", "loop_timings", "cprofile_figure", "report"} <= said.keys()
        assert said["records"].value == MESSAGES
        report = Path(str(said["report"].value))
        assert ask(str(said["report_page"].value)) == report.read_bytes(), "what the link in Dagster leads to"
    [check] = done.get_asset_check_evaluations()
    assert (check.check_name, check.passed, check.severity) == (profiling.CHECK, False, dg.AssetCheckSeverity.WARN)
    assert "before" in str(check.metadata["says"].value)
    [verdict] = verdicts.bad(home)
    assert verdict.subject == "positions-generator on kafka", "streamgauge status says it too"
    assert {run.profiler for run in runs.listed(home)[-3:]} == set(Profiler)


@pytest.mark.brokers
@pytest.mark.timeout(400)
def test_a_profile_that_is_terminated_is_kept_and_leaves_no_process_no_broker_and_no_stage(
    control_room: ControlRoom,
) -> None:
    room, role = control_room, ROLES["positions-generator"]
    before = {each.name for each in runs.listed(room.home)}
    endless = profiling.run_config([role], messages=1_000_000, load=Load.STEADY, rate_hz=500)
    run_id = room.launch(profiling.job_name(role), endless, partition=KAFKA)
    wait_until(lambda: in_hand(room.home) > 0 or room.status(run_id) in ENDED, within_s=200)
    assert room.status(run_id) == "STARTED", room.says(run_id)[-3000:]
    [run] = [each for each in runs.listed(room.home) if each.name not in before]
    folder = runs.folder_of(room.home, run)
    brokers = [each for each in room.started() if "kafka.Kafka" in each.cmdline()]
    profiled, [worker] = survivors(folder), {each.parent() for each in brokers}
    assert (len(brokers), bool(profiled)) == (3, True)
    assert worker is not None
    room.terminate(run_id)
    room.wait_for(run_id, "CANCELED")
    wait_until(lambda: not any(each.is_running() for each in (worker, *brokers, *profiled)), within_s=60)
    assert survivors(folder) == []
    assert stage.leftovers(room.home) == []
    [kept] = [each for each in runs.listed(room.home) if each.name not in before]
    assert (kept.name, kept.profiler, kept.status) == (run.name, Profiler.SCALENE, Status.INTERRUPTED)
    assert kept.records > 0
    assert len(pl.read_parquet(folder / results.LINES)) > 0
    assert pl.read_parquet(folder / results.TURNS)["records"].sum() > 0
    assert (folder / scalene_report.HTML).stat().st_size > 100_000


def in_hand(home: Home) -> int:
    """Records that the role which is being profiled has sent, as it says itself."""
    reports = [path for folder in stage.leftovers(home) for path in (Home(folder).run).glob("*.json")]
    return sum(json.loads(path.read_bytes())["records"] for path in reports)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").open()


def ask(url: str) -> bytes:
    """What a browser gets."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.netloc, timeout=60)
    connection.request("GET", place.path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status == 200, body
    return body


def before(name: str, *, cpu_s: float) -> Run:
    plain = Run(
        name=name,
        role="positions-generator",
        broker="kafka",
        profiler=Profiler.NONE,
        workload=Workload(messages=MESSAGES),
        began="2020-01-01T00:00:00+00:00",
        status=Status.COMPLETE,
        records=MESSAGES,
    )
    return replace(plain, cpu_s=cpu_s)
