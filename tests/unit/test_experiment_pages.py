"""Pages: what is written comes from the run."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl

from experiments import pages
from experiments.run import Run
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
