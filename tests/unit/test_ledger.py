"""The ledger's promise: whatever was sent lies in what it reserved, even when the process is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from streaming.errors import DataError, UsageError
from streaming.generators import ledger as ledger_module
from streaming.generators.ledger import Account, Ledger, checked_name, fresh_name, read_ledgers
from streaming.intervals import IntervalSet

# Reserves and "sends" as fast as it can: each sequence is written to a file, unbuffered, after it was reserved.
SENDS_UNTIL_KILLED = """
import os, sys
from pathlib import Path
from streaming.generators import ledger
ledger.FIRST_BLOCK, ledger.BLOCK_S = 3, 0.0
opened = ledger.Ledger.open(Path(sys.argv[1]), "mortal", "positions")
sent = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
number = 0
while True:
    opened.reserve(number + 7)
    os.write(sent, b"".join(b"%d %d\\n" % (opened.epoch, each) for each in range(number, number + 7)))
    opened.confirm(number, number + 5)
    opened.unknown(number + 5, number + 7)
    number += 7
"""


def only(folder: Path) -> Account:
    accounts = read_ledgers(folder)
    assert len(accounts) == 1
    return accounts[0]


def test_a_closed_ledger_accounts_for_exactly_what_was_attempted(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, "one", "positions", seed=7, parameters={"vehicles": 3}) as ledger:
        ledger.reserve(10)
        ledger.confirm(0, 8)
        ledger.unknown(8, 10)
        ledger.close(10)
    account = only(tmp_path)
    assert (account.producer, account.epoch, account.stream, account.closed) == ("one", 1, "positions", True)
    assert account.attempted.ranges == [(0, 10)]
    assert account.confirmed.ranges == [(0, 8)]
    assert account.unknown.ranges == [(8, 10)]
    assert (account.opening["seed"], account.opening["parameters"]) == (7, {"vehicles": 3})
    assert account.opened_at.utcoffset() is not None


def test_a_ledger_without_its_end_accounts_for_what_was_reserved(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, "one", "positions") as ledger:
        ledger.reserve(10)
    account = only(tmp_path)
    assert not account.closed
    assert IntervalSet.of_ranges([(0, 10)]) - account.attempted == IntervalSet()


def test_blocks_are_reserved_ahead_and_grow_with_the_rate(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, "fast", "positions") as ledger:
        for end in range(20_000, 2_000_001, 20_000):
            ledger.reserve(end)
        lines = (tmp_path / "fast" / "000001.jsonl").read_text().splitlines()
    assert len(lines) < 12  # 100 chunks of 20,000 in ten seconds: a handful of fsyncs


def test_a_block_that_lasted_long_enough_is_followed_by_one_of_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "BLOCK_S", 0.0)
    with Ledger.open(tmp_path, "slow", "positions") as ledger:
        for end in range(1, 5_000):
            ledger.reserve(end)
    assert only(tmp_path).attempted.ranges == [(0, 5_000)]


def test_each_start_is_a_new_epoch(tmp_path: Path) -> None:
    epochs = []
    for _ in range(3):
        with Ledger.open(tmp_path, "again", "positions") as ledger:
            epochs.append(ledger.epoch)
    assert epochs == [1, 2, 3]
    assert [account.epoch for account in read_ledgers(tmp_path)] == [1, 2, 3]


def test_two_cannot_be_the_same_producer_at_once(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, "one", "positions"):
        with pytest.raises(UsageError, match="running already"):
            Ledger.open(tmp_path, "one", "positions")
        with Ledger.open(tmp_path, "another", "positions") as other:
            assert other.epoch == 1
    with Ledger.open(tmp_path, "one", "positions") as next_one:
        assert next_one.epoch == 2


@pytest.mark.parametrize("name", ["", ".", "..", ".lock", "a/b", "../up", "a b", "ü", "-x", "x" * 101, "a\n", "a\0b"])
def test_a_name_that_is_no_safe_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="letters, digits"):
        Ledger.open(tmp_path, name, "positions")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("prefix", ["replay-drive", "../../etc", "…", "a b c", "x" * 300])
def test_fresh_names_are_safe_and_new(prefix: str) -> None:
    first = fresh_name(prefix)
    assert checked_name(first) == first
    deadline = time.monotonic() + 5
    while fresh_name(prefix) == first:
        assert time.monotonic() < deadline


def test_the_next_life_knows_what_the_last_one_promised(tmp_path: Path) -> None:
    for mark_us in (1_000, 5_000):
        with Ledger.open(tmp_path, "one", "positions") as ledger:
            ledger.mark(mark_us)
            ledger.close(0)
    with Ledger.open(tmp_path, "one", "positions"):
        pass  # a life without a promise does not hide the earlier one
    with Ledger.open(tmp_path, "one", "positions") as ledger:
        assert ledger.previous_mark_us == 5_000
    closing = json.loads((tmp_path / "one" / "000002.jsonl").read_text().splitlines()[-1])
    assert closing == {"closed": {"next": 0, "mark": 5_000}}


def test_a_promise_is_known_even_if_the_process_died_before_it_closed(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, "one", "positions") as ledger:
        ledger.mark(7_000)
    with Ledger.open(tmp_path, "one", "positions") as ledger:
        assert ledger.previous_mark_us == 7_000


def test_a_file_cut_anywhere_reads_as_its_whole_lines(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, "one", "positions") as ledger:
        ledger.reserve(10)
        ledger.confirm(0, 10)
        ledger.close(10)
    path = tmp_path / "one" / "000001.jsonl"
    content = path.read_bytes()
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        accounts = read_ledgers(tmp_path)
        whole = content[:length].count(b"\n")
        assert len(accounts) == (1 if whole else 0)
        if whole >= 2:
            assert 9 in accounts[0].attempted
        assert all(account.closed == (whole == 4) for account in accounts)


def test_a_last_line_of_garbage_is_dropped_but_garbage_inside_is_damage(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, "one", "positions") as ledger:
        ledger.reserve(10)
    path = tmp_path / "one" / "000001.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0\0\0\0\n")
    assert 9 in only(tmp_path).attempted
    path.write_bytes(whole.replace(b'{"reserved', b"\0\0\0") + b'{"confirmed":[0,1]}\n')
    with pytest.raises(DataError, match="line 2"):
        read_ledgers(tmp_path)


def test_no_folder_means_no_accounts(tmp_path: Path) -> None:
    assert read_ledgers(tmp_path / "none") == []


def test_whatever_a_killed_process_has_sent_lies_in_what_it_reserved(tmp_path: Path) -> None:
    chance = random.Random(5)
    sent_path, folder = tmp_path / "sent", tmp_path / "ledgers"
    for _ in range(8):
        before = sent_path.stat().st_size if sent_path.exists() else 0
        child = subprocess.Popen([sys.executable, "-c", SENDS_UNTIL_KILLED, str(folder), str(sent_path)])
        try:
            wait_for_size(sent_path, before + chance.randrange(1, 4_000))
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
    sent = [tuple(map(int, line.split())) for line in sent_path.read_text().splitlines()]
    accounts = {account.epoch: account for account in read_ledgers(folder)}
    assert {epoch for epoch, _ in sent} == set(accounts) == set(range(1, 9))
    for epoch, account in accounts.items():
        assert all(number in account.attempted for of, number in sent if of == epoch)
        assert account.confirmed & account.unknown == IntervalSet()
        assert (account.confirmed | account.unknown) - account.attempted == IntervalSet()
        assert not account.closed
    with Ledger.open(folder, "mortal", "positions") as heir:
        assert heir.epoch == 9


def wait_for_size(path: Path, size: int) -> None:
    deadline = time.monotonic() + 30
    while not path.exists() or os.path.getsize(path) < size:  # noqa: PTH202 - polled as fast as can be
        assert time.monotonic() < deadline
