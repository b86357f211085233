"""Pruning: the oldest slots go, the chain says where it begins, and verify calls them pruned and nothing else lost."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sinks.arrivals import ArrivalSink
from sinks.files import Rotation
from sinks.formats import footer
from sinks.lanes import keeping
from sinks.merge import Policy, merge
from sinks.prune import CHECKPOINTS, Pruned, prune, reading
from sinks.pruned import intend, pruned_identities
from sinks.reader import Slot, begins, quarantine_slots, scan, scan_slots, slots, tables
from sinks.slots import SlotChain
from streaming.batch import Batch
from streaming.errors import ChainBroken, SlotTaken
from streaming.home import Home
from streaming.intervals import IntervalSet
from streaming.topology import role
from tests.brokers.rabbitmq_scenes import CODEC, IDENTITY, positions
from tests.crash.landing import batches as deliveries
from tests.crash.landing import role_for, sink_for, table_for
from tests.unit.test_verify import World, _rewrite, laid, world

__all__ = ["laid", "world"]  # fixtures

COMMITS = 10  # of 7 records each, every fiftieth of which is poison
KEEP = timedelta(days=30)
DAY_S = 86_400.0


@pytest.fixture(params=["parquet", "csv"])
def suffix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def land(home: Home, suffix: str, commits: range = range(COMMITS)) -> None:
    sink = sink_for(home.root, suffix)
    sink.resume(0)
    for batch in [deliveries(role_for(suffix).reads[0], 0, 0)[number] for number in commits]:
        sink.write(batch)
        sink.commit()


def of(home: Home, suffix: str) -> list[Slot]:
    return slots(home, "kafka", table_for(suffix))


def age(chosen: list[Slot], days: float = 40) -> None:
    for slot in chosen:
        os.utime(slot.path, (time.time() - days * DAY_S,) * 2)


def pruned(home: Home, suffix: str, **options: object) -> list[Pruned]:
    return prune(home, "kafka", table_for(suffix), KEEP, grace_s=0, **options)  # type: ignore[arg-type]


def test_whole_old_slots_go_and_the_chain_says_where_it_begins(home: Home, suffix: str) -> None:
    land(home, suffix)
    before = scan(home, "kafka", table_for(suffix)).collect()
    age(of(home, suffix)[:4])
    (found,) = pruned(home, suffix)
    assert (found.next, found.files, found.rows) == (28, 4, 28)
    after = scan(home, "kafka", table_for(suffix)).collect()
    assert after.sort("_offset").equals(before.filter(pl.col("_offset") >= 28).sort("_offset"))
    assert {partition: begin.next for partition, begin in begins(home, "kafka", table_for(suffix)).items()} == {0: 28}
    assert sum(map(len, pruned_identities(home, "kafka", table_for(suffix)).values())) == 28


def test_the_sink_goes_on_and_a_second_prune_goes_on_from_the_first(home: Home, suffix: str) -> None:
    land(home, suffix)
    age(of(home, suffix)[:4])
    pruned(home, suffix)
    land(home, suffix, range(COMMITS, COMMITS + 3))
    age(of(home, suffix)[:2])
    assert [each.next for each in pruned(home, suffix)] == [42]
    assert sink_for(home.root, suffix).resume(0) == 7 * (COMMITS + 3)
    assert sum(map(len, pruned_identities(home, "kafka", table_for(suffix)).values())) == 42


def test_merged_slots_are_pruned_and_pruned_chains_merged(home: Home, suffix: str) -> None:
    land(home, suffix)
    policy = Policy(settled_s=0, fewest=3, rows=21, grace_s=0)
    merge(home, "kafka", table_for(suffix), policy)
    age(of(home, suffix)[:1])
    assert [each.next for each in pruned(home, suffix)] == [21]
    merge(home, "kafka", table_for(suffix), Policy(settled_s=0, fewest=2, grace_s=0))
    assert [slot.commits for slot in of(home, suffix)] == [5, 1, 1]
    assert sink_for(home.root, suffix).resume(0) == 7 * COMMITS


def test_what_a_start_reads_is_never_pruned(home: Home, suffix: str) -> None:
    land(home, suffix)
    age(of(home, suffix))
    pruned(home, suffix)
    assert [slot.base for slot in of(home, suffix)] == [7 * (COMMITS - 2), 7 * (COMMITS - 1)]
    assert sink_for(home.root, suffix).resume(0) == 7 * COMMITS


def test_an_old_slot_behind_a_young_one_stays(home: Home, suffix: str) -> None:
    land(home, suffix)
    age(of(home, suffix)[2:5])
    assert pruned(home, suffix) == []


def test_a_dry_run_says_what_would_go_and_touches_nothing(home: Home, suffix: str) -> None:
    land(home, suffix)
    age(of(home, suffix)[:4])
    before = sorted(path for path in home.root.rglob("*") if path.suffix != ".lock")
    assert [(each.next, each.files) for each in pruned(home, suffix, dry_run=True)] == [(28, 4)]
    assert sorted(path for path in home.root.rglob("*") if path.suffix != ".lock") == before


def test_reference_tables_are_kept_whole(home: Home) -> None:
    assert prune(home, "kafka", "vehicles_parquet", timedelta(0)) == []


def test_the_quarantine_is_pruned_with_its_own_beginning(home: Home) -> None:
    land(home, "parquet", range(25))  # poison at 49, 99 and 149
    aside = quarantine_slots(home, "kafka", "positions_parquet")
    age(aside)
    assert [(each.kind, each.files) for each in pruned(home, "parquet")] == [("quarantine", len(aside) - 2)]
    left = quarantine_slots(home, "kafka", "positions_parquet")
    assert [slot.path for slot in left] == [slot.path for slot in aside[-2:]]
    assert sink_for(home.root, "parquet").resume(0) == 175


def test_an_owner_that_comes_late_to_a_pruned_position_is_told(home: Home, suffix: str) -> None:
    land(home, suffix)
    chain = SlotChain(sink_for(home.root, suffix)._place(0), suffix)
    rows = scan(home, "kafka", table_for(suffix)).collect().sort("_offset")
    age(of(home, suffix)[:4])
    pruned(home, suffix)
    chain.next = 14
    with pytest.raises(SlotTaken, match="pruned"):
        chain.append(rows.filter(pl.col("_offset").is_between(14, 20)), 21)


def test_a_front_that_is_missing_without_a_word_is_damage(home: Home, suffix: str) -> None:
    land(home, suffix)
    age(of(home, suffix)[:4])
    pruned(home, suffix)
    of(home, suffix)[0].path.unlink()
    with pytest.raises(ChainBroken, match="slots are missing"):
        sink_for(home.root, suffix).resume(0)


def test_nothing_is_pruned_while_verify_reads_or_another_keeps_house(home: Home, suffix: str) -> None:
    land(home, suffix)
    age(of(home, suffix)[:4])
    for held in (reading(home, "kafka"), keeping(home, "kafka", table_for(suffix))):
        with held, pytest.raises(TimeoutError):
            pruned(home, suffix)
    assert len(of(home, suffix)) == COMMITS


class Killed(BaseException):
    """Stands for SIGKILL; what Python would tidy up on its way out is put back by the test's own copy."""


