"""A role is well by what it does: its loop turns, and where data flows, something becomes durable."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from streaming.health import complaint
from streaming.progress import Progress

NOW = 1_000_000.0
WELL: dict[str, Any] = {
    "records": 10,
    "committed": 10,
    "started_at": NOW - 500,
    "last_commit_at": NOW - 5,
    "written_at": NOW - 1,
}


def judged(commits_within_s: float | None = None, *, may_rest: bool = False, **changes: Any) -> str | None:
    return complaint(
        WELL | changes, now=NOW, alive_since=NOW - 600, commits_within_s=commits_within_s, may_rest=may_rest
    )


def test_a_role_that_turns_and_commits_is_well() -> None:
    assert judged(60) is None


def test_a_loop_that_has_not_turned_is_not_well() -> None:
    assert "not turned" in str(judged(written_at=NOW - 31))


def test_where_data_always_flows_a_turning_loop_is_not_enough() -> None:
    assert judged(last_commit_at=NOW - 100) is None
    assert "durable" in str(judged(60, last_commit_at=NOW - 100))
    assert "durable" in str(judged(60, last_commit_at=None))


def test_what_an_earlier_life_reported_does_not_count() -> None:
    assert "this life" in str(judged(written_at=NOW - 601))


def test_a_role_that_has_done_all_it_had_to_may_rest() -> None:
    assert judged(may_rest=True, written_at=NOW - 300) is None
    assert "not turned" in str(judged(may_rest=True, written_at=NOW - 300, committed=9))
    assert "not turned" in str(judged(may_rest=True, written_at=NOW - 300, records=0, committed=0))


def test_the_check_of_a_container_reads_what_a_role_has_written(tmp_path: Path) -> None:
    def check(name: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "streaming.health", name]
        return subprocess.run(
            words, capture_output=True, text=True, check=False, env={"STREAMGAUGE_HOME": str(tmp_path)}
        )

    progress = Progress("sink", tmp_path / "run" / "sink.json", clock=time.monotonic)
    progress.write()
    assert check("sink").returncode == 0, check("sink").stdout
    missing = check("nobody")
    assert missing.returncode == 1
    assert "not reported" in missing.stdout
