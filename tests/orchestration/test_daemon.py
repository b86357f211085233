"""The real daemon and the real webserver: nights that fire, queue and materialise; Terminate as the UI sends it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

import dagster as dg
import pytest

from experiments.deep_dives import DEEP_DIVES
from experiments.profiles import runs as profile_runs
from experiments.profiles.runs import Profiler, Status
from experiments.run import find_runs
from orchestration import profiling
from orchestration.experiments import POOL, key_of
from tests.orchestration import dives
from tests.orchestration.control_room import ControlRoom, wait_until
from tests.orchestration.nights import BRIEF, MEASUREMENTS, PROFILED, SHORT_NIGHT, SHORT_PROFILES

JOB: Final = "experiment_keys"
NIGHTS: Final = (SHORT_NIGHT, SHORT_PROFILES)
LONG: Final[dict[str, Any]] = {**BRIEF, "repetitions": 500}  # hundreds of trials: it is ended long before its end


@pytest.mark.brokers
@pytest.mark.timeout(600)
def test_nights_fire_once_after_days_off_queue_behind_a_dive_and_run_in_turns_when_that_is_terminated(
    control_room: ControlRoom,
) -> None:
    """One story, because each of its acts needs the one before."""
    before = dives.ids(control_room)
    with control_room.without_daemon():
        running = control_room.launch(JOB, {"ops": {MEASUREMENTS: {"config": LONG}}})
        for name in NIGHTS:
            control_room.switch_on(name, ago=timedelta(days=4))
    try:
        dive = dives.in_its_midst(control_room, running, before)
        night = wait_until(lambda: _fired(control_room, SHORT_NIGHT))[0]
        profiles = wait_until(lambda: _fired(control_room, SHORT_PROFILES))[0]
        for each in (night, profiles):
            _is_seen_to_queue(control_room, each.run_id)
        control_room.terminate(running)
        dives.is_gone(control_room, running, dive)
        control_room.wait_for(night.run_id, "SUCCESS")
        _dive_is_materialised(control_room, night.run_id)
        control_room.wait_for(profiles.run_id, "SUCCESS")
        _profile_is_materialised(control_room, profiles.run_id)
        assert _overlap(control_room, night.run_id, profiles.run_id) <= 0, "they started brokers side by side"
        for name in NIGHTS:
            assert len(_fired(control_room, name)) == 1, "four nights were missed: one is made up for"
    finally:
        for name in NIGHTS:
            control_room.switch_off(name)


def _fired(room: ControlRoom, schedule: str) -> Sequence[dg.DagsterRun]:
    """The runs that a schedule has asked for."""
    return room.instance.get_runs(dg.RunsFilter(tags={"dagster/schedule_name": schedule}))


def _dive_is_materialised(room: ControlRoom, run_id: str) -> None:
    measured = find_runs(room.home)[-1]
    assert measured.is_complete
    for table in ("measurements", "analysis", "findings"):
        assert _materialised(room, key_of(DEEP_DIVES["keys"], table), run_id)["run"].value == measured.run_id


def _profile_is_materialised(room: ControlRoom, run_id: str) -> None:
    """Both profilers and the timed run, their tables and figures in the asset, and what the check says."""
    metadata = _materialised(room, profiling.profile_key(PROFILED), run_id)
    assert {"hot_lines", "top_own_s", "loop_timings", "cprofile_figure", "scalene_figure", "report"} <= metadata.keys()
    listed = profile_runs.listed(room.home)
    undisturbed = [each for each in listed if (each.profiler, each.status) == (Profiler.NONE, Status.COMPLETE)]
    assert _materialised(room, profiling.HISTORY, run_id)["dagster/row_count"].value == len(undisturbed)
    kept = [each for each in listed if each.scenario == f"dagster {run_id}"]
    assert [each.profiler for each in kept] == [Profiler.SCALENE, Profiler.CPROFILE, Profiler.NONE]
    assert {each.status for each in kept} == {Status.COMPLETE}
    checks = room.instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION).records
    [check] = [each.event_log_entry.asset_check_evaluation for each in checks]
    assert check is not None
    assert check.check_name == profiling.CHECK


def _materialised(room: ControlRoom, key: dg.AssetKey, run_id: str) -> Mapping[str, Any]:
    """The metadata of the asset's newest materialisation, which this run has made."""
    event = room.instance.get_latest_materialization_event(key)
    assert event is not None
    assert event.run_id == run_id
    assert event.asset_materialization is not None
    return event.asset_materialization.metadata


def _overlap(room: ControlRoom, *run_ids: str) -> float:
    """Seconds in which both ran."""
    records = [room.instance.get_run_record_by_id(each) for each in run_ids]
    began, ended = zip(*((each.start_time, each.end_time) for each in records if each is not None), strict=True)
    return float(min(ended) - max(began))


def _is_seen_to_queue(room: ControlRoom, run_id: str) -> None:
    """Who looks at the waiting run finds its pool, the pool's limit, and the run that has it."""
    text = """query($id: ID!, $pool: String) {
        runOrError(runId: $id) { ... on Run { status allPools } }
        instance { runQueueConfig { maxConcurrentRuns } poolConfig { defaultPoolLimit poolGranularity }
                   concurrencyLimit(concurrencyKey: $pool) { limit } } }"""
    seen = room.query(text, id=run_id, pool=POOL)
    assert seen["runOrError"] == {"status": "QUEUED", "allPools": [POOL]}
    assert seen["instance"]["concurrencyLimit"]["limit"] == 1
    said = wait_until(lambda: [line for line in room.log("dagster-daemon").splitlines() if run_id in line])
    assert any("blocked by global concurrency limits" in line and POOL in line for line in said), said
