"""Pages: what is written comes from the run."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl

from experiments import pages
from experiments.agreement import over_seeds
from experiments.experiment import Preset
from experiments.run import Run
from streaming.home import Home
from tests.unit.test_experiment_engine import DICE, start


def test_a_page_shows_question_findings_tables_figures_use_and_the_run(tmp_path: Path) -> None:
    done = start(tmp_path)
    page = pages.write(DICE, done, tmp_path / "docs")
    text = page.read_text()
    assert DICE.question in text
    assert "✔ holds" in text
    assert done.run_id in text
    for picture in re.findall(r"\]\((figures/[^)]+)\)", text):
        assert (page.parent / picture).exists()
    medians = done.measured.trials("dice").group_by("sides").agg(pl.col("pips").median())
    assert all(f"{median:.3g}" in text for median in medians["pips"])
    assert "No trial failed" in text


def test_a_failed_trial_is_on_the_page_with_its_reason(tmp_path: Path) -> None:
    done: Run = start(tmp_path, overrides={"is_broken": (True, False)})
    assert "the die fell off the table" in pages.render(DICE, done)


def test_the_index_has_sound_runs_with_verdicts_and_says_what_is_not_measured(tmp_path: Path) -> None:
    home, folder = Home(tmp_path), tmp_path / "docs"
    start(tmp_path, preset=Preset.SMOKE)
    start(tmp_path, overrides={"sides": (20,)})
    start(tmp_path, repetitions=7)
    index, _ = pages.write_all(home, folder, {"dice": DICE})
    assert "not measured yet" in index.read_text(), (
        "neither a smoke run nor one of chosen levels or repetitions makes a page"
    )
    done = start(tmp_path)
    written = pages.write_all(home, folder, {"dice": DICE})
    assert [path.name for path in written] == ["README.md", "verdicts.md", "dice.md"]
    assert done.run_id in index.read_text()
    assert "| 1 | 0 | 0 |" in index.read_text()


def test_verdicts_of_several_seeds_stand_side_by_side_and_a_contradiction_is_named(tmp_path: Path) -> None:
    home = Home(tmp_path)
    old, *done = (start(tmp_path, seed=seed) for seed in (1, 1, 2, 3))

    def set_verdict(run: Run, verdict: str) -> None:
        run.findings.with_columns(verdict=pl.lit(verdict)).write_parquet(run.folder / "findings.parquet")

    set_verdict(old, "refuted")  # a newer run of the same seed counts
    found = over_seeds(home, DICE)
    assert [run.run_id for run in found.runs.values()] == [each.run_id for each in done]
    assert (found.definite, found.contradicted) == (["large-dice"], [])
    set_verdict(done[1], "unknown")
    assert (over_seeds(home, DICE).definite, over_seeds(home, DICE).contradicted) == ([], [])
    set_verdict(done[2], "refuted")
    assert over_seeds(home, DICE).contradicted == ["large-dice"]
    text = pages.render_verdicts([over_seeds(home, DICE)])
    assert "| Dice | 1, 2, 3 | 1 | 0 | large-dice |" in text
    assert "| ✔ holds | ? unknown | ✘ refuted |" in text
    assert all(each.run_id in text for each in done)


def test_seeds_that_were_not_run_are_said_to_be_missing(tmp_path: Path) -> None:
    start(tmp_path, preset=Preset.SMOKE)
    assert "Not measured yet: dice" in pages.render_verdicts([over_seeds(Home(tmp_path), DICE)])
