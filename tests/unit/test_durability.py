"""A file's content is replaced as a whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from streaming.durability import replace_file


def test_the_new_content_is_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "lab.json"
    replace_file(path, "old")
    replace_file(path, b"new \xc3\xa9", lasts=True)
    assert path.read_text() == "new é"
    assert list(tmp_path.iterdir()) == [path]


def test_a_secret_is_never_readable_by_others(tmp_path: Path) -> None:
    (tmp_path / "cookie").write_text("everybody's")
    replace_file(tmp_path / "cookie", "mine", mode=0o400)
    assert (tmp_path / "cookie").stat().st_mode & 0o777 == 0o400


def test_who_fails_half_way_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "outcome"
    replace_file(path, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.raises(OSError, match="No space"):
        replace_file(path, "new", lasts=True)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_shall_last_is_synced_before_it_takes_its_place_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "outcome", []
    monkeypatch.setattr(os, "fsync", lambda _: seen.append(path.exists()))
    replace_file(path, "passing")
    assert seen == []
    path.unlink()
    replace_file(path, "lasting", lasts=True)
    assert seen == [False, True]
