"""Reconcile what producers and brokers claim with what is in the files: the truth about a lab, table by table.

A cut is taken (see cut), the sinks get time to pass it, then every committed file is read: chains, counts, order,
each row's identity against the ledgers, derived values against their recomputation, one format against the other.
Invariant: verify only reads, and it may be called at any time, of a running lab too.

What it can't see: a record that was undecodable has no identity. It is counted as quarantined, and if a producer
confirmed it, its sequence is missing and counts as lost, because what that producer sent is in no table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import polars as pl

from sinks.accounts import Claim, Files, Life, check_files, check_identities, claims_of, claims_of_counts
from sinks.cut import Cut, high_water, snapshots, take_cut
from sinks.derivations import Landed, check_alerts, check_formats, check_means
from sinks.findings import Report, TableReport
from sinks.prune import reading
from sinks.pruned import pruned_identities
from sinks.queue_cut import take_queue_cut
from sinks.reader import Slot, begins, quarantine_scan, slots
from streaming.codecs import codec
from streaming.errors import UsageError
from streaming.events import MARK
from streaming.generators.ledger import Account, read_ledgers
from streaming.home import Home
from streaming.interfaces import Queueing, Replayable, Transport
from streaming.intervals import IntervalSet
from streaming.lab import Lab
from streaming.topology import ROLES, STREAMS, Role, RoleKind, StreamKind
from streaming.transformers.flows import step_for

__all__ = ["Report", "verify"]
_SINKS: Final = tuple(role for role in ROLES.values() if role.table)


def verify(
    home: Home, transport: Transport, lab: Lab, *, wait_s: float, progress: Callable[[str], None] = lambda _: None
) -> Report:
    """Take a cut, wait up to `wait_s` for the sinks to pass it, reconcile. Changes nothing."""
    broker = transport.name
    taken_at = datetime.now(UTC).isoformat(timespec="seconds")
    before = _claims(transport, read_ledgers(home.ledgers(broker)))
    cut = _cut(home, transport, lab, before, wait_s=wait_s, progress=progress)
    with reading(home, broker):
        return _reconciled(home, transport, lab, before, cut, taken_at, progress)


def _reconciled(
    home: Home,
    transport: Transport,
    lab: Lab,
    before: Mapping[str, Mapping[Life, Claim]],
    cut: Cut,
    taken_at: str,
    progress: Callable[[str], None],
) -> Report:
    broker = transport.name
    tables = [_read_table(home, broker, role, cut, progress) for role in _SINKS]
    after = _claims(transport, read_ledgers(home.ledgers(broker)))
    for table in tables:
        name, kind = table.report.stream, STREAMS[table.report.stream].kind
        kept = _kept(transport, lab, name) if kind is StreamKind.REFERENCE else None
        pruned = pruned_identities(home, broker, table.report.table)
        check_identities(table.report, table.files.sequences, before[name], after[name], kept=kept, pruned=pruned)
    progress("recomputing what is derived")
    _check_values(tables, cut)
    return Report(broker, taken_at, cut.waited_s, tuple(table.report for table in tables))


def _cut(
    home: Home,
    transport: Transport,
    lab: Lab,
    claims: Mapping[str, Mapping[Life, Claim]],
    *,
    wait_s: float,
    progress: Callable[[str], None],
) -> Cut:
    """A cut of the kind that the transport allows."""
    if isinstance(transport, Replayable):
        return take_cut(home, transport.name, transport, wait_s=wait_s, progress=progress)
    if isinstance(transport, Queueing):
        return take_queue_cut(home, transport, lab, claims, wait_s=wait_s, progress=progress)
    raise UsageError(f"{transport.name} can neither replay nor say what waits: there is no moment to verify at")


@dataclass(frozen=True, slots=True)
class _TableRead:
    """A table after its files were read once."""

    role: Role
    report: TableReport
    files: Files


def _read_table(home: Home, broker: str, role: Role, cut: Cut, progress: Callable[[str], None]) -> _TableRead:
    name, stream = str(role.table), role.reads[0]
    progress(f"reading {name}")
    report = TableReport(name, stream, quarantined=_quarantined(home, broker, name))
    makers = [maker.name for maker in ROLES.values() if maker.kind is RoleKind.TRANSFORMER and stream in maker.writes]
    for who in (name, *makers):
        report.add("pending", cut.pending[who], [f"{cut.pending[who]:,} records that {who} had not reached"])
    begun = {partition: begin.next for partition, begin in begins(home, broker, name).items()}
    if begun:
        report.pruned = sum(len(numbers) for numbers in pruned_identities(home, broker, name).values())
        upto = ", ".join(f"p={partition} begins at {offset}" for partition, offset in sorted(begun.items()))
        report.notes.append(f"{report.pruned:,} rows were pruned and are not missing: {upto}")
    reached = high_water(home, broker, name)  # first: a sink that lives goes further while the files are listed
    return _TableRead(role, report, check_files(report, _listed(home, broker, name), reached, begun))


def _listed(home: Home, broker: str, table: str) -> list[Slot]:
    """The table's slots up to where a first look finds it, without a hole.

    What comes into a folder while it is listed may be seen or not, so a later slot without the one before it. Slots are
    committed in order: all up to the last one that the first look saw were there before the second began.
    """
    last: dict[int, int] = {}
    for slot in slots(home, broker, table):
        last[slot.partition] = max(last.get(slot.partition, 0), slot.base)
    return [slot for slot in slots(home, broker, table) if slot.base <= last.get(slot.partition, -1)]


def _claims(transport: Transport, accounts: list[Account]) -> dict[str, dict[Life, Claim]]:
    """By stream: what ledgers and, for what transformers number themselves, their committed snapshots say."""
    claims = {name: claims_of(accounts, name) for name in STREAMS}
    for role in (role for role in ROLES.values() if role.kind is RoleKind.TRANSFORMER):
        step = step_for(role, vehicles=(pl.DataFrame(), 0))
        found, made = snapshots(transport, role), role.writes[0]
        emitted = {at: step.load(one.state).emitted for at, one in found.items()}
        unsent = {at: one.unsent.get(made, 0) for at, one in found.items()}
        claims[made] = claims_of_counts(role.name.removesuffix(f"-{role.kind}"), emitted, unsent)
    claims["late_positions"] = {life: Claim(claim.attempted) for life, claim in claims["positions"].items()}
    return claims


def _kept(transport: Transport, lab: Lab, stream: str) -> dict[Life, IntervalSet]:
    """The identities that a compacted stream still holds on the broker."""
    reads = codec(lab.codec, STREAMS[stream].schema)
    lives: dict[Life, IntervalSet] = {}
    for batch in transport.read_all(stream):
        rows = reads.decode(batch.values).table.filter(pl.col("sequence") != MARK)
        for (producer, epoch), own in rows.group_by("producer", "epoch"):
            life = (str(producer), int(str(epoch)))
            numbers = IntervalSet.of_sorted(own["sequence"].sort().to_numpy())
            lives[life] = lives.get(life, IntervalSet()) | numbers
    return lives


def _quarantined(home: Home, broker: str, table: str) -> int:
    return int(quarantine_scan(home, broker, table).select(pl.len()).collect().item())


def _check_values(tables: list[_TableRead], cut: Cut) -> None:
    """Derived tables against their input, second formats against the first."""
    first = {table.report.stream: table for table in tables if table.role.format == "parquet"}
    landed = Landed(
        {name: table.report for name, table in first.items()},
        {name: table.files.slots for name, table in first.items()},
        cut,
    )
    check_means(landed)
    check_alerts(landed)
    for made_by, stream in ((role.made_by, name) for role in ROLES.values() if role.reads for name in role.writes):
        if made_by and stream in first:
            first[stream].report.notes.append(f"values not recomputed: they are made by {made_by}")
    for table in tables:
        other = first[table.report.stream]
        if table is not other:
            columns, ends = STREAMS[table.report.stream].schema.names, cut.due[table.report.stream]
            is_behind = other.report.counts["pending"] > 0
            check_formats(table.report, table.files.slots, other.files.slots, ends, columns, is_behind=is_behind)
