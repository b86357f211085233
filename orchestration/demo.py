"""The demo: start the lab, let data flow, count what landed, prove that nothing is lost or doubled."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from orchestration import services
from orchestration.brokers import create_streams, transport_of
from sinks import reader
from sinks.findings import PENDING, worst
from sinks.verify import verify
from streaming.home import Home
from streaming.lab import Lab

Landed = dict[str, tuple[int, int]]  # table → rows, files
READS_IT = """import polars as pl
rows = pl.scan_parquet("{warehouse}/positions_parquet/**/*.parquet")
fleet = rows.group_by("vehicle").agg(pl.len().alias("positions"), pl.col("speed_kmh").max().alias("top_kmh"))
print(fleet.sort("vehicle").collect())
print(rows.select(pl.len().alias("positions landed")).collect())"""


def run(home: Home, lab: Lab, *, seconds: int, dagster: bool = True) -> int:
    """Do all of it on `home`; returns verify's exit code, the worst of all brokers'. The lab stays up."""
    console = Console(file=sys.stdout)
    started = time.monotonic()
    services.up(
        home,
        lab,
        create_topics=lambda: create_streams(home, lab),
        dagster=dagster,
        progress=console.print,
    )
    before = {broker: landed(home, broker) for broker in lab.brokers}
    counted = time.monotonic()
    _watch(home, console, seconds=seconds, before=before, started=started)
    exit_codes = []
    for broker in lab.brokers:
        with console.status(f"{broker}: taking a cut and reconciling the ledgers with the files") as status:
            transport = transport_of(home, lab, broker)
            report = verify(home, transport, lab, wait_s=60, progress=status.update)
        console.print(_landed_table(home, broker, before[broker], time.monotonic() - counted))
        console.print(report.render())
        exit_codes.append(report.exit_code)
        if landed(home, broker) == before[broker]:
            console.print(
                f"Nothing has landed from {broker} in {seconds} s: `streamgauge status` tells why.", style="red"
            )
            exit_codes.append(PENDING)
    warehouse = home.warehouse(lab.brokers[0])
    console.print(f"\nThe files: {warehouse}\nFive lines that read them ({sys.executable}):\n")
    console.print(READS_IT.format(warehouse=warehouse), highlight=False, markup=False, soft_wrap=True)
    if dagster:
        console.print(f"\nDagster (lineage, assets, checks): http://127.0.0.1:{lab.web_port}")
    console.print("The lab goes on: `make status` looks at it, `make down` stops it.")
    return worst(exit_codes)


def landed(home: Home, broker: str) -> Landed:
    """Rows and files by table, as committed now."""
    found = {}
    for table in reader.tables(home, broker):
        slots = reader.slots(home, broker, table)
        found[table] = (sum(slot.rows for slot in slots), len(slots))
    return found


def _watch(home: Home, console: Console, *, seconds: int, before: Mapping[str, Landed], started: float) -> None:
    """Show progress for `seconds`, and when the first new rows have landed."""
    shown = Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True
    )
    base = sum(rows for tables in before.values() for rows, _ in tables.values())
    first_s: float | None = None
    with shown:
        task = shown.add_task("data flows", total=seconds)
        end = time.monotonic() + seconds
        while (left_s := end - time.monotonic()) > 0:
            rows = sum(count for broker in before for count, _ in landed(home, broker).values()) - base
            if rows and first_s is None:
                first_s = time.monotonic() - started
            shown.update(task, completed=seconds - left_s, description=f"data flows: {rows:,} rows landed")
            time.sleep(min(1.0, left_s))
    if first_s is not None:
        console.print(f"the first rows had landed {first_s:.0f} s after the start")


def _landed_table(home: Home, broker: str, before: Landed, seconds: float) -> Table:
    table = Table("table", "rows", "files", "new rows a second", title=f"What landed from {broker}")
    for name, (rows, files) in sorted(landed(home, broker).items()):
        new = rows - before.get(name, (0, 0))[0]
        table.add_row(name, f"{rows:,}", f"{files:,}", f"{new / seconds:,.1f}")
    return table
