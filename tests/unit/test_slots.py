"""A chain of slots: what a start accepts and refuses, and that of two owners one wins."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from sinks.formats import footer
from sinks.slots import Place, SlotChain, remove_stale
from streaming.errors import ChainBroken, SlotTaken, TopicRecreated
from streaming.interfaces import Identity

FORMATS = ["parquet", "csv"]


@pytest.fixture(params=FORMATS)
def suffix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(
        folder=tmp_path / "warehouse/kafka/table/p=00000",
        staging=tmp_path / "staging/kafka/table",
        high_water=tmp_path / "high_water/kafka/table/p=00000.table.json",
        topic="positions",
        partition=0,
        identity=Identity("cluster", "topic"),
        writer="test",
    )


def rows(first: int, end: int) -> pl.DataFrame:
    return pl.DataFrame({"sequence": range(first, end), "_offset": range(first, end)})


def laid(place: Place, suffix: str, *ends: int) -> SlotChain:
    chain = SlotChain(place, suffix)
    for end in ends:
        chain.append(rows(chain.next, end), end)
    return chain


def paths(place: Place) -> list[Path]:
    return sorted(place.folder.iterdir())


def test_each_slot_is_named_by_the_end_of_the_one_before_it(place: Place, suffix: str) -> None:
    laid(place, suffix, 10, 25, 26)
    assert [path.name for path in paths(place)] == [f"{base:020d}.{suffix}" for base in (0, 10, 25)]
    assert not list(place.staging.iterdir())


def test_a_new_chain_goes_on_where_the_old_one_ended(place: Place, suffix: str) -> None:
    laid(place, suffix, 10, 25)
    chain = SlotChain(place, suffix)
    assert (chain.next, chain.is_empty) == (25, False)
    chain.append(rows(25, 30), 30)
    assert SlotChain(place, suffix).next == 30


def test_a_chain_without_slots_begins_at_zero(place: Place, suffix: str) -> None:
    chain = SlotChain(place, suffix)
    assert (chain.next, chain.is_empty) == (0, True)


def test_a_parquet_slot_says_what_it_holds(place: Place) -> None:
    laid(place, "parquet", 10, 25)
    assert footer(paths(place)[1]).facts == {
        "topic": "positions",
        "topic_id": "topic",
        "cluster_id": "cluster",
        "partition": "0",
        "base": "10",
        "first": "10",
        "last": "24",
        "next": "25",
        "count": "15",
        "writer": "test",
    }


def test_a_slot_without_rows_still_moves_the_position(place: Place) -> None:
    chain = laid(place, "parquet", 10)
    chain.append(rows(0, 0), 20)
    assert SlotChain(place, "parquet").next == 20


def test_of_two_owners_of_a_position_the_second_is_told(place: Place, suffix: str) -> None:
    first, second = laid(place, suffix, 10), SlotChain(place, suffix)
    first.append(rows(10, 20), 20)
    with pytest.raises(SlotTaken):
        second.append(rows(10, 15), 15)
    assert not list(place.staging.iterdir())
    second.reload()
    second.append(rows(20, 22), 22)
    assert SlotChain(place, suffix).next == 22


def test_an_owner_that_comes_late_to_the_mark_does_not_lower_it(place: Place, suffix: str) -> None:
    def overtake(moment: str) -> None:
        if moment == "after_dirsync":
            laid(place, suffix, 20, 30)

    SlotChain(place, suffix, overtake).append(rows(0, 10), 10)
    mark = json.loads(place.high_water.read_text())
    assert (mark["next"], mark["slots"]) == (30, 3)


def remove(at: int) -> Callable[[list[Path]], None]:
    return lambda found: found[at].unlink()


def foreign(found: list[Path]) -> None:
    shutil.copy(found[0], found[0].with_stem("part-0001"))


def renamed(found: list[Path]) -> None:
    found[-1].rename(found[-1].with_stem(f"{999:020d}"))


def cut_short(found: list[Path]) -> None:
    found[-1].write_bytes(found[-1].read_bytes()[:-3])


def emptied(found: list[Path]) -> None:
    found[-1].write_bytes(b"")


def all_gone(found: list[Path]) -> None:
    shutil.rmtree(found[0].parent)


DAMAGES = [remove(0), remove(1), remove(2), remove(-2), remove(-1), foreign, renamed, cut_short, emptied, all_gone]
NAMES = ["first gone", "second gone", "third gone", "last but one gone", "last gone", "foreign", "renamed", "cut short"]


@pytest.mark.parametrize("damage", DAMAGES, ids=[*NAMES, "emptied", "all gone"])
def test_a_start_refuses_a_damaged_chain(place: Place, suffix: str, damage: Callable[[list[Path]], None]) -> None:
    laid(place, suffix, 10, 25, 26, 40, 41)
    damage(paths(place))
    with pytest.raises(ChainBroken):
        SlotChain(place, suffix)


def test_without_the_mark_the_last_slots_are_still_proven(place: Place, suffix: str) -> None:
    laid(place, suffix, 10, 25, 26)
    place.high_water.unlink()
    assert SlotChain(place, suffix).next == 26
    paths(place)[1].unlink()
    with pytest.raises(ChainBroken, match="missing"):
        SlotChain(place, suffix)


def test_a_mark_that_cannot_be_read_is_told(place: Place, suffix: str) -> None:
    laid(place, suffix, 10)
    place.high_water.write_text("{")
    with pytest.raises(ChainBroken, match="high_water"):
        SlotChain(place, suffix)


def test_hidden_files_are_no_slots(place: Place, suffix: str) -> None:
    laid(place, suffix, 10)
    (place.folder / ".nfs0001").write_bytes(b"")
    assert SlotChain(place, suffix).next == 10


@pytest.mark.parametrize("other", [Identity("cluster", "another"), Identity("another", "topic")])
def test_files_of_another_topic_or_cluster_are_refused(place: Place, suffix: str, other: Identity) -> None:
    laid(place, suffix, 10)
    with pytest.raises(TopicRecreated, match="another"):
        SlotChain(replace(place, identity=other), suffix)


def test_what_the_dead_left_in_staging_is_removed_and_what_the_living_write_is_not(place: Place, suffix: str) -> None:
    place.staging.mkdir(parents=True)
    left = place.staging / "0123.parquet"
    left.write_bytes(b"half a file")

    def clean_up(moment: str) -> None:
        if moment == "after_write":
            remove_stale(place.staging)

    SlotChain(place, suffix, clean_up).append(rows(0, 10), 10)
    assert not left.exists()
    assert SlotChain(place, suffix).next == 10


def test_a_slot_that_moves_nothing_is_refused(place: Place, suffix: str) -> None:
    chain = laid(place, suffix, 10)
    with pytest.raises(ValueError, match="none"):
        chain.append(rows(0, 0), 10)


def test_a_start_reads_few_files_of_a_long_chain(place: Place, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    laid(place, suffix, *range(1, 40))
    read: list[Path] = []

    def counted(path: Path) -> object:
        read.append(path)
        return footer(path)

    monkeypatch.setattr("sinks.slots.footer", counted)
    assert SlotChain(place, suffix).next == 39
    assert read == paths(place)[-2:]
