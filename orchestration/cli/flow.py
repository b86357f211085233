"""Commands for one role in the foreground, and for the truth: produce, transform, sink, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from orchestration.cli.options import (
    BrokerOption,
    HomeOption,
    JsonOption,
    RabbitMQHostOption,
    broker_of,
    opened,
    print_json,
)
from streaming.errors import UsageError
from streaming.lab import KAFKA
from streaming.topology import ROLES, Role, RoleKind, role

ServersOption = Annotated[str | None, typer.Option("--bootstrap-servers", help="Default: the lab's own brokers.")]
ForOption = Annotated[str | None, typer.Option("--for", help="Stop after this long: 30s, 5m, 1h.")]
MessagesOption = Annotated[int | None, typer.Option("--messages", min=1, help="Stop after this many records.")]
InstanceOption = Annotated[int, typer.Option(min=0, help="Which member of the role's group this is.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(produce)
    app.command()(transform)
    app.command()(sink)
    app.command()(verify)
    app.command("role", hidden=True)(run_supervised)


def produce(
    stream: Annotated[str, typer.Argument(help="positions, diagnostics or vehicles.")],
    home: HomeOption = None,
    servers: ServersOption = None,
    vehicles: Annotated[int | None, typer.Option(help="Simulated vehicles.")] = None,
    rate: Annotated[str | None, typer.Option(help="Messages a second and vehicle, or max.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the simulation.")] = None,
    producer: Annotated[str | None, typer.Option(help="This producer's name; it must be the only one.")] = None,
    replay: Annotated[Path | None, typer.Option(help="Replay this CSV, Parquet or GPX recording.")] = None,
    speed: Annotated[str, typer.Option(help="Of the replay: 1, 10, … or max.")] = "1",
    rebase: Annotated[str, typer.Option(help="Times of the replay: now, or keep the recording's.")] = "now",
    mapping: Annotated[str, typer.Option("--map", help="our=theirs,… e.g. latitude=lat,vehicle=uid")] = "",
    duration: ForOption = None,
    messages: MessagesOption = None,
    broker: BrokerOption = KAFKA,
    *,
    loop: Annotated[bool, typer.Option("--loop", help="Replay again and again.")] = False,
) -> None:
    """Generate a stream, or replay a recording of your own into `positions`."""
    from orchestration import roles

    opened_home, lab = opened(home)
    wanted = _rate(rate)
    lab = lab.changed({"bootstrap_servers": servers, "vehicles": vehicles, "seed": seed, "rate_hz": wanted})
    limits = roles.limits_of(duration, messages)
    if replay is not None:
        if stream != "positions":
            raise UsageError(f"a recording replays into positions, not into {stream}")
        options = roles.ReplayOptions(
            replay, _speed(speed), roles.rebase_of(rebase), _mapping(mapping), loop=loop, producer=producer
        )
        roles.replay(opened_home, lab, options, limits, broker=broker_of(broker))
    else:
        chosen = _role(f"{stream}-generator", RoleKind.GENERATOR)
        is_paced = rate != "max"
        roles.generate(chosen, opened_home, lab, limits, producer=producer, is_paced=is_paced, broker=broker_of(broker))


def transform(
    name: Annotated[str, typer.Argument(help="means or alerts.")],
    home: HomeOption = None,
    servers: ServersOption = None,
    instance: InstanceOption = 0,
    duration: ForOption = None,
    messages: MessagesOption = None,
    broker: BrokerOption = KAFKA,
) -> None:
    """Run one transformer: read a stream, compute, write streams: input, state and output as one."""
    from orchestration import roles

    opened_home, lab = opened(home)
    chosen = _role(f"{name}-transformer", RoleKind.TRANSFORMER)
    lab = lab.changed({"bootstrap_servers": servers})
    limits = roles.limits_of(duration, messages)
    roles.transform(chosen, opened_home, lab, limits, instance=instance, broker=broker_of(broker))


def sink(
    name: Annotated[str, typer.Argument(help="E.g. positions-parquet or alerts-csv.")],
    home: HomeOption = None,
    servers: ServersOption = None,
    instance: InstanceOption = 0,
    duration: ForOption = None,
    messages: MessagesOption = None,
    broker: BrokerOption = KAFKA,
) -> None:
    """Run one sink: land a stream in files, exactly once."""
    from orchestration import roles

    opened_home, lab = opened(home)
    chosen = _role(name, RoleKind.SINK)
    lab = lab.changed({"bootstrap_servers": servers})
    limits = roles.limits_of(duration, messages)
    roles.sink(chosen, opened_home, lab, limits, instance=instance, broker=broker_of(broker))


def run_supervised(name: str, home: HomeOption = None, broker: BrokerOption = KAFKA) -> None:
    """Run a role as the lab configured it: what the supervisor starts."""
    from orchestration import roles

    opened_home, lab = opened(home)
    roles.run(role(name), opened_home, lab, broker=broker_of(broker))


def verify(
    home: HomeOption = None,
    servers: ServersOption = None,
    wait: Annotated[str, typer.Option(help="How long to wait for the sinks: 60s, 5m.")] = "60s",
    broker: Annotated[str | None, typer.Option(help="Of this broker only. Default: of each that the lab has.")] = None,
    rabbitmq_host: RabbitMQHostOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Reconcile the producers' ledgers with the files: lost, duplicated, … Exit code 1 on damage, 6 when unfinished."""
    from orchestration import roles
    from orchestration.brokers import transport_of
    from sinks.findings import worst
    from sinks.verify import verify as reconcile

    opened_home, lab = opened(home)
    lab = lab.changed({"bootstrap_servers": servers, "rabbitmq_host": rabbitmq_host})
    console, reports = Console(stderr=True), []
    for name in (broker_of(broker),) if broker else lab.brokers:
        with console.status("taking a cut") as status:
            transport = transport_of(opened_home, lab, name)
            reports.append(reconcile(opened_home, transport, lab, wait_s=roles.seconds(wait), progress=status.update))
        if not as_json:
            Console().print(reports[-1].render())
    if as_json:
        documents = [report.to_dict() for report in reports]
        print_json(documents if len(documents) > 1 else documents[0])
    raise typer.Exit(worst(report.exit_code for report in reports))


def _role(name: str, kind: RoleKind) -> Role:
    known = [each.name for each in ROLES.values() if each.kind is kind]
    if name not in known:
        raise UsageError(f"there is no {kind} {name!r}; there are {', '.join(known)}")
    return ROLES[name]


def _rate(text: str | None) -> float | None:
    if text is None or text == "max":
        return None
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--rate {text}: a number of messages a second, or max") from None


def _speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        raise UsageError(f"--speed {text}: a number such as 1 or 10, or max") from None
    if speed <= 0:
        raise UsageError(f"--speed {text}: above 0")
    return speed


def _mapping(text: str) -> dict[str, str]:
    pairs = [pair.split("=", 1) for pair in text.split(",") if pair]
    if any(len(pair) != 2 for pair in pairs):
        raise UsageError(f"--map {text}: pairs like latitude=lat,longitude=lng")
    return {ours.strip(): theirs.strip() for ours, theirs in pairs}
