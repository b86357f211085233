"""Requests, runs and their presentation, without brokers: what is asked, found again, compared and summarised."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from experiments import analysis, launch, provenance
from experiments.deep_dives import DEEP_DIVES
from experiments.experiment import Experiment, Preset
from experiments.findings import UNJUDGED, Claim, Judgement, decide
from experiments.lab import BROKERS, Lab, forget_brokers
from experiments.launch import Request
from experiments.measurements import Measured
from experiments.run import OpenLab, find_runs, recover
from orchestration.cli import experiment as commands
from streaming.errors import BrokerUnavailable, UsageError
from streaming.home import Home
from tests.unit.test_experiment_engine import DICE, open_nothing, start


def call(*arguments: str, home: Path) -> tuple[int, str]:
    done = CliRunner().invoke(commands.experiments, [*arguments, "--home", str(home)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return Home(tmp_path / "home").open().root


def test_a_request_survives_its_way_into_another_process() -> None:
    asked = Request("keys", Preset.SMOKE, 7, {"key": ["null"], "records": [9]}, 2, ["growth"], "a:1", wait_s=3.0)
    assert Request.load(asked.dump()) == asked


def test_the_expected_duration_counts_the_chosen_scenes_only() -> None:
    one, every = Request("keys", scenes=("growth",)), Request("keys")
    assert launch.expected_s(one) < launch.expected_s(every)


def test_a_run_is_found_by_its_id_a_part_of_it_as_the_latest_and_by_its_experiment(home: Path) -> None:
    first, second = (start(home, preset=Preset.SMOKE, seed=seed) for seed in (1, 2))
    found = [
        launch.find(Home(home), name, "dice").run_id for name in ("latest", "dice", first.run_id, first.run_id[-6:])
    ]
    assert found == [second.run_id, second.run_id, first.run_id, first.run_id]
    with pytest.raises(UsageError, match="nonsense"):
        launch.find(Home(home), "nonsense")
    with pytest.raises(UsageError, match="2 runs"):
        launch.find(Home(home), first.run_id[:8])


def test_the_exit_code_tells_sound_runs_from_those_with_failed_trials(home: Path) -> None:
    assert launch.exit_code(start(home, preset=Preset.SMOKE)) == 0
    broken = start(home, preset=Preset.SMOKE, overrides={"is_broken": (True, False)})
    assert launch.exit_code(broken) == 1
    stamp = broken.provenance | {"status": provenance.PARTIAL, "reason": "interrupted by SIGINT"}
    (broken.folder / provenance.FILE).write_text(json.dumps(stamp))
    assert launch.exit_code(broken) == 130


def test_for_all_experiments_a_setting_goes_to_those_that_have_the_factor() -> None:
    requests = commands._requests(Request("all"), ["key=null"])
    assert {each.experiment for each in requests if each.factors} == {"keys"}
    assert len(requests) == len(DEEP_DIVES)
    with pytest.raises(UsageError, match="colour"):
        commands._requests(Request("all"), ["colour=red"])


def test_an_experiment_that_fails_keeps_no_other_from_running_and_the_exit_code_tells(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opener(experiment: Experiment, _: Request) -> OpenLab:
        def burn(run_id: str, folder: Path) -> Lab:
            raise BrokerUnavailable("the brokers burn")

        return open_nothing if experiment.name == "dice" else burn

    three = {"burning": replace(DICE, name="burning"), "dice": DICE, "smoking": replace(DICE, name="smoking")}
    for place in ("experiments.launch", "experiments.deep_dives"):
        monkeypatch.setattr(f"{place}.DEEP_DIVES", three)
    monkeypatch.setattr("experiments.launch._lab", opener)
    code, text = call("run", "all", "--preset", "smoke", "--json", home=home)
    assert code == BrokerUnavailable.exit_code
    assert [each["experiment"] for each in json.loads(text)] == ["dice"]
    reasons = {run.experiment: run.provenance["reason"] for run in find_runs(Home(home))}
    assert reasons["dice"] is None
    assert "the brokers burn" in reasons["burning"]
    assert "the brokers burn" in reasons["smoking"]


def test_show_prints_each_claim_with_verdict_numbers_and_where_the_figure_is(home: Path) -> None:
    done = start(home)
    code, text = call("show", done.run_id, home=home)
    assert code == 0
    assert "✔ holds" in text
    assert str(done.figures[0]) in text.replace("\n", "")
    facts = json.loads(call("show", "latest", "--json", home=home)[1])
    assert facts["verdicts"] == {"holds": 1}
    assert facts["findings"][0]["repetitions"] == 5
    assert facts["folder"] == str(done.folder)


def test_show_says_what_else_ran_while_it_was_measured(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.provenance.contention", lambda *_, **__: ["the neighbour's lab"])
    done = start(home)
    assert done.findings["contention"].to_list() == ["the neighbour's lab"]
    assert "the neighbour's lab" in call("show", done.run_id, home=home)[1]


def test_compare_sets_verdicts_and_differences_side_by_side(home: Path) -> None:
    one, other = start(home, seed=1), start(home, seed=2, repetitions=2)
    code, text = call("compare", one.run_id, other.run_id, "--json", home=home)
    facts = json.loads(text)
    assert code == 0
    assert facts["claims"][0]["verdicts"] == ["holds", "unknown"]
    assert facts["claims"][0]["is_same"] is False
    assert facts["differences"]["seed"] == [1, 2]
    assert facts["differences"]["repetitions"] == [None, 2]
    assert "changed" in call("compare", one.run_id, other.run_id, home=home)[1]


def test_the_list_of_runs_has_all_of_them_with_their_verdicts(home: Path) -> None:
    done = [start(home), start(home, preset=Preset.SMOKE)]
    facts = json.loads(call("runs", "--json", home=home)[1])
    assert [each["run"] for each in facts] == [each.run_id for each in done]
    assert [each["verdicts"] for each in facts] == [{"holds": 1}, {"unknown": 1}]


def test_the_analysis_has_the_median_of_each_metric_of_each_design_and_is_made_again_alike(home: Path) -> None:
    done = start(home)
    path = analysis.write(DICE, done)
    rows = pl.read_parquet(path)
    assert rows.schema == analysis.SCHEMA
    trials = done.measured.trials("dice")
    for sides in (6, 12, 20):
        row = rows.filter(pl.col("factors").str.contains(f'"sides": {sides},'), metric="pips")
        assert row["median"].item() == trials.filter(sides=sides)["pips"].median()
        assert row["low"].item() <= row["median"].item() <= row["high"].item()
        assert row["repetitions"].item() == 5
    assert pl.read_parquet(analysis.write(DICE, done)).equals(rows)


def test_a_judge_that_does_not_find_its_trials_leaves_the_claim_unknown_and_says_why() -> None:
    def looks_for_what_is_not_there(_: Measured) -> Judgement:
        raise ValueError("nothing to estimate from")

    judgement = decide(Claim("x", "", "", looks_for_what_is_not_there), Measured(pl.DataFrame()))
    assert judgement.verdict == "unknown"
    assert judgement.says == f"{UNJUDGED}: ValueError: nothing to estimate from"


def test_the_brokers_data_of_a_killed_run_is_deleted_when_the_run_is_sealed(home: Path, tmp_path: Path) -> None:
    done, left = start(home), tmp_path / "sg-kafka-left"
    (left / "broker-1").mkdir(parents=True)
    (done.folder / BROKERS).symlink_to(left)
    (done.folder / provenance.FILE).write_text(json.dumps(done.provenance | {"status": provenance.RUNNING}))
    assert [each.run_id for each in recover(Home(home))] == [done.run_id]
    assert not left.exists()
    assert not (done.folder / BROKERS).is_symlink()
    forget_brokers(done.folder)  # nothing left: nothing happens
