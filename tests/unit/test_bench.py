"""The benchmark's judgement: what makes a run void, which pairs make a ratio, what the table says of both."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest
from rich.console import Console

from experiments.bench import results, rounds
from experiments.bench.results import CONSUME, MEANS, PRODUCE, PUBLISH, SINK, Run, Spread
from experiments.bench.stopwatch import Stopwatch

RECORDS = 6


def runs(*rates: tuple[str, int, float], void: tuple[str, int] | None = None) -> list[Run]:
    return [
        Run(name, repetition, rate, 1.0, 100.0, problems=("lost",) if (name, repetition) == void else ())
        for name, repetition, rate in rates
    ]


def landed(sequences: list[int], offsets: list[int] | None = None) -> pl.DataFrame:
    places = list(range(len(sequences))) if offsets is None else offsets
    return pl.DataFrame({"sequence": sequences, "_partition": [0] * len(sequences), "_offset": places})


def means(*counts: int, windows: list[int] | None = None) -> pl.DataFrame:
    starts = list(range(len(counts))) if windows is None else windows
    return pl.DataFrame({"source": "lab", "vehicle": "v", "window_start": starts, "count": counts})


def test_a_ratio_is_the_median_over_pairs_of_the_same_repetition() -> None:
    measured = runs(("consume", 1, 100), ("consume", 2, 50), ("sink", 1, 80), ("sink", 2, 30), ("sink", 3, 1))
    assert results.ratio(measured, SINK) == Spread(pytest.approx(0.7), pytest.approx(0.6), pytest.approx(0.8))  # type: ignore[arg-type]


@pytest.mark.parametrize("void", [("sink", 2), ("consume", 2)])
def test_a_void_run_is_in_no_ratio_and_no_median(void: tuple[str, int]) -> None:
    measured = runs(("consume", 1, 100), ("consume", 2, 50), ("sink", 1, 80), ("sink", 2, 50), void=void)
    assert results.ratio(measured, SINK) == Spread(0.8, 0.8, 0.8)
    assert [run.repetition for run in results.sound(measured, void[0])] == [1]


def test_without_a_sound_pair_there_is_no_ratio() -> None:
    assert results.ratio(runs(("sink", 1, 80), ("consume", 1, 100), void=("consume", 1)), SINK) is None


def test_the_table_shows_rates_ratios_memory_and_void_runs() -> None:
    measured = runs(("consume", 1, 1000), ("sink", 1, 800), ("consume", 2, 1000), ("sink", 2, 1), void=("sink", 2))
    assert results.cells(measured, SINK) == ["800", "800 – 800", "0.80", "0.80 – 0.80", "≥ 0.8", "1.00", "100", "1"]
    assert results.cells(measured, CONSUME)[2:4] == ["1", ""]
    assert results.cells(measured, MEANS)[0] == "–"
    console = Console(width=140, record=True, quiet=True)
    console.print(results.table(measured))
    assert len(results.table(measured).rows) == len(results.CONTENDERS)


def test_each_record_landed_once_is_no_problem() -> None:
    assert results.landed_problems(landed([3, 1, 2, 0, 5, 4]), RECORDS) == ()


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (landed([0, 1, 2, 3, 4]), "1 lost, 0 doubled"),
        (landed([0, 1, 2, 3, 4, 5, 5]), "0 lost, 1 doubled"),
        (landed([0, 1, 2, 3, 4, 4]), "1 lost, 1 doubled"),
        (landed([0, 1, 2, 3, 4, 6]), "1 lost, 1 doubled or foreign"),
        (landed([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 6]), "gaps or twice in partitions [0]"),
        (landed([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 5, 5]), "gaps or twice in partitions [0]"),
        (landed([]).cast({"sequence": pl.Int64}), "6 lost"),
    ],
)
def test_a_lost_or_doubled_record_is_a_problem(table: pl.DataFrame, says: str) -> None:
    assert says in "; ".join(results.landed_problems(table, RECORDS))


@pytest.mark.parametrize(
    ("table", "late", "says"),
    [
        (means(2, 3), 0, "count 5 positions, 6 were sent"),
        (means(4, 3), 0, "count 7 positions, 6 were sent"),
        (means(2, 4, windows=[0, 0]), 0, "1 windows more than once"),
        (means(2, 4), 1, "1 positions were late"),
    ],
)
def test_means_that_do_not_count_each_position_once_are_a_problem(table: pl.DataFrame, late: int, says: str) -> None:
    assert results.means_problems(means(2, 4), 0, RECORDS) == ()
    assert says in "; ".join(results.means_problems(table, late, RECORDS))


def test_a_process_that_fails_makes_its_run_void() -> None:
    assert rounds.measured("sink", 1, 0.0, {"problem": "ended with 1"}).is_void


def test_a_rate_counts_what_came_after_the_first_poll(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Stopwatch()
    for taken in (0, 20, 30):
        clock.takes(taken)
        clock.finishes(taken)
    clock.report()
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (report["done"], report["timed"]) == (50, 30)
    assert report["peak_mb"] > 1
    report |= {"seconds": 0.5, "cpu_s": 0.003}
    run = rounds.measured("sink", 1, 0.0, report)
    assert run.rate_hz == 60
    assert run.cpu_us == pytest.approx(100)


def test_each_reader_is_the_first_one_in_turn_and_all_read_after_the_filling() -> None:
    orders = [rounds.order(repetition) for repetition in range(1, 4)]
    assert {each[2] for each in orders} == {CONSUME, SINK, MEANS}
    assert all(set(each[:2]) == {PRODUCE, PUBLISH} for each in orders)
    assert all(set(each) == set(results.CONTENDERS) for each in orders)
