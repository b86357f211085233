"""What the streams dive compares with: windows by definition, and strangers that say clearly why they can't be had."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from experiments.deep_dives.streams import expected
from experiments.lab import Lab
from experiments.processors import __main__ as processors
from experiments.processors import kafka_streams, quix, systems
from experiments.processors.systems import AT_LEAST_ONCE, KAFKA_STREAMS, OURS, QUIX, Job
from experiments.workload import fleet
from streaming.cluster import jars
from streaming.codecs.json import JsonCodec
from streaming.errors import SetupError
from streaming.events import POSITIONS
from streaming.transformers.windows import MeansStep

LIMITS = pl.DataFrame({"vehicle": ["a"], "speed_limit_mps": [10.0]})


def sent(*rows: tuple[float, float | None]) -> pl.DataFrame:
    """Rows of one vehicle in one partition: seconds of event time, speed."""
    moments = [int(seconds * 1_000_000) for seconds, _ in rows]
    return pl.DataFrame(
        {
            "vehicle": "a",
            "partition": 0,
            "event_time": pl.Series(moments, dtype=pl.Datetime("us", "UTC")),
            "latitude": 47.0,
            "longitude": 8.0,
            "speed_mps": pl.Series([speed for _, speed in rows], dtype=pl.Float64),
        }
    )


def test_a_window_is_closed_when_its_partitions_time_is_past_its_end_and_the_grace() -> None:
    assert expected(sent((0.5, 9), (3.9, 9)), LIMITS).means.is_empty()
    closed = expected(sent((0.5, 9), (4.0, 9)), LIMITS)
    assert closed.means.select("window_start", "count").rows() == [(0, 1)]
    assert closed.open_windows == 1


def test_a_row_within_the_grace_counts_and_one_beyond_it_is_late() -> None:
    found = expected(sent((0.5, 8), (3.9, 9), (1.0, 16), (4.0, 9), (1.5, 99)), LIMITS)
    assert found.means.select("window_start", "count", "speed_mps").rows() == [(0, 2, 12.0)]
    assert found.late == 1
    assert found.alerts.rows() == [("a", 0)]


def test_a_mean_without_any_speed_is_null_and_raises_no_alert() -> None:
    found = expected(sent((0.5, None), (4.0, 9)), LIMITS)
    assert found.means["speed_mps"].to_list() == [None]
    assert found.alerts.is_empty()


def test_windows_by_definition_are_those_of_the_applications_transformer() -> None:
    table = fleet(JsonCodec(POSITIONS), vehicles=5).table(3_000)
    disorder = np.random.default_rng(1).exponential(1.5, len(table))
    rows = table[np.argsort(np.arange(len(table)) / 50 + disorder)].with_columns(partition=pl.lit(0))
    step = MeansStep()
    _, made = step.advance(step.initial(0), rows.drop("partition"))
    means = made["position_means"].with_columns(pl.col("window_start").cast(pl.Int64))
    found = expected(rows, LIMITS)
    columns = found.means.columns
    assert found.means.sort("vehicle", "window_start").equals(means.select(columns).sort("vehicle", "window_start"))
    assert found.late == len(made["late_positions"]) > 0


def test_quix_that_cannot_be_had_says_so_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "quix.lock"
    lock.write_text(f"./no-such-package.whl --hash=sha256:{'0' * 64}\n")
    monkeypatch.setattr(quix, "LOCK", lock)
    monkeypatch.setattr(jars, "folder", lambda: tmp_path / "share" / "jars")
    with pytest.raises(SetupError, match="Quix Streams could not be installed"):
        systems.install(QUIX)
    assert not list((tmp_path / "share").iterdir())


def test_a_topology_that_does_not_compile_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "Means.java"
    source.write_text("public final class Means { int broken = true; }")
    monkeypatch.setattr(kafka_streams, "SOURCE", source)
    with pytest.raises(SetupError, match="cannot convert from boolean to int"):
        systems.install(KAFKA_STREAMS + AT_LEAST_ONCE)


def test_setting_up_goes_on_without_a_stranger_that_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise SetupError("no network", "connect")

    monkeypatch.setattr(quix, "install", fail)
    monkeypatch.setattr(kafka_streams, "install", fail)
    assert processors.main([]) == 0
    assert capsys.readouterr().err.count("going on without it: no network") == 2


def test_the_locks_hold_hashes_and_no_address() -> None:
    text = quix.LOCK.read_text()
    assert f"{quix.REQUIREMENT} " in text
    assert "http://" not in text
    assert "https://" not in text
    assert {jar.coordinate.split(":")[1] for jar in jars.locked(kafka_streams.LOCK)} == {
        "kafka-streams",
        "rocksdbjni",
        "ecj",
    }


def test_guarantees_are_told_to_the_strangers_in_their_own_words(tmp_path: Path) -> None:
    def told(system: str) -> str:
        return str(systems.settings(Job(system, "127.0.0.1:1", "app", tmp_path)))

    assert "exactly_once_v2" in told(KAFKA_STREAMS)
    assert "at_least_once" in told(KAFKA_STREAMS + AT_LEAST_ONCE)
    assert "exactly-once" in told(QUIX)
    assert "at-least-once" in told(QUIX + AT_LEAST_ONCE)
    assert told(OURS) == "{}"


def test_provenance_says_what_a_stranger_is_told_and_names_no_path_of_this_machine(tmp_path: Path) -> None:
    described = systems.described(Job(KAFKA_STREAMS, "127.0.0.1:1", "app", tmp_path, is_prompt=True))
    assert described["processing.guarantee"] == "exactly_once_v2"
    assert described["version"] == jars.KAFKA_VERSION
    assert str(tmp_path) not in str(described)


class Cluster:
    """What a lab's admin client would find, and what it is asked to delete."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.deleted: list[str] = []

    def list_topics(self, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(topics=dict.fromkeys(self.names), brokers={1: None})

    def list_consumer_groups(self, **_: Any) -> Future[SimpleNamespace]:
        return done(SimpleNamespace(valid=[SimpleNamespace(group_id=name) for name in self.names]))

    def delete_topics(self, names: list[str]) -> dict[str, Future[None]]:
        self.deleted += names
        return {name: done(None) for name in names}

    delete_consumer_groups = delete_topics


def done(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future


def test_what_a_stranger_makes_on_the_cluster_goes_with_its_trial(tmp_path: Path) -> None:
    lab = Lab("run", "127.0.0.1:9", tmp_path, fleet(JsonCodec(POSITIONS)))
    name = lab.application("app")
    changelogs = [f"{name}-KSTREAM-AGGREGATE-1-changelog", f"changelog__{name}--positions--window"]
    lab.admin = Cluster("positions", "lab-other-1-app-alerts", *changelogs)  # type: ignore[assignment]
    lab.tidy()
    assert sorted(set(lab.admin.deleted)) == sorted(changelogs)  # type: ignore[attr-defined]


def test_what_killed_runs_have_left_is_found_by_their_id(tmp_path: Path) -> None:
    lab = Lab("now", "127.0.0.1:9", tmp_path, fleet(JsonCodec(POSITIONS)))
    lab.admin = Cluster("positions", "lab-dead-1-app-alerts", "changelog__lab-dead-1-app--x", "lab-now-1-app")  # type: ignore[assignment]
    lab.sweep(["dead"])
    assert sorted(set(lab.admin.deleted)) == ["changelog__lab-dead-1-app--x", "lab-dead-1-app-alerts"]  # type: ignore[attr-defined]