@pytest.mark.parametrize("moment", CHECKPOINTS)
def test_a_prune_that_dies_at_any_moment_is_whole_or_was_not(home: Home, suffix: str, moment: str) -> None:
    land(home, suffix)
    age(of(home, suffix)[:4])

    def dies(reached: str) -> None:
        if reached == moment:
            raise Killed

    with pytest.raises(Killed):
        pruned(home, suffix, checkpoint=dies)
    noted = sum(map(len, pruned_identities(home, "kafka", table_for(suffix)).values()))
    assert (len(of(home, suffix)), noted) in {(COMMITS, 0), (COMMITS - 4, 28)}
    assert sink_for(home.root, suffix).resume(0) == 7 * COMMITS
    pruned(home, suffix)
    assert len(of(home, suffix)) == COMMITS - 4
    assert sum(map(len, pruned_identities(home, "kafka", table_for(suffix)).values())) == 28


def test_an_intention_that_did_not_come_true_hides_nothing(home: Home) -> None:
    land(home, "parquet")
    intend(home, "kafka", "positions_parquet", 0, 28, {("x", 1): IntervalSet.of_ranges([(0, 28)])})
    assert pruned_identities(home, "kafka", "positions_parquet") == {}


def test_a_note_that_cannot_be_read_is_told(home: Home) -> None:
    land(home, "parquet")
    age(of(home, "parquet")[:4])
    pruned(home, "parquet")
    (home.high_water("kafka") / "positions_parquet" / "pruned.parquet").write_bytes(b"?")
    with pytest.raises(ChainBroken, match="counts as lost"):
        pruned_identities(home, "kafka", "positions_parquet")


