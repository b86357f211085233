"""A role's counters, as others read them."""

from __future__ import annotations

import json
import os
from pathlib import Path

from streaming.progress import Progress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_file_says_how_far_the_role_is_and_how_fast(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "run" / "role.json"
    progress = Progress("role", path, clock)
    progress.took(300)
    with progress.waiting():
        clock.now += 1.5
    progress.commits(200)
    progress.rejects(2)
    clock.now += 0.5
    progress.tick()

    says = json.loads(path.read_text())
    assert (says["role"], says["pid"]) == ("role", os.getpid())
    assert (says["records"], says["committed"], says["rejected"]) == (300, 200, 2)
    assert says["rate_hz"] == 150.0
    assert (says["waited_s"], says["worked_s"]) == (1.5, 0.5)
    assert says["started_at"] <= says["last_commit_at"] <= says["written_at"]
    assert list(path.parent.iterdir()) == [path]


def test_the_rate_is_of_the_last_interval(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "role.json"
    progress = Progress("role", path, clock)
    progress.took(1_000)
    clock.now += 1
    progress.write()
    progress.took(10)
    clock.now += 2
    progress.write()
    assert json.loads(path.read_text())["rate_hz"] == 5.0


def test_ticks_within_a_second_write_nothing(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "role.json"
    progress = Progress("role", path, clock)
    clock.now += 0.9
    progress.tick()
    assert not path.exists()


def test_what_was_waited_before_and_after_the_loop_is_not_the_loops(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "role.json"
    progress = Progress("role", path, clock)
    for step in (None, progress.begins, None, progress.ends, None):
        if step is not None:
            step()
        with progress.waiting():
            clock.now += 2
    progress.write()
    says = json.loads(path.read_text())
    assert (says["loop_s"], says["loop_waited_s"], says["waited_s"]) == (4, 4, 10)
