"""Experiments in Dagster: jobs, typed launchpads, idle schedules, tables made again; what a killed worker leaves."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import psutil
import pytest

from experiments import measurements, provenance
from experiments.deep_dives import DEEP_DIVES
from experiments.experiment import Preset
from experiments.lab import BROKERS
from experiments.launch import Request
from experiments.run import Run, find_runs, recover
from orchestration import services
from orchestration.definitions import defs
from orchestration.experiments import POOL, SUITE, chain, key_of, request_of, settings_of
from orchestration.measuring import NotMeasuredToTheEnd, measure
from orchestration.resources import lab_home
from streaming.home import PROJECT_ROOT, Home
from tests.unit.test_experiment_engine import DICE, start

OP = "experiments__keys__measurements"
SHORT = {"preset": "smoke", "scenes": ["growth"]}
LONG = {**SHORT, "repetitions": 500}  # hundreds of trials: long enough to be ended on any machine


def wait_until(condition: Callable[[], object], within_s: float = 200) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "not within the time allowed"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def location() -> dg.Definitions:
    return defs()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").open()


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as made:
        yield made


def test_each_experiment_and_the_suite_has_a_job_over_its_chain(location: dg.Definitions) -> None:
    jobs = {each.name: each for each in location.resolve_all_job_defs()}
    for name, dive in DEEP_DIVES.items():
        layer = jobs[f"experiment_{name}"].asset_layer
        assert layer.selected_asset_keys == {key_of(dive, it) for it in ("measurements", "analysis", "findings")}
    assert len(jobs[SUITE].asset_layer.selected_asset_keys) == 3 * len(DEEP_DIVES)


def test_findings_come_from_the_analysis_and_that_from_the_measurements(location: dg.Definitions) -> None:
    specs = {spec.key: spec for spec in location.resolve_all_asset_specs()}
    for dive in DEEP_DIVES.values():
        assert [dep.asset_key for dep in specs[key_of(dive, "findings")].deps] == [key_of(dive, "analysis")]
        assert [dep.asset_key for dep in specs[key_of(dive, "analysis")].deps] == [key_of(dive, "measurements")]


def test_what_starts_brokers_is_in_a_pool_whose_limit_in_the_labs_instance_is_one(
    location: dg.Definitions, home: Home
) -> None:
    for dive in DEEP_DIVES.values():
        definition = location.resolve_assets_def(key_of(dive, "measurements"))
        assert definition.op.pool == POOL
        assert location.resolve_assets_def(key_of(dive, "analysis")).op.pool is None
    services.write_dagster_yaml(home)
    with dg.DagsterInstance.from_config(str(home.dagster)) as lab:
        pools = lab.get_concurrency_config().pool_config
        assert pools.default_pool_limit == 1
        assert str(pools.pool_granularity).endswith("RUN")


def test_every_schedule_of_an_experiment_is_off_until_somebody_switches_it_on(location: dg.Definitions) -> None:
    schedules = {each.job_name: each for each in location.get_repository_def().schedule_defs}
    for name in (*(f"experiment_{each}" for each in DEEP_DIVES), SUITE):
        assert schedules[name].default_status is dg.DefaultScheduleStatus.STOPPED
        tick = schedules[name].evaluate_tick(dg.build_schedule_context())
        assert len(tick.run_requests or ()) == 1


@pytest.mark.parametrize(
    ("chosen", "culprit"),
    [
        ({"preset": "huge"}, "preset"),
        ({"factors": {"partitions": ["six"]}}, "partitions"),
        ({"factors": {"colour": ["red"]}}, "colour"),
        ({"seed": "one"}, "seed"),
    ],
)
def test_the_launchpad_refuses_what_is_not_of_its_type(
    location: dg.Definitions, chosen: dict[str, object], culprit: str
) -> None:
    job = location.resolve_job_def("experiment_keys")
    assert dg.validate_run_config(job, {"ops": {OP: {"config": SHORT}}})
    with pytest.raises(dg.DagsterInvalidConfigError, match=culprit):
        dg.validate_run_config(job, {"ops": {OP: {"config": chosen}}})


def test_one_form_sets_the_whole_suite(location: dg.Definitions) -> None:
    job = location.resolve_job_def(SUITE)
    assert dg.validate_run_config(job, {"preset": "smoke", "seed": 3})
    with pytest.raises(dg.DagsterInvalidConfigError, match="preset"):
        dg.validate_run_config(job, {"preset": "huge"})


def test_the_form_becomes_a_request_with_the_chosen_levels_only() -> None:
    form = settings_of(DEEP_DIVES["retention"])
    values: dict[str, Any] = {"preset": "smoke", "seed": 3, "factors": {"keys": [10]}, "bootstrap_servers": "a:1"}
    request = request_of(DEEP_DIVES["retention"], form(**values))
    assert (request.preset, request.seed, request.factors) == (Preset.SMOKE, 3, {"keys": [10]})
    assert (request.bootstrap_servers, request.recording, request.repetitions) == ("a:1", None, None)


def made_from_disk(home: Home, instance: dg.DagsterInstance, run: str = "") -> dg.ExecuteInProcessResult:
    """Analysis and findings of the dice, whose measurements are on disk."""
    _, *tables = chain(DICE)
    ops = {key_of(DICE, it).to_python_identifier(): {"config": {"run": run}} for it in ("analysis", "findings")}
    resources = {"home": lab_home.configured({"root": str(home.root)})}
    return dg.materialize(tables, instance=instance, resources=resources, run_config={"ops": ops})


def test_analysis_and_findings_are_made_again_without_brokers(home: Home, instance: dg.DagsterInstance) -> None:
    done = start(home.root)
    for made in ("findings.parquet", "figures/dice.png"):
        (done.folder / made).unlink()
    result = made_from_disk(home, instance)
    (found,) = result.asset_materializations_for_node("experiments__dice__findings")
    assert pl.read_parquet(done.folder / "findings.parquet")["verdict"].to_list() == ["holds"]
    assert found.metadata["run"].value == done.run_id
    assert found.metadata["holds"].value == 1
    assert done.findings["says"].item() in str(found.metadata["findings"].value)
    assert str(found.metadata["dice"].value).startswith("![dice](data:image/png;base64,")
    assert found.metadata["settings"].value == done.provenance["settings"]
    (table,) = result.asset_materializations_for_node("experiments__dice__analysis")
    rows = pl.read_parquet(done.folder / "analysis.parquet")
    assert table.metadata["dagster/row_count"].value == rows.height > 0


def test_a_changed_verdict_is_a_warning_and_an_older_run_can_be_chosen(
    home: Home, instance: dg.DagsterInstance
) -> None:
    first, second = start(home.root), start(home.root)
    verdicts = first.findings.with_columns(verdict=pl.lit("refuted"))
    verdicts.write_parquet(first.folder / "findings.parquet")
    (check,) = made_from_disk(home, instance).get_asset_check_evaluations()
    assert (check.check_name, check.passed) == ("verdicts_as_before", False)
    assert check.metadata["compared with"].value == first.run_id
    assert "refuted" in str(check.metadata["changed"].value)
    again = made_from_disk(home, instance, run=first.run_id)  # judges it anew: it holds, and nothing was before it
    assert again.asset_materializations_for_node("experiments__dice__findings")[0].metadata["run"].value == first.run_id
    assert made_from_disk(home, instance, second.run_id).get_asset_check_evaluations()[0].passed


@pytest.mark.brokers
@pytest.mark.timeout(600)
def test_a_dive_runs_from_the_launchpads_values_to_findings(
    location: dg.Definitions, home: Home, instance: dg.DagsterInstance
) -> None:
    job = location.resolve_job_def("experiment_keys")
    config = {
        "ops": {OP: {"config": {**SHORT, "seed": 7}}},
        "resources": {"home": {"config": {"root": str(home.root)}}},
    }
    result = job.execute_in_process(run_config=config, instance=instance)
    (run,) = find_runs(home)
    assert run.is_complete
    assert run.provenance["seed"] == 7
    assert {each.check_name: each.passed for each in result.get_asset_check_evaluations()} == {
        "every_trial_done": True,
        "nothing_lost": True,
        "verdicts_as_before": True,
    }
    (measured,) = result.asset_materializations_for_node(OP)
    assert measured.metadata["run"].value == run.run_id
    table = pl.read_parquet(run.folder / "measurements.parquet")
    assert table.schema == measurements.SCHEMA
    assert measured.metadata["dagster/row_count"].value == table.height
    assert set(table["scene"]) == {"growth"}
    (found,) = result.asset_materializations_for_node("experiments__keys__findings")
    assert found.metadata["unknown"].value == len(DEEP_DIVES["keys"].claims)
    assert not (run.folder / BROKERS).is_symlink()


def test_a_run_that_cannot_begin_fails_with_its_last_words(home: Home) -> None:
    request = Request("keys", Preset.SMOKE, scenes=("growth",), bootstrap_servers="127.0.0.1:9")
    with pytest.raises(NotMeasuredToTheEnd, match=r"keys ended with 4.*127\.0\.0\.1:9"):
        measure(request, home, lambda _: None)


@dataclass
class Worker:
    """Dagster's process of a run, in the middle of its trials, with all that it has started."""

    process: subprocess.Popen[bytes]
    started: list[psutil.Process]
    run: Run
    brokers: Path

    def alive(self) -> list[psutil.Process]:
        return [each for each in self.started if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def worker(home: Home, tmp_path: Path) -> Iterator[Worker]:
    config = tmp_path / "run.json"
    config.write_text(
        json.dumps({"ops": {OP: {"config": LONG}}, "resources": {"home": {"config": {"root": str(home.root)}}}})
    )
    dagster_home = tmp_path / "dagster"
    dagster_home.mkdir()
    words = ["job", "execute", "-m", "orchestration.definitions", "-j", "experiment_keys", "-c", str(config)]
    with (tmp_path / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "dagster"), *words],
            env={**os.environ, "DAGSTER_HOME": str(dagster_home)},
            cwd=PROJECT_ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    started: list[psutil.Process] = []
    try:
        wait_until(lambda: process.poll() is not None or [each for each in find_runs(home) if each.measurements.height])
        assert process.poll() is None, (tmp_path / "worker.log").read_text()[-2000:]
        (run,) = find_runs(home)
        started = psutil.Process(process.pid).children(recursive=True)
        yield Worker(process, started, run, (run.folder / BROKERS).readlink())
    finally:
        process.kill()
        process.wait()
        for each in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


@pytest.mark.brokers
@pytest.mark.timeout(600)
def test_a_killed_worker_takes_its_brokers_along_and_the_next_run_starts_clean(worker: Worker, home: Home) -> None:
    assert sum("kafka.Kafka" in each.cmdline() for each in worker.started) == 3
    worker.process.kill()
    wait_until(lambda: worker.alive() == [], within_s=30)
    assert worker.run.provenance["status"] == provenance.RUNNING
    kept = worker.run.measurements.height
    assert kept
    following = start(home.root)
    assert following.is_complete
    assert worker.run.provenance["status"] == provenance.PARTIAL
    assert worker.run.measurements.height == kept
    assert not worker.brokers.exists()
    assert recover(home) == []
