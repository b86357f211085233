"""verify on files laid by real generators, transformers and sinks: clean when whole, each damage by its word."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import polars as pl
import pytest
from rich.console import Console

from sinks import verify as verifying
from sinks.cut import Cut
from sinks.files import FileSink
from sinks.findings import TableReport
from sinks.formats import FORMATS, footer
from sinks.reader import Slot, slots
from sinks.verify import Report, verify
from streaming.batch import Outgoing
from streaming.codecs import codec
from streaming.generators.diagnostics import Diagnostics
from streaming.generators.ledger import Ledger
from streaming.generators.positions import Positions
from streaming.generators.run import Generator, produce
from streaming.generators.vehicles import Vehicles, reference_data
from streaming.home import Home
from streaming.interfaces import Codec, Step
from streaming.lab import Lab
from streaming.progress import Progress
from streaming.service import Limits, run_flow, run_sink
from streaming.topology import ROLES, STREAMS, Role, RoleKind
from streaming.transformers.flows import reference_table, step_for
from streaming.transformers.windows import MeansState, MeansStep
from streaming.transports.memory import MemoryTransport

LAB = Lab(vehicles=4, seed=3)
POSITIONS = 4_500


def _codec(stream: str) -> Codec:
    return codec(LAB.codec, STREAMS[stream].schema)


@dataclass(frozen=True)
class World:
    """A home, its broker in memory and what verify says of them."""

    home: Home
    transport: MemoryTransport
    done: Counter[str] = field(default_factory=Counter)  # records by role

    def generate(self, generator: Generator, messages: int, producer: str = "") -> None:
        stream = generator.stream
        ledger = Ledger.open(self.home.ledgers("memory"), producer or f"{stream}-generator", stream)
        publisher = self.transport.publisher("test")
        with ledger:
            limits = Limits(messages=messages)
            produce(generator, publisher, _codec(stream), ledger, stop=threading.Event(), limits=limits)

    def publish(self, stream: str, rows: pl.DataFrame) -> None:
        """Rows in the order given, whatever their times; a life of the producer `stray`."""
        with Ledger.open(self.home.ledgers("memory"), "stray", stream) as ledger:
            ledger.reserve(len(rows))
            named = rows.with_columns(
                producer=pl.lit("stray"), epoch=pl.lit(ledger.epoch, pl.Int64), sequence=pl.int_range(pl.len())
            ).select(STREAMS[stream].schema.names)
            publisher = self.transport.publisher("stray")
            publisher.publish(
                Outgoing(stream, _codec(stream).encode(named), named["vehicle"].cast(pl.Binary).to_list())
            )
            assert publisher.flush(1)
            ledger.confirm(0, len(rows))
            ledger.close(len(rows))

    def transform(self, role: Role, step: Step[Any] | None = None) -> None:
        codecs = {name: _codec(name) for name in (*role.reads, *role.writes) if not name.endswith("_state")}
        vehicles = reference_table(self.transport.read_all("vehicles"), _codec("vehicles"))
        run_flow(
            self.transport,
            role,
            step or step_for(role, vehicles=vehicles),
            codecs,
            stop=threading.Event(),
            progress=Progress(role.name),
            limits=self._rest(role),
            records_per_commit=1_000,
            commit_every_s=0.01,
        )

    def land(self, role: Role, records: int | None = None) -> None:
        sink = FileSink(
            self.home,
            "memory",
            role,
            _codec(role.reads[0]),
            self.transport.identity(role.reads[0]),
            writer="test",
        )
        limits = Limits(messages=records) if records else self._rest(role)
        if limits.messages:
            run_sink(self.transport, role, sink, stop=threading.Event(), progress=Progress(role.name), limits=limits)

    def work(self, steps: Mapping[str, Step[Any]] = MappingProxyType({})) -> None:
        """Transform and land all there is."""
        for role in ROLES.values():
            if role.kind is RoleKind.TRANSFORMER and self.records(role.reads[0]) > self.done[role.name]:
                self.transform(role, steps.get(role.name))
        for role in ROLES.values():
            if role.kind is RoleKind.SINK:
                self.land(role)

    def _rest(self, role: Role) -> Limits:
        """Until all that the role has not read yet is done."""
        there = self.records(role.reads[0])
        rest, self.done[role.name] = there - self.done[role.name], there
        return Limits(messages=rest, for_s=30)

    def records(self, stream: str) -> int:
        ends = self.transport.extents(stream)
        return sum(self.transport.count_between(stream, at, extent.low, extent.high) for at, extent in ends.items())

    def verify(self, wait_s: float = 0.0) -> Report:
        return verify(self.home, self.transport, LAB, wait_s=wait_s)

    def slot(self, table: str, at: int = 0) -> Slot:
        """A slot of the partition with the most, so that it has neighbours."""
        found = slots(self.home, "memory", table)
        most = max(found, key=lambda slot: sum(other.partition == slot.partition for other in found)).partition
        return sorted((slot for slot in found if slot.partition == most), key=lambda slot: slot.base)[at]


def _everything(home: Path, steps: dict[str, Step[Any]] | None = None) -> World:
    """Generated, transformed and landed in three rounds, a producer that comes late among it."""
    world = World(Home(home).open(), MemoryTransport())
    world.transport.create(STREAMS.values(), replication=1)
    world.generate(Vehicles(reference_data(LAB.seed, LAB.vehicles)), LAB.vehicles)
    positions = next(Positions(LAB.seed, LAB.vehicles, LAB.rate_hz, is_paced=False).chunks(0, threading.Event())).rows
    shuffled = positions.head(400).sample(fraction=1, shuffle=True, seed=5)
    for rows in (shuffled[:200], shuffled[200:300], shuffled[300:]):
        world.generate(Positions(LAB.seed, LAB.vehicles, LAB.rate_hz, is_paced=False), POSITIONS // 3)
        world.generate(Diagnostics(LAB.seed, LAB.vehicles, is_paced=False), 100)
        world.publish("positions", rows)
        world.work(steps or {})
    return world


@pytest.fixture(scope="module")
def laid(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Everything whole."""
    return _everything(tmp_path_factory.mktemp("lab") / "home")


