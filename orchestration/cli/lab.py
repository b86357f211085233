"""Commands for the lab as a whole: up, down, status, logs, start, stop, restart, reset, demo."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from orchestration.cli.options import (
    HomeOption,
    JsonOption,
    RoleArgument,
    brokers_of,
    home_of,
    opened,
    print_json,
)
from streaming.errors import UsageError
from streaming.home import Home
from streaming.lab import Lab

PortBaseOption = Annotated[int | None, typer.Option(help="Ports count from here. Default: 29000.")]
BrokersOption = Annotated[
    str | None,
    typer.Option(
        "--brokers", help="Each carries the whole application: kafka,rabbitmq,rabbitmq-stream. Default: kafka."
    ),
]
VehiclesOption = Annotated[int | None, typer.Option(help="Simulated vehicles. Default: 20.")]
DagsterOption = Annotated[bool, typer.Option("--dagster/--no-dagster", help="Dagster's webserver and daemon too.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (demo, up, down, status, logs, start, stop, restart, reset):
        app.command()(command)


def demo(
    home: HomeOption = None,
    port_base: PortBaseOption = None,
    seconds: Annotated[int, typer.Option(min=1, help="How long data flows before the count.")] = 60,
    brokers: BrokersOption = None,
    *,
    dagster: DagsterOption = True,
) -> None:
    """Start the lab, let data flow, print what landed and whether anything is lost; leave the lab running."""
    from orchestration.demo import run

    opened_home, lab = opened(home)
    lab = lab.changed({"port_base": port_base, "brokers": brokers_of(brokers)})
    raise typer.Exit(run(opened_home, lab, seconds=seconds, dagster=dagster))


def up(
    home: HomeOption = None,
    bootstrap_servers: Annotated[str | None, typer.Option(help="Use this Kafka cluster, start none.")] = None,
    replication: Annotated[int | None, typer.Option(min=1, help="Copies of each topic. Default: 3.")] = None,
    port_base: PortBaseOption = None,
    vehicles: VehiclesOption = None,
    rate: Annotated[float | None, typer.Option(help="Positions a second and vehicle. Default: 10.1.")] = None,
    codec: Annotated[str | None, typer.Option(help="json or avro. Default: json.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the simulation. Default: 1.")] = None,
    recording: Annotated[Path | None, typer.Option(help="What recording-replay replays.", exists=True)] = None,
    brokers: BrokersOption = None,
    rabbitmq_nodes: Annotated[
        int | None, typer.Option(help="RabbitMQ nodes, and copies of each queue and stream: 1 or 3. Default: 1.")
    ] = None,
    rabbitmq_url: Annotated[
        str | None,
        typer.Option(
            envvar="STREAMGAUGE_RABBITMQ_URL",
            help="Use this RabbitMQ, start none: amqp://user:password@host:5672/vhost?stream_port=5552&management_port="
            "15672; several nodes by commas. In the variable, nobody sees the password in the list of processes.",
        ),
    ] = None,
    *,
    dagster: DagsterOption = True,
) -> None:
    """Start brokers, generators, transformers, sinks and Dagster; return when all are ready."""
    from orchestration import services
    from orchestration.brokers import create_streams, remember

    opened_home, remembered = opened(home)
    lab = remembered.changed(
        {
            "bootstrap_servers": bootstrap_servers,
            "replication": replication,
            "port_base": port_base,
            "vehicles": vehicles,
            "rate_hz": rate,
            "codec": codec,
            "seed": seed,
            "recording": str(recording.absolute()) if recording else None,
            "brokers": brokers_of(brokers),
            "rabbitmq_nodes": rabbitmq_nodes,
            "rabbitmq_url": remember(opened_home, rabbitmq_url) if rabbitmq_url else None,
        }
    )
    services.up(
        opened_home,
        lab,
        create_topics=lambda: create_streams(opened_home, lab),
        dagster=dagster,
        progress=typer.echo,
    )
    if dagster:
        typer.echo(f"Dagster: http://127.0.0.1:{lab.web_port}")


def down(home: HomeOption = None) -> None:
    """Stop everything the lab started: Dagster, roles, brokers, in this order. No process is left."""
    from orchestration import services

    services.down(home_of(home), progress=typer.echo)


def status(home: HomeOption = None, *, as_json: JsonOption = False) -> None:
    """What runs, how fast, and which roles were found dearer or leaking. Exit code 1 when what should run does not."""
    from experiments import verdicts
    from orchestration import services

    opened_home = home_of(home)
    found = services.status(opened_home)
    if as_json:
        print_json([asdict(each) for each in found])
    elif not found:
        typer.echo("nothing runs; start the lab with: streamgauge up")
    else:
        table = Table("service", "state", "pid", "up", "records/s", "records")
        for each in found:
            rate = "" if each.rate_hz is None else f"{each.rate_hz:,.0f}"
            records = "" if each.records is None else f"{each.records:,}"
            table.add_row(each.name, each.state, str(each.pid or ""), _duration(each.uptime_s), rate, records)
        Console().print(table)
    for verdict in verdicts.bad(opened_home):
        typer.secho(verdict.line, fg="yellow", err=as_json)
    if any(not each.is_well for each in found):
        raise typer.Exit(1)


def logs(
    service: Annotated[str, typer.Argument(help="Whose log; `streamgauge status` lists the services.")],
    home: HomeOption = None,
    lines: Annotated[int, typer.Option("-n", min=0, help="How many of the last lines.")] = 50,
    *,
    follow: Annotated[bool, typer.Option("-f", help="Go on as lines come.")] = False,
) -> None:
    """Show a service's log."""
    from orchestration import services

    path = services.log_path(home_of(home), service)
    if not path.exists():
        raise UsageError(f"there is no log {path}; has {service!r} ever run here?")
    os.execvp("tail", ["tail", "-n", str(lines), *(["-F"] if follow else []), str(path)])  # noqa: S606


def start(service: RoleArgument, home: HomeOption = None) -> None:
    """Start one service while the rest runs."""
    from orchestration import services

    services.start(home_of(home), service)
    typer.echo(f"{service} runs")


def stop(service: RoleArgument, home: HomeOption = None) -> None:
    """Stop one service cleanly while the rest runs."""
    from orchestration import services

    services.stop(home_of(home), service)
    typer.echo(f"{service} is stopped")


def restart(service: RoleArgument, home: HomeOption = None) -> None:
    """Stop one service and start it again."""
    stop(service, home)
    start(service, home)


def reset(home: HomeOption = None, *, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False) -> None:
    """Delete the lab's home: brokers' data, warehouse, ledgers, Dagster's history. Asks first; the lab must be down."""
    from orchestration import services

    target: Home = home_of(home)
    if services.is_up(target):
        raise UsageError("the lab is up; stop it first: streamgauge down")
    if not yes:
        typer.confirm(f"Delete everything under {target.root}?", abort=True)
    shutil.rmtree(target.root)
    typer.echo(f"{target.root} is gone")


def address(lab: Lab) -> str:
    """Where Dagster's pages are."""
    return f"http://127.0.0.1:{lab.web_port}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
