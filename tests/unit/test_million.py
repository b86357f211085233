"""A million that was broken off goes on with the next transport, under the same plan and code only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestration.million import Kept, page
from orchestration.trial import Counted, Plan
from streaming.lab import QUEUES, RABBITMQ_STREAMS

PLAN = Plan(messages=1_000, kills=2, drops=3)
DONE = Counted(QUEUES, 1_000, kills={"positions-parquet": 2}, drops=3, redelivered=70, rows={"alerts_parquet": 4})


def test_what_a_transport_gave_is_taken_up_again(tmp_path: Path) -> None:
    Kept(tmp_path / "counted.json", PLAN).add(DONE, "3.10.8")
    again = Kept(tmp_path / "counted.json", PLAN)
    assert again.counted == {QUEUES: DONE}
    assert (again.is_done(QUEUES), again.is_done(RABBITMQ_STREAMS)) == (True, False)
    assert again.facts["RabbitMQ"] == "3.10.8"
    written = page(list(again.counted.values()), again.facts, "")
    assert "| rabbitmq | 1,000 |" in written
    assert "gone on with" in written, "a run that was broken off must not look like one in one piece"


def test_another_plan_or_another_code_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "counted.json"
    Kept(path, PLAN).add(DONE, "3.10.8")
    assert Kept(path, Plan(messages=1_000, kills=2, drops=4)).counted == {}
    assert not Kept(path, PLAN).is_empty
    monkeypatch.setattr("experiments.provenance.code_version", lambda: "another")
    assert Kept(path, PLAN).is_empty


def test_a_transport_with_a_problem_runs_again(tmp_path: Path) -> None:
    Kept(tmp_path / "counted.json", PLAN).add(replace(DONE, problems=["verify ended with 1"]), "3.10.8")
    assert not Kept(tmp_path / "counted.json", PLAN).is_done(QUEUES)
