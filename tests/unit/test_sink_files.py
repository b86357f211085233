"""What sinks store and what readers see: empty tables, older schemas, foreign files, moved chains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sinks.derive import table_schema
from sinks.files import FileSink, Rotation
from sinks.reader import role_of, scan, slots, tables
from streaming.batch import Batch
from streaming.codecs import codec
from streaming.errors import ChainBroken, TopicRecreated, UsageError
from streaming.events import POSITIONS
from streaming.home import Home
from streaming.interfaces import Identity
from streaming.topology import ROLES

ROLE = ROLES["positions-parquet"]


def sink(home: Home, topic_id: str = "topic", **rotation: float) -> FileSink:
    rules = Rotation(**rotation)  # type: ignore[arg-type]
    made = codec("json", POSITIONS)
    return FileSink(home, "kafka", ROLE, made, Identity("cluster", topic_id), rotation=rules, writer="test")


def batch(start: int, count: int, *, mark: bool = False) -> Batch:
    line = (
        '{"vehicle":"v","producer":"p","epoch":1,"sequence":%d,"event_time":0,"latitude":57.64911,"longitude":10.40744}'
    )
    values = [(line % (-1 if mark else at)).encode() for at in range(start, start + count)]
    return Batch("positions", 0, values, np.arange(start, start + count, dtype=np.int64))


def land(home: Home, *batches: Batch) -> None:
    made = sink(home)
    made.resume(0)
    for each in batches:
        made.write(each)
        made.commit()


def test_a_table_of_which_nothing_has_landed_is_empty_with_its_columns(tmp_path: Path) -> None:
    assert tables(Home(tmp_path), "kafka") == []
    for role in ROLES.values():
        if role.table:
            assert scan(Home(tmp_path), "kafka", role.table).collect().schema == table_schema(role)


def test_a_bare_glob_reads_the_table_and_nothing_else(tmp_path: Path) -> None:
    home = Home(tmp_path)
    land(home, batch(0, 10), batch(10, 10))
    glob = home.warehouse("kafka") / "positions_parquet" / "**" / "*.parquet"
    assert sorted(pl.scan_parquet(glob).collect()["_offset"]) == list(range(20))
    assert [(slot.base, slot.next, slot.rows) for slot in slots(home, "kafka", "positions_parquet")] == [
        (0, 10, 10),
        (10, 20, 10),
    ]


def test_a_slot_from_before_a_column_existed_reads_beside_newer_ones(tmp_path: Path) -> None:
    home = Home(tmp_path)
    land(home, batch(0, 5), batch(5, 5))
    oldest = slots(home, "kafka", "positions_parquet")[0].path
    older = pl.read_parquet(oldest).drop("geohash")
    older.write_parquet(oldest, metadata={"streamgauge.next": "5", "streamgauge.topic_id": "topic"})
    frame = scan(home, "kafka", "positions_parquet").sort("_offset").collect()
    assert frame.schema == table_schema(ROLE)
    assert frame["geohash"].to_list() == [None] * 5 + ["u4pruyd"] * 5


def test_marks_are_not_stored_but_the_position_moves_over_them(tmp_path: Path) -> None:
    home = Home(tmp_path)
    land(home, batch(0, 3), batch(3, 2, mark=True))
    assert sink(home).resume(0) == 5
    assert scan(home, "kafka", "positions_parquet").collect().height == 3


def test_what_was_delivered_before_the_position_is_dropped(tmp_path: Path) -> None:
    home = Home(tmp_path)
    land(home, batch(0, 10), batch(5, 10))
    assert sorted(scan(home, "kafka", "positions_parquet").collect()["_offset"]) == list(range(15))


def test_rows_bytes_and_age_each_ask_for_a_commit(tmp_path: Path) -> None:
    for rules in ({"rows": 5}, {"size_bytes": 10}, {"seconds": 0.0}):
        made = sink(Home(tmp_path / next(iter(rules))), **rules)
        made.resume(0)
        answers = [made.is_due]
        made.write(batch(0, 5))
        answers.append(made.is_due)
        made.commit()
        assert [*answers, made.is_due] == [False, True, False]


def test_a_lost_partition_is_dropped_and_a_released_one_is_committed(tmp_path: Path) -> None:
    for lost in (True, False):
        home = Home(tmp_path / str(lost))
        made = sink(home)
        made.resume(0)
        made.write(batch(0, 5))
        made.release([0], lost=lost)
        assert scan(home, "kafka", "positions_parquet").collect().height == (0 if lost else 5)


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_slot_that_is_gone_stops_the_sink(tmp_path: Path, victim: int) -> None:
    home = Home(tmp_path)
    land(home, batch(0, 5), batch(5, 5), batch(10, 5))
    slots(home, "kafka", "positions_parquet")[victim].path.unlink()
    with pytest.raises(ChainBroken):
        sink(home).resume(0)


def test_a_torn_or_foreign_file_stops_the_sink(tmp_path: Path) -> None:
    home = Home(tmp_path)
    land(home, batch(0, 5))
    folder = slots(home, "kafka", "positions_parquet")[0].path.parent
    foreign = folder / "notes.parquet"
    foreign.write_bytes(b"x")
    with pytest.raises(ChainBroken, match=r"notes\.parquet"):
        sink(home).resume(0)
    foreign.unlink()
    (folder / f"{5:020d}.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(ChainBroken, match="can't be read"):
        sink(home).resume(0)


def test_files_of_a_topic_that_was_made_anew_are_refused(tmp_path: Path) -> None:
    home = Home(tmp_path)
    land(home, batch(0, 5))
    with pytest.raises(TopicRecreated):
        sink(home, topic_id="another").resume(0)


def test_an_unknown_table_names_those_that_are_there() -> None:
    with pytest.raises(UsageError, match="positions_parquet"):
        role_of("nothing")
