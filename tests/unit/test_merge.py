"""Merging small files: what is merged, what is left alone, and that every reader sees each row once meanwhile."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from sinks import merge as merging
from sinks.files import FileSink
from sinks.folders import exchange, named
from sinks.formats import Parquet, footer
from sinks.lanes import KEPT_AT_END, keeping
from sinks.merge import Merged, Policy, merge
from sinks.reader import Slot, quarantine_scan, quarantine_slots, scan, scan_slots, slots
from streaming.batch import Batch
from streaming.errors import ChainBroken, SetupError, SlotTaken
from streaming.home import Home
from tests.crash.landing import batches as deliveries
from tests.crash.landing import role_for, sink_for, table_for

AT_ONCE = Policy(settled_s=0, fewest=3, grace_s=0)
COMMITS = 12  # of 7 records each, every fiftieth of which is poison


@pytest.fixture(params=["parquet", "csv"])
def suffix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def land(home: Home, suffix: str, commits: range = range(COMMITS), partition: int = 0) -> FileSink:
    sink = sink_for(home.root, suffix)
    sink.resume(partition)
    for batch in [deliveries(role_for(suffix).reads[0], partition, 0)[number] for number in commits]:
        sink.write(batch)
        sink.commit()
    return sink


def rows_of(home: Home, suffix: str) -> pl.DataFrame:
    return scan(home, "kafka", table_for(suffix)).collect().sort("_partition", "_offset")


def of(home: Home, suffix: str, partition: int = 0) -> list[Slot]:
    return [slot for slot in slots(home, "kafka", table_for(suffix)) if slot.partition == partition]


def merged(home: Home, suffix: str, policy: Policy = AT_ONCE) -> list[Merged]:
    return [each for each in merge(home, "kafka", table_for(suffix), policy) if each.parts]


def test_all_but_the_last_slots_become_one_with_the_same_rows_and_the_same_end(home: Home, suffix: str) -> None:
    land(home, suffix)
    before, parts = rows_of(home, suffix), of(home, suffix)
    merged(home, suffix)
    after = of(home, suffix)
    assert rows_of(home, suffix).equals(before)
    assert [(slot.base, slot.next) for slot in after] == [
        (0, parts[-3].next),
        *((slot.base, slot.next) for slot in parts[-KEPT_AT_END:]),
    ]
    assert (after[0].commits, after[0].rows) == (COMMITS - 2, sum(slot.rows for slot in parts[:-2]))
    assert after[0].committed_at == parts[-3].committed_at
    assert named(after[0].path).next == after[0].next


def test_a_bare_glob_reads_a_merged_table(home: Home) -> None:
    land(home, "parquet")
    before = rows_of(home, "parquet")
    merged(home, "parquet")
    glob = home.warehouse("kafka") / "positions_parquet" / "**" / "*.parquet"
    assert pl.scan_parquet(glob).collect().sort("_offset").equals(before, null_equal=True)


def test_a_merged_parquet_says_what_its_parts_said(home: Home) -> None:
    land(home, "parquet")
    merged(home, "parquet")
    facts = footer(of(home, "parquet")[0].path).facts
    wanted = {"topic": "positions", "topic_id": "topic", "cluster_id": "cluster", "partition": "0", "base": "0"}
    assert facts == wanted | {
        "next": "70",
        "first": "0",
        "last": "69",
        "count": "69",
        "writer": "merge",
        "commits": "10",
    }


def test_the_sink_goes_on_after_a_merge_as_if_there_had_been_none(home: Home, suffix: str) -> None:
    land(home, suffix)
    merged(home, suffix)
    land(home, suffix, range(COMMITS, COMMITS + 5))
    merged(home, suffix)
    found = rows_of(home, suffix)["_offset"].to_list()
    assert found == [at for at in range(7 * (COMMITS + 5)) if at % 50 != 49]
    assert [slot.commits for slot in of(home, suffix)] == [COMMITS + 3, 1, 1]


def test_the_quarantine_is_merged_as_well(home: Home) -> None:
    sink = sink_for(home.root, "parquet")
    sink.resume(0)
    for at in range(8):
        sink.write(Batch("positions", 0, [b"poison"], np.array([at], dtype=np.int64)))
        sink.commit()
    before = quarantine_scan(home, "kafka", "positions_parquet").collect()
    merged(home, "parquet")
    assert [slot.commits for slot in quarantine_slots(home, "kafka", "positions_parquet")] == [6, 1, 1]
    assert quarantine_scan(home, "kafka", "positions_parquet").collect().equals(before)
    assert sink_for(home.root, "parquet").resume(0) == 8


def test_few_files_and_recent_ones_are_left_alone(home: Home, suffix: str) -> None:
    land(home, suffix)
    assert merged(home, suffix, Policy(settled_s=0, fewest=COMMITS)) == []
    assert merged(home, suffix, Policy(settled_s=3600, fewest=3)) == []
    for slot in of(home, suffix)[:4]:  # by what is newest in the table, not by the clock
        os.utime(slot.path, (1e9, 1e9))
    assert [each.parts for each in merged(home, suffix, Policy(settled_s=3600, fewest=3))] == [4]


def test_a_merged_file_has_a_bound_in_rows_and_in_bytes(home: Home, suffix: str) -> None:
    land(home, suffix)
    assert [each.parts for each in merged(home, suffix, Policy(settled_s=0, fewest=2, rows=21))] == [3, 3, 3]
    size = of(home, suffix)[0].size_bytes
    assert merged(home, suffix, Policy(settled_s=0, fewest=2, size_bytes=size)) == []


def test_what_was_merged_to_the_full_is_not_merged_again(home: Home, suffix: str) -> None:
    land(home, suffix)
    assert merged(home, suffix)
    assert merged(home, suffix) == []


def test_a_late_owner_of_a_merged_position_is_told(home: Home, suffix: str) -> None:
    late = sink_for(home.root, suffix)
    late.resume(0)
    land(home, suffix)
    merged(home, suffix)
    for batch in deliveries(role_for(suffix).reads[0], 0, 0)[:2]:
        late.write(batch)
    late.commit()
    assert late.displaced() == {0: of(home, suffix)[-1].next}
    other = land(home, suffix, range(0))  # an owner that stopped in the middle of what is merged now
    chain = other._lanes[0].chain
    chain.next = 14
    with pytest.raises(SlotTaken, match="merged"):
        chain.append(rows_of(home, suffix).filter(pl.col("_offset").is_between(14, 20)), 21)


def test_a_frame_and_a_list_of_slots_outlive_a_merge(home: Home, suffix: str) -> None:
    land(home, suffix)
    frame, listed = scan(home, "kafka", table_for(suffix)), of(home, suffix)
    some = scan_slots(listed[3:6])
    expected = rows_of(home, suffix)
    merged(home, suffix)
    assert frame.collect().sort("_offset").equals(expected)
    part = expected.filter(pl.col("_offset").is_between(listed[3].base, listed[5].next - 1))
    assert some.collect().sort("_offset").equals(part)
    assert some.select(pl.len()).collect().item() == len(part)


def test_a_table_that_is_merged_while_it_is_listed_is_listed_again(
    home: Home, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(home, suffix)
    expected, real = rows_of(home, suffix), footer
    looked: list[Path] = []

    def merging_meanwhile(path: Path) -> object:
        if not looked:
            looked.append(path)
            merged(home, suffix)
        return real(path)

    monkeypatch.setattr("sinks.reader.footer", merging_meanwhile)
    assert sum(slot.rows for slot in of(home, suffix)) == len(expected)


def test_a_file_that_is_gone_for_good_is_an_error_and_not_silence(home: Home, suffix: str) -> None:
    land(home, suffix)
    listed = of(home, suffix)
    listed[4].path.unlink()
    with pytest.raises((OSError, pl.exceptions.PolarsError)):
        scan_slots(listed).collect()


def test_a_second_merge_of_the_same_table_is_refused(home: Home, suffix: str) -> None:
    land(home, suffix)
    with keeping(home, "kafka", table_for(suffix)), pytest.raises(TimeoutError):
        merged(home, suffix)
    assert len(of(home, suffix)) == COMMITS


@pytest.mark.parametrize("grace_s", [0, 600])
def test_two_merges_that_know_nothing_of_each_other_do_no_harm(
    home: Home, suffix: str, grace_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the lock: the second finds its parts gone when it wants to put its folder in place."""
    land(home, suffix)
    expected = rows_of(home, suffix)
    nested: list[list[Merged]] = []

    def another(moment: str) -> None:
        if moment == "folder_synced" and not nested:
            nested.append(merge(home, "kafka", table_for(suffix), replace(AT_ONCE, grace_s=grace_s)))

    monkeypatch.setattr(merging, "keeping", lambda *_: nullcontext())
    with pytest.raises(FileNotFoundError):
        merge(home, "kafka", table_for(suffix), AT_ONCE, checkpoint=another)
    assert nested[0]
    assert rows_of(home, suffix).equals(expected)