def test_a_pruned_event_that_a_queue_delivers_again_is_not_written_again(home: Home) -> None:
    def sink() -> ArrivalSink:
        made = ArrivalSink(
            home, "rabbitmq", role("positions-parquet"), CODEC, IDENTITY, rotation=Rotation(rows=10), writer="t"
        )
        made.resume(0)
        return made

    def batch(first: int, count: int) -> Batch:
        return Batch("positions", 0, CODEC.encode(positions(count, first=first)), np.arange(1, count + 1))

    first = sink()
    for at in range(0, 50, 10):
        first.write(batch(at, 10))
        first.commit()
    age(slots(home, "rabbitmq", "positions_parquet")[:2])
    assert [each.rows for each in prune(home, "rabbitmq", "positions_parquet", KEEP)] == [20]
    again = sink()
    again.write(batch(0, 55))
    again.commit()
    assert sorted(scan(home, "rabbitmq", "positions_parquet").collect()["sequence"]) == list(range(20, 55))


def prune_all(world: World) -> None:
    """Of each partition the oldest slot; the other two are those that a sink resumes from."""
    for table in tables(world.home, "memory"):
        age(slots(world.home, "memory", table))
        prune(world.home, "memory", table, KEEP)


def test_verify_says_pruned_and_nothing_else(world: World) -> None:
    prune_all(world)
    report = world.verify()
    assert report.exit_code == 0, report.to_dict()
    counted = {table.table: table for table in report.tables}
    assert counted["positions_parquet"].pruned > 1000
    assert counted["vehicles_parquet"].pruned == 0
    assert any("were pruned and are not missing" in note for note in counted["positions_parquet"].notes)
    assert any("not recomputed" in note for note in counted["position_means_parquet"].notes)


def test_beside_what_was_pruned_a_lost_and_a_doubled_row_are_still_found(world: World) -> None:
    prune_all(world)
    _rewrite(world.slot("diagnostics_parquet"), lambda rows: rows.slice(1))
    _rewrite(world.slot("positions_parquet"), lambda rows: pl.concat([rows, rows.head(1)]))
    totals = world.verify().totals
    assert (totals["lost"], totals["duplicated"]) == (1, 1)


def test_a_pruned_row_that_is_here_again_was_doubled(world: World) -> None:
    gone = scan_slots([world.slot("positions_parquet")]).select("producer", "epoch", "sequence").head(1).collect()
    prune_all(world)
    _rewrite(
        world.slot("positions_parquet"),
        lambda rows: pl.concat([rows.head(1).with_columns(gone[name] for name in gone.columns), rows.slice(1)]),
    )
    assert {"lost", "duplicated"} <= {word for word, count in world.verify().totals.items() if count}


def test_verify_is_clean_and_recomputes_all_after_merges(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinks.merge.KEPT_AT_END", 1)  # there are three slots a partition: two to merge
    before = world.verify()
    parts = [
        merge(world.home, "memory", table, Policy(settled_s=0, fewest=2)) for table in tables(world.home, "memory")
    ]
    assert sum(map(len, parts)) > 20
    report = world.verify()
    assert report.exit_code == 0, report.to_dict()
    assert not any(report.totals.values())
    assert not [table.notes for table in report.tables if table.notes]
    assert sum(table.rows for table in report.tables) == sum(table.rows for table in before.tables)
    merged = sum(each.parts - 1 for done in parts for each in done)
    assert sum(table.files for table in report.tables) == sum(table.files for table in before.tables) - merged


def without(slot: Slot, column: str, field: str | None = None) -> None:
    """Lay the slot down as before the schema gained a column, or a nested one gained a field."""
    rows, facts = pl.read_parquet(slot.path), footer(slot.path).facts
    if field is None:
        older = rows.drop(column)
    else:
        kept = [each.name for each in rows.schema[column].fields if each.name != field]  # type: ignore[attr-defined]
        older = rows.with_columns(pl.struct(pl.col(column).struct.field(name) for name in kept).alias(column))
    older.write_parquet(slot.path, metadata={f"streamgauge.{name}": value for name, value in facts.items()})


def test_verify_reads_slots_from_before_a_schema_gained_a_column_beside_newer_ones(world: World) -> None:
    without(world.slot("positions_parquet"), "dilution")
    older = world.slot("diagnostics_parquet")
    without(older, "battery", "charge")
    report = world.verify()
    assert report.exit_code == 0, report.to_dict()
    rows = scan(world.home, "memory", "diagnostics_parquet").collect()
    is_older = (pl.col("_partition") == older.partition) & (pl.col("_offset") < older.next)
    charge = pl.col("battery").struct.field("charge")
    assert rows.filter(is_older).select(charge.null_count()).item() == older.rows
    assert rows.filter(~is_older).select(charge.count()).item() > 0