@pytest.fixture
def world(laid: World, tmp_path: Path) -> World:
    """A copy of the files to damage, over the same broker."""
    shutil.copytree(laid.home.root, tmp_path / "home")
    return World(Home(tmp_path / "home"), laid.transport)


def _rewrite(slot: Slot, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    """Change a slot's rows behind the sink's back; what the file says of itself but its number of rows is kept."""
    frame, facts = change(pl.read_parquet(slot.path)), dict(footer(slot.path).facts)
    facts["count"] = str(len(frame))
    with slot.path.open("wb") as file:
        FORMATS["parquet"].write(frame, file, facts)


def _words(report: Report, table: str) -> set[str]:
    """The words that apply to a table."""
    [found] = [each for each in report.tables if each.table == table]
    return {word for word, count in found.counts.items() if count}


def test_what_was_laid_is_whole(laid: World) -> None:
    report = laid.verify()
    assert report.exit_code == 0, report.to_dict()
    assert not any(report.totals.values())
    rows = {table.table: table.rows for table in report.tables}
    assert rows["positions_parquet"] == POSITIONS + 400
    assert rows["late_positions_parquet"] > 0
    assert rows["alerts_csv"] == rows["alerts_parquet"] > 0
    assert rows["position_means_csv"] == rows["position_means_parquet"] > 100
    assert not [table.notes for table in report.tables if table.notes]


def test_a_slot_that_is_gone_breaks_its_chain_and_loses_its_rows(world: World) -> None:
    slot = world.slot("positions_parquet", at=1)
    slot.path.unlink()
    report = world.verify()
    assert {"lost", "corrupt"} <= _words(report, "positions_parquet")
    assert report.totals["lost"] == slot.rows
    assert report.exit_code == 1


def test_the_last_slot_being_gone_is_damage_and_not_something_pending(world: World) -> None:
    slot = world.slot("positions_parquet", at=-1)
    slot.path.unlink()
    report = world.verify()
    assert _words(report, "positions_parquet") == {"lost", "corrupt"}
    assert report.totals["lost"] == slot.rows


def test_a_slot_copied_to_another_base_doubles_its_rows(world: World) -> None:
    slot = world.slot("positions_parquet")
    shutil.copy(slot.path, slot.path.with_stem(f"{slot.next + 10_000:020d}"))
    report = world.verify()
    assert {"duplicated", "corrupt"} <= _words(report, "positions_parquet")
    assert report.totals["duplicated"] == slot.rows


@pytest.mark.parametrize("table", ["positions_parquet", "position_means_parquet", "late_positions_parquet"])
def test_a_dropped_row_is_lost(world: World, table: str) -> None:
    _rewrite(world.slot(table), lambda rows: rows.slice(1))
    report = world.verify()
    assert _words(report, table) == {"lost"}
    assert report.totals["lost"] == 1


@pytest.mark.parametrize("table", ["diagnostics_parquet", "position_means_parquet"])
def test_a_repeated_row_is_duplicated(world: World, table: str) -> None:
    _rewrite(world.slot(table), lambda rows: pl.concat([rows, rows.head(1)]))
    report = world.verify()
    assert "duplicated" in _words(report, table)
    assert report.totals["duplicated"] == 1


def test_rows_that_have_changed_places_are_reordered(world: World) -> None:
    _rewrite(world.slot("positions_parquet"), lambda rows: rows[[1, 0, *range(2, len(rows))]])
    assert _words(world.verify(), "positions_parquet") == {"reordered"}


def test_payloads_that_have_changed_offsets_are_reordered(world: World) -> None:
    def swap(rows: pl.DataFrame) -> pl.DataFrame:
        vehicle = rows["vehicle"][0]
        one, other = rows.with_row_index().filter(pl.col("vehicle") == vehicle)["index"][:2]
        order = list(range(len(rows)))
        order[one], order[other] = other, one
        return rows[order].with_columns(_offset=rows["_offset"])

    _rewrite(world.slot("diagnostics_parquet"), swap)
    assert _words(world.verify(), "diagnostics_parquet") == {"reordered"}


def test_a_row_nobody_sent_is_unexpected(world: World) -> None:
    _rewrite(world.slot("positions_parquet"), lambda rows: rows.with_columns(epoch=pl.col("epoch") + 7))
    assert {"unexpected", "lost"} <= _words(world.verify(), "positions_parquet")


def test_a_file_cut_short_is_corrupt(world: World) -> None:
    path = world.slot("positions_parquet").path
    path.write_bytes(path.read_bytes()[:100])
    assert {"corrupt", "lost"} <= _words(world.verify(), "positions_parquet")


@pytest.mark.parametrize("column", ["latitude", "speed_mps", "distance_m"])
def test_a_mean_that_was_altered_in_its_last_bits_is_wrong(world: World, column: str) -> None:
    def altered(rows: pl.DataFrame) -> pl.DataFrame:
        first = pl.int_range(pl.len()) == 0
        return rows.with_columns(pl.when(first).then(pl.col(column) + 1e-9).otherwise(pl.col(column)).alias(column))

    _rewrite(world.slot("position_means_parquet"), altered)
    report = world.verify()
    assert _words(report, "position_means_parquet") == {"wrong"}
    assert _words(report, "position_means_csv") == {"wrong"}, "the two formats no longer agree"
    assert report.exit_code == 1


def test_a_value_altered_in_one_of_two_formats_is_wrong(world: World) -> None:
    path = world.slot("alerts_csv").path
    path.write_text(path.read_text().replace("speeding", "geofence").replace("anomaly", "geofence"))
    report = world.verify()
    assert _words(report, "alerts_csv") == {"wrong"}
    assert not _words(report, "alerts_parquet")


def test_a_file_that_names_no_position_is_corrupt(world: World) -> None:
    path = world.slot("diagnostics_parquet", at=-1).path
    pl.read_parquet(path).write_parquet(path)
    assert "corrupt" in _words(world.verify(), "diagnostics_parquet")


def test_an_alert_with_another_value_is_wrong(world: World) -> None:
    _rewrite(world.slot("alerts_parquet"), lambda rows: rows.with_columns(value=pl.col("value") + 1))
    assert "wrong" in _words(world.verify(), "alerts_parquet")


def test_what_no_sink_has_reached_is_pending_and_not_lost(laid: World, tmp_path: Path) -> None:
    empty = World(Home(tmp_path / "home").open(), laid.transport)
    shutil.copytree(laid.home.ledgers("memory"), empty.home.ledgers("memory"))
    report = empty.verify()
    assert report.exit_code == 6
    assert {word for word, count in report.totals.items() if count} == {"pending"}


@pytest.mark.parametrize("seen", ["not one of the new slots", "only the last of the new slots"])
def test_what_lands_while_a_table_is_listed_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: str
) -> None:
    world = World(Home(tmp_path / "home").open(), MemoryTransport())
    world.transport.create(STREAMS.values(), replication=1)
    sink = ROLES["diagnostics-parquet"]
    for _ in range(2):
        world.generate(Diagnostics(LAB.seed, LAB.vehicles, is_paced=False), 100)
        world.land(sink)

    def first_look(home: Home, broker: str, table: str) -> list[Slot]:
        monkeypatch.setattr(verifying, "slots", slots)
        before = slots(home, broker, table)
        for _ in range(2):
            world.generate(Diagnostics(LAB.seed, LAB.vehicles, is_paced=False), 100)
            world.land(sink)
        if seen.startswith("not"):
            return before
        return before + [max(own, key=lambda slot: slot.base) for own in _by_partition(slots(home, broker, table))]

    monkeypatch.setattr(verifying, "slots", first_look)
    cut = Cut(pending=Counter())
    found = verifying._read_table(world.home, "memory", sink, cut, lambda _: None)
    assert found.report.rows >= 200
    assert {word for word, count in found.report.counts.items() if count} == set()