def test_a_merged_file_that_differs_from_its_parts_never_replaces_them(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(home, "parquet")
    before = [slot.path for slot in of(home, "parquet")]
    write = Parquet.write

    def damaging(of: Parquet, table: pl.DataFrame, *rest: Any) -> None:
        write(of, table.with_columns(pl.col("sequence") + (pl.col("_offset") == 20)), *rest)

    monkeypatch.setattr(Parquet, "write", damaging)
    with pytest.raises(OSError, match="they stay"):
        merged(home, "parquet")
    assert [slot.path for slot in of(home, "parquet")] == before
    assert not list((home.staging("kafka") / "positions_parquet").iterdir())


def test_an_unreadable_slot_stops_the_merge_and_stays(home: Home, suffix: str) -> None:
    land(home, suffix)
    hurt = of(home, suffix)[5].path
    hurt.write_bytes(hurt.read_bytes()[:-3])
    with pytest.raises(ChainBroken, match="can't be read"):
        merged(home, suffix)
    assert len(list(hurt.parent.iterdir())) == COMMITS


def test_a_hole_in_the_chain_is_not_merged_over(home: Home, suffix: str) -> None:
    land(home, suffix)
    of(home, suffix)[5].path.unlink()
    assert [(each.base, each.parts) for each in merged(home, suffix)] == [(0, 5), (42, 4)]


def test_what_was_replaced_stays_a_while_for_who_is_listing_it(home: Home, suffix: str) -> None:
    land(home, suffix)
    merged(home, suffix, Policy(settled_s=0, fewest=3, grace_s=600))
    staging = home.staging("kafka") / table_for(suffix)
    (left,) = staging.iterdir()
    assert len(list(left.iterdir())) == COMMITS
    merged(home, suffix, Policy(settled_s=0, fewest=3, grace_s=600))
    assert left.exists()
    merged(home, suffix)
    assert not list(staging.iterdir())


def test_a_file_system_that_cannot_exchange_folders_is_told(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    with pytest.raises(SetupError, match="ext4, xfs"):
        exchange(tmp_path, tmp_path / "inside")  # the kernel's EINVAL: one contains the other


def test_a_renamed_merged_slot_is_refused_by_a_start(home: Home, suffix: str) -> None:
    land(home, suffix, range(4))
    merged(home, suffix, Policy(settled_s=0, fewest=2))
    first = of(home, suffix)[0].path
    first.rename(first.with_name(first.name.replace("-00000000000000000014-", "-00000000000000000013-")))
    for slot in of(home, suffix)[1:-1]:
        slot.path.unlink()
    with pytest.raises(ChainBroken):
        sink_for(home.root, suffix).resume(0)


def test_a_slot_of_an_older_schema_beside_newer_ones_is_read_and_merged_apart(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older slots lack a column: null where it is missing, its values where it is there, before and after."""
    land(home, "parquet", range(4))
    for slot in of(home, "parquet"):
        age(slot)
    land(home, "parquet", range(4, 10))
    expected = rows_of(home, "parquet")
    assert expected.filter(pl.col("_offset") < 28)["dilution"].null_count() == 28
    assert expected.filter(pl.col("_offset") >= 28)["dilution"].null_count() == 0
    assert [each.parts for each in merged(home, "parquet")] == [4, 4]
    assert rows_of(home, "parquet").equals(expected)


def age(slot: Slot) -> None:
    """Lay the slot down as an earlier version of the program would have: without a column that came later."""
    facts = {f"streamgauge.{name}": value for name, value in footer(slot.path).facts.items()}
    pl.read_parquet(slot.path).drop("dilution").write_parquet(slot.path, metadata=facts)


def test_slots_of_another_topic_are_not_merged_with_ours(home: Home) -> None:
    land(home, "parquet", range(9))
    for slot in of(home, "parquet")[:4]:
        facts = {f"streamgauge.{name}": value for name, value in footer(slot.path).facts.items()}
        pl.read_parquet(slot.path).write_parquet(slot.path, metadata=facts | {"streamgauge.topic_id": "earlier"})
    assert [(each.base, each.parts) for each in merged(home, "parquet")] == [(0, 4), (28, 3)]
