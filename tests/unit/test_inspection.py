"""Looking into a cluster, the parts that need none: plans, arguments, what is shown of a record."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.cli.broker import _settings
from streaming.cluster.reassignment import write_plan
from streaming.codecs import codec
from streaming.errors import UsageError
from streaming.events import MARK
from streaming.topology import STREAMS
from streaming.transports.kafka.browsing import Record, shown, start_of
from streaming.transports.kafka.inspection import Group, Partition, Position, Topic, _no_such
from streaming.transports.kafka.operating import insist_on_foreign, reassigned


def partitions(*replicas: tuple[int, ...]) -> list[Partition]:
    return [Partition("mine", number, each[0], each, each) for number, each in enumerate(replicas)]


@given(
    st.lists(st.permutations([1, 2, 3, 4]).map(tuple), min_size=1, max_size=12),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_a_new_number_of_copies_keeps_the_preferred_leader_and_moves_no_more_than_it_must(
    orders: list[tuple[int, ...]], had: int, wanted: int
) -> None:
    before = partitions(*(order[:had] for order in orders))
    moves = reassigned(before, [1, 2, 3, 4], wanted)
    assert set(moves) == (set() if had == wanted else {("mine", each.number) for each in before})
    for each in before:
        after = moves.get(("mine", each.number), each.replicas)
        assert len(after) == len(set(after)) == wanted
        assert tuple(after[: min(had, wanted)]) == each.replicas[: min(had, wanted)]


def test_new_copies_go_to_the_brokers_that_keep_the_fewest() -> None:
    moves = reassigned(partitions((1,), (1,), (1,), (1,)), [1, 2, 3], 2)
    added = sorted(after[1] for after in moves.values())
    assert added == [2, 2, 3, 3]


def test_more_copies_than_brokers_alive_are_refused() -> None:
    with pytest.raises(UsageError, match="--replication-factor 4: 1 to 3"):
        reassigned(partitions((1,)), [1, 2, 3], 4)


def test_a_plan_is_what_kafkas_tool_reads(tmp_path: Path) -> None:
    write_plan(tmp_path / "plan", {("mine", 0): [2, 3]})
    said = json.loads((tmp_path / "plan").read_text())
    assert said == {"version": 1, "partitions": [{"topic": "mine", "partition": 0, "replicas": [2, 3]}]}


@pytest.mark.parametrize("name", ["positions", "means_state", "__consumer_offsets"])
def test_topics_of_the_application_and_of_kafka_are_not_changed(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        insist_on_foreign(name)
    insist_on_foreign(f"{name.strip('_')}-of-mine")


def test_where_to_begin_is_an_end_an_offset_or_a_time() -> None:
    assert start_of("earliest") == "earliest"
    assert start_of("17") == 17
    assert start_of("2026-11-25T15:00:00") == datetime(2026, 11, 25, 15, tzinfo=UTC)
    assert start_of("2026-11-25T16:00:00+01:00") == datetime(2026, 11, 25, 15, tzinfo=UTC)
    with pytest.raises(UsageError, match="--from yesterday"):
        start_of("yesterday")


def vehicle(name: str, sequence: int) -> bytes:
    schema = codec("json", STREAMS["vehicles"].schema)
    row = {
        "vehicle": name,
        "producer": "tests",
        "epoch": 1,
        "sequence": sequence,
        "event_time": datetime.now(UTC),
        "model": "m",
        "depot": "d",
        "depot_latitude": 52.0,
        "depot_longitude": 5.0,
        "speed_limit_mps": 10.0,
        "range_limit_m": 100.0,
    }
    return schema.encode(pl.DataFrame([row]))[0]


def records(*values: bytes | None) -> list[Record]:
    now = datetime.now(UTC)
    return [Record("vehicles", 0, 10 + place, now, b"k", value) for place, value in enumerate(values)]


def test_each_record_is_shown_beside_its_own_offset_whatever_its_neighbours_are() -> None:
    values = [vehicle("a", 0), b"nonsense", vehicle("b", 1), None, b"\xff\x00", vehicle("", MARK)]
    found = shown(records(*values), codec("json", STREAMS["vehicles"].schema))
    assert [each["offset"] for each in found] == [10, 11, 12, 13, 14, 15]
    assert [each.get("row", {}).get("vehicle") for each in found] == ["a", None, "b", None, None, ""]
    assert [each.get("is_mark") for each in found] == [False, None, False, None, None, True]
    assert found[1]["text"] == "nonsense"
    assert found[1]["why_raw"]
    assert found[3]["is_tombstone"]
    assert found[4]["hex"] == "ff00"


def test_without_a_codec_records_are_shown_as_they_are_with_the_reason() -> None:
    [text, binary] = shown(records('{"größe": 1}'.encode(), bytes([0, 159])), None, "not ours")
    assert (text["text"], text["why_raw"]) == ('{"größe": 1}', "not ours")
    assert (binary["hex"], binary["why_raw"], binary["size_bytes"]) == ("009f", "not ours", 2)


def test_what_is_not_known_makes_no_number() -> None:
    unknown = Partition("mine", 1, None, (2,), (2,))
    assert unknown.offsets_held is None
    assert Topic("mine", (*partitions((1,)), unknown)).to_dict()["offsets_held"] is None
    known, unread = Position("mine", 0, 5, 8, None), Position("mine", 1, None, 8, None)
    assert (known.lag, unread.lag) == (3, None)
    assert Group("g", "stable", "classic", "range", 1, (), (known, unread)).lag is None


def test_a_copy_that_is_not_in_sync_makes_a_partition_under_replicated() -> None:
    poor = Partition("mine", 0, 1, (1, 2, 3), (1, 3))
    assert poor.is_under_replicated
    assert Topic("mine", (poor, *partitions((2, 3, 1)))).under_replicated == 1


def test_a_name_that_is_almost_right_is_answered_with_the_nearest() -> None:
    said = _no_such("topic", "positons", ["__consumer_offsets", "alerts", "positions"], "here:9092")
    assert "did you mean positions?" in said
    assert "__consumer_offsets" not in said
    assert "did you mean" not in _no_such("topic", "xyz", ["alerts"], "here:9092")


def test_settings_are_pairs_and_a_setting_without_a_value_is_taken_back() -> None:
    assert _settings(["retention.ms=1", "cleanup.policy="]) == {"retention.ms": "1", "cleanup.policy": ""}
    with pytest.raises(UsageError, match="--config retention"):
        _settings(["retention"])
