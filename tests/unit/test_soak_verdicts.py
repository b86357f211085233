"""What a soak says of its samples: grows, flat, or that it can't tell yet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from experiments import verdicts
from experiments.soak import MEMORY_BOUND, Soak, growth, judged, keep_verdicts, save
from streaming.home import Home

SECONDS = np.arange(600.0)
NOISE = np.random.default_rng(1).normal(0, 2, len(SECONDS))


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        (200 + NOISE, "flat"),
        (200 + NOISE + SECONDS / 60, "grows"),
        (200 + NOISE - SECONDS / 60, "flat"),
        (200 + 8 * (SECONDS % 10) / 10, "flat"),  # a buffer that fills and is written
        (200 + 60 * np.sin(SECONDS / 40), "unknown"),
    ],
    ids=["level", "leak", "falling", "sawtooth", "swinging"],
)
def test_a_leak_is_seen_and_breathing_is_not_one(values: Any, verdict: str) -> None:
    assert growth("role", "rss_mib", SECONDS, values, MEMORY_BOUND).verdict == verdict


def test_the_slope_is_a_minute_s() -> None:
    found = growth("role", "rss_mib", SECONDS, 200 + NOISE + 3 * SECONDS / 60, MEMORY_BOUND).per_minute
    assert found is not None
    assert found.low < 3 < found.high < 3.5


def test_a_short_run_can_not_tell() -> None:
    found = growth("role", "handles", SECONDS[:60], SECONDS[:60], 0.2)
    assert (found.per_minute, found.verdict) == (None, "unknown")


def frame(role: str, seconds: Any, memory: Any, handles: Any, life: int = 1) -> pl.DataFrame:
    columns = {"role": role, "life": life, "second": seconds, "rss_mib": memory, "handles": handles, "threads": 9}
    return pl.DataFrame(columns)


def test_one_handle_that_leaks_a_minute_ends_the_run_with_1(tmp_path: Path) -> None:
    leaks = frame("leaky", SECONDS, 200 + NOISE, 30 + (SECONDS // 60).astype(int))
    sound = frame("sound", SECONDS, 200 + NOISE, np.full(len(SECONDS), 30))
    found = Soak(10, pl.concat([leaks, sound]), judged(pl.concat([leaks, sound]), 600), [], 1)
    assert {(each.role, each.quantity): each.verdict for each in found.growths} == {
        ("leaky", "rss_mib"): "flat",
        ("leaky", "handles"): "grows",
        ("sound", "rss_mib"): "flat",
        ("sound", "handles"): "flat",
    }
    assert found.exit_code == 1
    save(found, tmp_path)
    assert json.loads((tmp_path / "soak.json").read_text())["growths"][1]["verdict"] == "grows"
    assert (tmp_path / "soak.png").stat().st_size > 10_000


def test_the_warm_up_does_not_count() -> None:
    warming = 200 + np.minimum(SECONDS, 140) + NOISE
    assert {each.verdict for each in judged(frame("warm", SECONDS, warming, 30), 600)} == {"flat"}


def test_of_a_role_that_began_again_the_longest_life_is_judged_after_a_warm_up_of_its_own() -> None:
    lives = [
        frame("again", SECONDS[:60], 150.0, 30, life=1),
        frame("again", SECONDS[60:], 200 + np.minimum(SECONDS[60:] - 60, 140) + NOISE[60:], 30, life=2),
    ]
    memory, handles = judged(pl.concat(lives), 600)
    assert (memory.verdict, handles.verdict, memory.lives) == ("flat", "flat", 2)
    halves = [frame("half", SECONDS[300 * at : 300 * (at + 1)], 200.0, 30, life=at + 1) for at in range(2)]
    assert {each.verdict for each in judged(pl.concat(halves), 600)} == {"unknown"}


def test_a_role_that_has_done_its_work_within_the_warm_up_is_not_judged() -> None:
    assert judged(frame("vehicles", SECONDS[:100], 200.0, 30), 600) == []


def test_a_run_with_a_problem_ends_with_1_though_nothing_grew() -> None:
    samples = frame("sound", SECONDS, 200 + NOISE, 30)
    assert Soak(10, samples, judged(samples, 600), [], 1).exit_code == 0
    assert Soak(10, samples, judged(samples, 600), ["a role ended by itself"], 1).exit_code == 1


def test_a_leak_stands_in_the_status_until_a_soak_finds_the_role_flat(tmp_path: Path) -> None:
    home = Home(tmp_path).open()

    def soaked(memory: Any, seconds: Any = SECONDS) -> list[str]:
        samples = frame("positions-parquet", seconds, memory, 30)
        keep_verdicts(Soak(10, samples, judged(samples, 600), [], 1), home)
        return [verdict.line for verdict in verdicts.bad(home)]

    [line] = soaked(200 + NOISE + SECONDS / 60)
    assert line.startswith("leak: positions-parquet: memory, MiB grows: +1.0")
    assert "handles" not in line, "they are flat"
    assert soaked(200 + NOISE[:60], SECONDS[:60]) == [line], "a short run can't tell"
    assert soaked(200 + NOISE) == []