def _by_partition(found: list[Slot]) -> list[list[Slot]]:
    return [[slot for slot in found if slot.partition == at] for at in {slot.partition for slot in found}]


def test_what_was_sent_with_unknown_outcome_and_has_landed_is_recovered(world: World) -> None:
    ledger = world.home.ledgers("memory") / "positions-generator" / "000001.jsonl"
    ledger.write_bytes(ledger.read_bytes() + b'{"unknown":[10,15]}\n')
    report = world.verify()
    assert (report.totals["recovered"], report.exit_code) == (5, 0)


def test_undecodable_records_are_quarantined_and_neither_lost_nor_pending(tmp_path: Path) -> None:
    world = World(Home(tmp_path / "home").open(), MemoryTransport())
    world.transport.create(STREAMS.values(), replication=1)
    noise = [b"not a record", b"\x00\xff"]
    for stream in ("positions", "position_means", "alerts"):
        world.transport.publisher("noise").publish(Outgoing(stream, noise, [b"v", b"v"]))
    world.work()
    report = world.verify()
    assert report.exit_code == 0, report.to_dict()
    assert {table.table: table.quarantined for table in report.tables if table.quarantined} == dict.fromkeys(
        ("positions_parquet", "position_means_parquet", "position_means_csv", "alerts_parquet", "alerts_csv"), 2
    )


