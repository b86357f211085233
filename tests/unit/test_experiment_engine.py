"""The engine without brokers: plan, measurements, failures as rows, interruption, the lock, judging, drawing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import polars as pl
import pytest
from matplotlib.figure import Figure as Drawing

from experiments import figures, measurements, provenance
from experiments.experiment import (
    Experiment,
    Figure,
    Needs,
    Preset,
    Scene,
    Sized,
    factor,
    fixed,
    parse_overrides,
    plan,
)
from experiments.findings import Claim, Judgement, Verdict, always, compare, decide, per_repetition
from experiments.lab import Lab
from experiments.measurements import Measured, NotMeasured, Place, Recorder
from experiments.run import ExperimentRunning, Run, analyse, find_runs, only_run, recover, run
from experiments.statistics import Interval, median_interval
from experiments.trial import Trial
from experiments.workload import Workload
from streaming.errors import UsageError
from streaming.home import Home


class NoBrokers(Lab):
    """A lab for an engine without a car."""

    @property
    def broker_count(self) -> int:
        return 1

    def warm_up(self) -> str:
        return "none"

    def tidy(self) -> None:
        with (self.folder / "tidied").open("a") as file:
            file.write("x")

    def close(self) -> None:
        (self.folder / "closed").touch()


def open_nothing(run_id: str, folder: Path) -> Lab:
    return NoBrokers(run_id, "127.0.0.1:1", folder, Workload("nothing", None, lambda _: pl.DataFrame()))  # type: ignore[arg-type]


def rolls(trial: Trial) -> None:
    if trial.flag("is_broken"):
        raise RuntimeError("the die fell off the table")
    trial.record("pips", trial.count("sides") / 2 + trial.random().random(), "pips")
    trial.sample("height", 3.0, "cm", "die 1")


def pips_grow(measured: Measured) -> Judgement:
    big = measured.trials("dice").filter(pl.col("sides") == 20)
    return compare(median_interval(big["pips"].to_numpy()), "pips", "The median of a large die", above=5)


def draw(_: Measured) -> Drawing:
    figure, (axes,) = figures.panels()
    figures.bars(axes, ["six", "twenty"], [[3.0, 3.5], [10.0, 10.4]])
    return figure


DICE = Experiment(
    name="dice",
    title="Dice",
    question="Do larger dice show more pips?",
    demand="D0",
    scenes=(
        Scene(
            name="dice",
            method="A die is rolled.",
            trial=rolls,
            factors=(
                factor("sides", "faces", smoke=(6, 20), standard=(6, 12, 20)),
                factor("is_broken", "whether it breaks", smoke=(False,), standard=(False,)),
                fixed("table", "what it lands on", "wood"),
            ),
            trial_s=0.01,
            columns=("pips",),
            repetitions=Sized(1, 5, 10),
        ),
    ),
    claims=(Claim("large-dice", "Large dice show more than five pips.", "folklore", pips_grow),),
    figures=(Figure("dice", "Dice.", draw),),
    use_cases="Games.",
)


def start(home: Path, **options: object) -> Run:
    return run(DICE, home=Home(home), open_lab=open_nothing, **options)  # type: ignore[arg-type]


def test_a_plan_depends_on_the_seed_alone_and_each_repetition_is_a_pass_over_the_grid() -> None:
    first, again, other = (plan(DICE, Preset.STANDARD, seed=seed) for seed in (1, 1, 2))
    assert [each.place for each in first] == [each.place for each in again]
    assert [each.place for each in first] != [each.place for each in other]
    for repetition in range(5):
        sides = [each.place.levels["sides"] for each in first if each.place.repetition == repetition]
        assert sorted(sides) == [6, 12, 20]


def test_overrides_replace_levels_and_are_typed_by_the_factor() -> None:
    levels = parse_overrides(DICE, ["sides=4,8", "is_broken=true"])
    assert levels == {"sides": (4, 8), "is_broken": (True,)}
    assert len(plan(DICE, Preset.SMOKE, seed=1, overrides=levels)) == 2


@pytest.mark.parametrize("setting", ["sides", "colour=red", "sides=many", "is_broken=perhaps"])
def test_an_override_that_cannot_be_is_refused_by_name(setting: str) -> None:
    with pytest.raises(UsageError, match=setting.partition("=")[0]):
        parse_overrides(DICE, [setting])


def test_a_run_leaves_measurements_findings_a_figure_and_provenance(tmp_path: Path) -> None:
    done = start(tmp_path)
    assert done.is_complete
    assert done.measurements.schema == measurements.SCHEMA
    assert done.measured.trials("dice").height == 15
    assert done.findings["verdict"].to_list() == ["holds"]
    assert [path.name for path in done.figures] == ["dice.png"]
    assert done.provenance["settings"]["warm_up"] == "none"
    assert done.provenance["machine"]["disk"]["median_ms"] > 0
    assert (done.folder / "closed").exists()
    assert [each.run_id for each in find_runs(Home(tmp_path))] == [done.run_id]


def test_a_failed_trial_is_a_row_with_its_reason_and_the_others_go_on(tmp_path: Path) -> None:
    done = start(tmp_path, preset=Preset.SMOKE, overrides={"is_broken": (True, False)})
    troubles = done.measured.troubles()
    assert troubles["note"].to_list() == ["RuntimeError: the die fell off the table"] * 2
    assert done.measured.trials("dice")["is_broken"].to_list() == [False, False]
    assert (done.folder / "tidied").read_text() == "xxxx"


def test_a_trial_that_hangs_is_cut_off_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.run.GRACE_S", 0.1)
    hanging = Scene("dice", "It spins.", lambda _: signal.pause(), DICE.scenes[0].factors, 1, timeout_s=0.1)
    spinning = Experiment("spin", "", "", "", (hanging,), (), (), "")
    done = run(spinning, home=Home(tmp_path), open_lab=open_nothing, preset=Preset.SMOKE)
    assert all("TrialTimedOut" in note for note in done.measured.troubles()["note"])
    with pytest.raises(NotMeasured):
        done.measured.trials("dice")


def test_a_scene_the_cluster_cannot_carry_is_skipped_once_with_its_reason(tmp_path: Path) -> None:
    scene = Scene("dice", "", rolls, DICE.scenes[0].factors, 1, needs=Needs(broker_control=True))
    done = run(Experiment("x", "", "", "", (scene,), DICE.claims, (), ""), home=Home(tmp_path), open_lab=open_nothing)
    assert done.measured.troubles()["metric"].to_list() == [measurements.SKIPPED]
    assert done.findings["verdict"].to_list() == ["unknown"]


def test_a_void_trial_is_kept_but_not_used(tmp_path: Path) -> None:
    with Recorder(tmp_path, "r", "dice") as recorder:
        for number, is_void in enumerate([False, True]):
            place = Place("dice", number, 0, {"sides": 6})
            recorder.write(place, "pips", 3, "pips")
            if is_void:
                recorder.write(place, measurements.VOID, 1, "", note="3 records were lost")
    measured = Measured(measurements.seal(tmp_path))
    assert measured.trials("dice").height == 1
    assert measured.trials("dice", with_void=True).height == 2


def test_lines_of_a_killed_run_are_readable_up_to_the_torn_one(tmp_path: Path) -> None:
    with Recorder(tmp_path, "r", "dice") as recorder:
        recorder.write(Place("dice", 0, 0, {"sides": 6}), "pips", 3, "pips")
    with (tmp_path / measurements.LINES).open("a") as file:
        file.write('{"run_id": "r", "expe')
    assert measurements.read(tmp_path)["value"].to_list() == [3.0]


INTERRUPTED = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    sys.path.insert(0, {folder!r})
    from test_experiment_engine import *
    def ends(trial):
        trial.record("pips", 1, "pips")
        if trial.place.trial == 1:
            os.kill(os.getpid(), {number})
            signal.pause()
    scene = Scene("dice", "", ends, DICE.scenes[0].factors, 1)
    done = run(Experiment("dice", "", "", "", (scene,), (), (), ""), home=Home(Path({home!r})), open_lab=open_nothing)
    print(done.provenance["status"], done.provenance["reason"])
""")


