"""Commands that look for what is wrong: doctor, listeners."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from orchestration.cli.options import HomeOption, JsonOption, opened, print_json
from streaming.cluster.listeners import Listener
from streaming.cluster.machine import Finding
from streaming.errors import BrokerUnavailable
from streaming.home import Home
from streaming.lab import Lab

BootstrapOption = Annotated[str | None, typer.Option(help="Of this Kafka cluster, not the lab's.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (doctor, listeners):
        app.command()(command)


def doctor(
    home: HomeOption = None,
    bootstrap_servers: BootstrapOption = None,
    *,
    clock: Annotated[bool, typer.Option("--clock", help="The brokers' clocks too, by a topic made for it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """What is missing or in the way, on this machine and at the brokers, each with the line to change.

    With --bootstrap-servers only that cluster is looked at, as it is reached from here: listeners,
    names, releases, with --clock the brokers' clocks.
    Exit code 1 when something has to be done; what is only worth knowing is marked `note` and does not count.
    """
    from orchestration import clocks
    from orchestration.doctor import examine

    where = Home(home.absolute()) if home else Home.locate(os.environ)  # looked at, not made
    found = examine(where, bootstrap_servers)
    if clock:
        told = found.bootstrap_servers or bootstrap_servers or Lab.load(where).kafka
        found = replace(found, findings=[*found.findings, *clocks.of_brokers(told)])
    if as_json:
        findings = [asdict(each) for each in found.findings]
        print_json({"is_well": found.is_well, "findings": findings, "versions": dict(found.versions)})
    else:
        _say(found.findings)
        typer.echo("versions: " + ", ".join(f"{name} {version}" for name, version in found.versions.items()))
    if not found.is_well:
        raise typer.Exit(1)


def listeners(
    home: HomeOption = None, bootstrap_servers: BootstrapOption = None, *, as_json: JsonOption = False
) -> None:
    """Where each broker listens, what it advertises, who uses it, and how far this machine gets with it.

    Exit code 4 when no broker answers, 1 when one can't be reached where it says it is.
    """
    from orchestration.doors import look_at_listeners

    where, lab = opened(home)
    found = look_at_listeners(where, lab, bootstrap_servers)
    if as_json:
        table = [asdict(each) for each in found.table]
        print_json({"listeners": table, "findings": [asdict(each) for each in found.findings]})
    else:
        Console().print(_table(found.table))
        _say(found.findings)
    if found.findings and found.bootstrap_servers is None:
        raise typer.Exit(BrokerUnavailable.exit_code)
    if any(each.is_bad for each in found.findings):
        raise typer.Exit(1)


def _table(found: Sequence[Listener]) -> Table:
    table = Table(box=SIMPLE, padding=0)
    for column in ("broker", "listener", "bind", "advertised", "protocol"):
        table.add_column(column, no_wrap=True)
    for column in ("used by", "from here"):
        table.add_column(column)
    for each in found:
        table.add_row(
            str(each.broker or ""), each.name, each.bind, each.advertised, each.protocol, each.used_by, each.from_here
        )
    return table


def _say(findings: Sequence[Finding]) -> None:
    for each in findings:
        mark = "ok  " if each.ok else "BAD " if each.matters else "note"
        typer.echo(f"{mark} {each.name}: {each.detail}")
        if not each.ok and each.remedy:
            typer.echo(f"     what to do: {each.remedy}")
