"""Folding ledgers: those of epochs that are over say the same in a few lines; the present one is left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from streaming.generators import ledger
from streaming.generators.ledger import Account, Ledger, fold, read_ledgers


def live(folder: Path, records: int, *, is_closed: bool = True) -> Path:
    """A life that confirms one record after the other, but the seventh, of which it never hears."""
    with Ledger.open(folder, "p", "positions", seed=7) as kept:
        for sequence in range(records):
            kept.reserve(sequence + 1)
            (kept.unknown if sequence == 6 else kept.confirm)(sequence, sequence + 1)
        kept.mark(123)
        kept.mark(456)
        if is_closed:
            kept.close(records)
    return folder / "p" / f"{kept.epoch:06d}.jsonl"


def test_ledgers_of_epochs_that_are_over_say_the_same_in_a_few_lines(tmp_path: Path) -> None:
    paths = [live(tmp_path, 200), live(tmp_path, 100, is_closed=False), live(tmp_path, 50)]
    before, sizes = read_ledgers(tmp_path), [path.stat().st_size for path in paths]
    expected = fold(tmp_path, dry_run=True)
    assert [path.stat().st_size for path in paths] == sizes
    assert fold(tmp_path) == expected > 0
    assert read_ledgers(tmp_path) == before
    assert [len(path.read_text().splitlines()) for path in paths[:2]] == [7, 6]
    assert paths[2].stat().st_size == sizes[2]
    assert fold(tmp_path) == 0


def test_the_next_life_goes_on_after_the_folded_ones(tmp_path: Path) -> None:
    live(tmp_path, 20)
    live(tmp_path, 20)
    fold(tmp_path)
    with Ledger.open(tmp_path, "p", "positions") as kept:
        assert (kept.epoch, kept.previous_mark_us) == (3, 456)


def test_a_fold_that_would_change_what_is_said_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = live(tmp_path, 200)
    live(tmp_path, 1)
    before, real = path.read_bytes(), ledger._read

    def misread(at: Path) -> Account | None:
        account = real(at)
        return replace(account, closed=False) if account and at.suffix == ".new" else account

    monkeypatch.setattr(ledger, "_read", misread)
    assert fold(tmp_path) == 0
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*.new"))


def test_what_a_killed_process_left_torn_is_left_out_as_ever(tmp_path: Path) -> None:
    path = live(tmp_path, 20, is_closed=False)
    with path.open("ab") as file:
        file.write(b'{"confirmed":[2')
    live(tmp_path, 1)
    before = read_ledgers(tmp_path)
    assert fold(tmp_path) > 0
    assert read_ledgers(tmp_path) == before