def interrupted(home: Path, number: int) -> subprocess.CompletedProcess[str]:
    program = INTERRUPTED.format(folder=str(Path(__file__).parent), number=number, home=str(home))
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_kept_as_partial_and_its_lab_is_closed(tmp_path: Path, number: signal.Signals) -> None:
    done = interrupted(tmp_path, number)
    assert done.stdout.split("\n")[0] == f"partial interrupted by {number.name}", done.stderr
    (found,) = find_runs(Home(tmp_path))
    assert found.measured.trials("dice").height >= 1
    assert (found.folder / "closed").exists()


def test_a_killed_run_is_sealed_as_partial_by_the_next_one(tmp_path: Path) -> None:
    assert interrupted(tmp_path, signal.SIGKILL).returncode == -signal.SIGKILL
    (found,) = find_runs(Home(tmp_path))
    assert found.provenance["status"] == provenance.RUNNING
    assert [each.run_id for each in recover(Home(tmp_path))] == [found.run_id]
    assert found.provenance["status"] == provenance.PARTIAL
    assert (found.folder / measurements.TABLE).exists()


def test_a_second_run_is_refused_and_told_who_runs(tmp_path: Path) -> None:
    home = Home(tmp_path)
    waiting: list[str] = []
    with only_run(home, "keys", 0, lambda _: None), pytest.raises(ExperimentRunning, match=f"keys.*{os.getpid()}"):
        run(DICE, home=home, open_lab=open_nothing, wait_s=1.5, progress=lambda each: waiting.append(each.phase))
    assert "queued" in waiting
    assert start(tmp_path, preset=Preset.SMOKE).is_complete


