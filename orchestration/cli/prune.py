"""Commands that keep house: merge, prune. The same work that Dagster does by the clock."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from orchestration.cli.options import HomeOption, JsonOption, home_of, print_json
from streaming.errors import UsageError

if TYPE_CHECKING:
    from orchestration.keeping import House

_UNITS: Final = {"h": "hours", "d": "days", "w": "weeks"}


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(merge)
    app.command()(prune)


def merge(home: HomeOption = None, *, as_json: JsonOption = False) -> None:
    """Merge the tables' small files, of a running lab too. Files of the last quarter of an hour are left alone."""
    from orchestration.keeping import merge_home

    console = Console(stderr=True)
    merged = merge_home(home_of(home), progress=lambda line: console.print(line, markup=False, highlight=False))
    if as_json:
        print_json({"merged": [asdict(each) for each in merged]})
    else:
        fewer = sum(each.parts - 1 for each in merged)
        typer.echo(f"{len(merged)} merges, {fewer:,} files fewer, {sum(each.rows for each in merged):,} rows in them")


def prune(
    home: HomeOption = None,
    keep: Annotated[str, typer.Option(help="What is older goes: 30d, 12h, 4w.")] = "30d",
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Let go of what is old: oldest rows of the tables, quarantine, results, what dead processes have left.

    verify knows what was pruned and does not call it lost. Ledgers are folded, never cut; topics have Kafka's own
    retention; the last files of each partition, from which a sink resumes, always stay.
    """
    from orchestration.keeping import prune_home

    house = prune_home(home_of(home), _span(keep), dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, "size_bytes": house.size_bytes, **asdict(house)})
    else:
        _show(house, "would go" if dry_run else "gone")


def _span(text: str) -> timedelta:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", text.strip())
    if found is None:
        raise UsageError(f"--keep {text}: a number with h, d or w, such as 30d")
    return timedelta(**{_UNITS[found[2]]: float(found[1])})


def _show(house: House, verb: str) -> None:
    table = Table("what", "up to", title=f"{house.size_bytes:,} bytes {verb}")
    for column in ("files", "rows", "bytes"):
        table.add_column(column, justify="right")
    for each in house.slots:
        name = f"{each.table} p={each.partition}" + (" quarantine" if each.kind == "quarantine" else "")
        table.add_row(name, f"offset {each.next:,}", f"{each.files:,}", f"{each.rows:,}", f"{each.size_bytes:,}")
    for left in house.leavings:
        table.add_row(left.path, f"{left.age_days:.1f} days old", "", "", f"{left.size_bytes:,}")
    if house.folded_bytes:
        table.add_row("ledgers of epochs that are over", "folded", "", "", f"{house.folded_bytes:,}")
    Console().print(table)
    for name in house.busy:
        typer.echo(f"{name} is left: a sink's table that verify or another process has in hand")