def test_reference_records_that_newer_ones_have_superseded_are_not_lost(tmp_path: Path) -> None:
    world = World(Home(tmp_path / "home").open(), MemoryTransport())
    world.transport.create(STREAMS.values(), replication=1)
    for _ in range(2):
        world.generate(Vehicles(reference_data(LAB.seed, LAB.vehicles)), LAB.vehicles)
    superseded = LAB.vehicles
    world.transport.delete_before("vehicles", 0, superseded)  # as compaction does, before any sink has run
    world.work()
    report = world.verify()
    assert report.exit_code == 0, report.to_dict()
    [vehicles] = [table for table in report.tables if table.table == "vehicles_parquet"]
    assert vehicles.notes == [f"{superseded} confirmed records were superseded by a later one of their key"]
    world.slot("vehicles_parquet").path.unlink()
    assert "lost" in _words(world.verify(), "vehicles_parquet")


class _Forgetful(MeansStep):
    """A transformer with a bug: it never publishes some of the windows, and numbers on as if they were not."""

    def advance(self, state: MeansState, rows: pl.DataFrame) -> tuple[MeansState, Mapping[str, pl.DataFrame]]:
        after, made = super().advance(state, rows)
        means = made["position_means"]
        kept = means.filter(pl.col("window_start").dt.second() % 30 != 2)
        numbered = kept.with_columns(sequence=pl.int_range(pl.len(), dtype=pl.Int64) + state.emitted)
        return replace(after, emitted=state.emitted + len(kept)), {**made, "position_means": numbered}


class _Hasty(MeansStep):
    """A transformer with a bug: it publishes each window twice."""

    def advance(self, state: MeansState, rows: pl.DataFrame) -> tuple[MeansState, Mapping[str, pl.DataFrame]]:
        after, made = super().advance(state, rows)
        twice = pl.concat([made["position_means"]] * 2)
        numbered = twice.with_columns(sequence=pl.int_range(pl.len(), dtype=pl.Int64) + state.emitted)
        return replace(after, emitted=state.emitted + len(twice)), {**made, "position_means": numbered}


@pytest.mark.parametrize(("step", "word"), [(_Forgetful(), "lost"), (_Hasty(), "duplicated")])
def test_a_transformer_that_forgets_or_repeats_windows_is_found_out(tmp_path: Path, step: MeansStep, word: str) -> None:
    report = _everything(tmp_path / "home", {"means-transformer": step}).verify()
    assert _words(report, "position_means_parquet") == {word}


def test_a_report_can_be_printed_and_written_as_json(laid: World) -> None:
    report = laid.verify()
    console = Console(width=250, record=True, file=StringIO())
    console.print(report.render())
    assert "nothing lost, nothing doubled" in console.export_text()
    assert json.loads(json.dumps(report.to_dict()))["exit_code"] == 0


def test_where_nothing_has_landed_nothing_is_called_whole() -> None:
    verdict = Report("kafka", "now", 0.0, (TableReport("positions_parquet", "positions"),)).verdict
    assert "nothing lost" not in verdict
    assert "no row" in verdict


def test_what_one_format_has_and_the_other_has_not_reached_is_not_wrong(world: World) -> None:
    last = world.slot("position_means_parquet", at=-1)
    last.path.unlink()
    (world.home.high_water("memory") / "position_means_parquet" / f"p={last.partition:05d}.table.json").unlink()
    report = world.verify()
    assert _words(report, "position_means_parquet") == {"pending"}
    assert not _words(report, "position_means_csv")
    _rewrite(world.slot("position_means_parquet"), lambda rows: rows.with_columns(speed_mps=pl.col("speed_mps") + 1))
    assert "wrong" in _words(world.verify(), "position_means_csv"), "what both have is compared all the same"