def test_analysing_again_needs_no_broker_and_gives_the_same_findings(tmp_path: Path) -> None:
    done = start(tmp_path)
    before = done.findings
    (done.folder / "findings.parquet").unlink()
    assert analyse(DICE, done.folder).findings.equals(before)


def measured_pips(values: list[float]) -> Measured:
    rows = [
        {
            "scene": "dice",
            "trial": n,
            "repetition": n,
            "factors": json.dumps({"sides": 20}),
            "metric": "pips",
            "value": v,
        }
        for n, v in enumerate(values)
    ]
    return Measured(
        pl.DataFrame(rows, schema_overrides=measurements.SCHEMA).with_columns(subject=pl.lit(None, pl.String))
    )


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([9, 10, 11, 12, 10], Verdict.HOLDS),
        ([1, 2, 3, 2, 1], Verdict.REFUTED),
        ([1, 9, 5, 4, 8], Verdict.UNKNOWN),
        ([9, 10, 11, 12], Verdict.UNKNOWN),  # four repetitions decide nothing
        ([1, 2, 3, 2], Verdict.UNKNOWN),
        ([], Verdict.UNKNOWN),
    ],
)
def test_a_claim_is_decided_by_its_interval_and_never_by_fewer_than_five(values: list[float], verdict: Verdict) -> None:
    assert decide(DICE.claims[0], measured_pips(values)).verdict is verdict


def test_one_counter_example_refutes_what_should_always_be() -> None:
    assert always([True] * 5, "It shows").verdict is Verdict.HOLDS
    assert always([True] * 4 + [False], "It shows").verdict is Verdict.REFUTED
    frame = pl.DataFrame({"repetition": [0, 0, 1, 1], "value": [1, 2, 1, 9]})
    assert per_repetition(frame, pl.col("value") < 5) == [True, False]


def test_what_touches_the_bound_is_unknown_or_refuted_but_never_holds() -> None:
    assert compare(Interval(2, 1, 3, 9), "s", "It", above=1).verdict is Verdict.UNKNOWN
    assert compare(Interval(0, 0, 0, 9), "s", "It", above=0).verdict is Verdict.REFUTED
    assert compare(Interval(1, 0.9, 1.1, 9), "s", "It", above=0.8, below=1.2).verdict is Verdict.HOLDS


def test_the_expected_duration_follows_the_plan() -> None:
    full, small = DICE.expected_s(Preset.STANDARD), DICE.expected_s(Preset.STANDARD, {"sides": (6,)}, 1)
    assert full - small == pytest.approx(14 * 0.01)
