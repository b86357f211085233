"""Commands for containers, hidden: they prepare what brokers, Dagster and roles need, and tell how a role is.

A supervisor that is not ours (compose, Kubernetes) runs these once, then every role as a container of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from orchestration.cli.options import HomeOption, RoleArgument, home_of, opened
from streaming.lab import QUEUES, RABBITMQ_STREAMS, Lab

if TYPE_CHECKING:
    from streaming.home import Home

DagsterOption = Annotated[
    str | None, typer.Option(help="libpq service that names Dagster's Postgres. Default: SQLite in the home.")
]
WaitOption = Annotated[str, typer.Option(help="How long to wait for the brokers: 60s, 5m.")]
NodesOption = Annotated[int, typer.Option(help="RabbitMQ nodes: 1 or 3.")]

_LOOK_AGAIN_S: Final = 0.5


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("create-topics", hidden=True)(create_topics)
    app.command("postgres-files", hidden=True)(postgres_files)
    app.command("rabbitmq-files", hidden=True)(rabbitmq_files)
    app.command("create-queues", hidden=True)(create_queues)
    app.command("register-schemas", hidden=True)(register_schemas)
    app.command("role-health", hidden=True)(role_health)


def create_topics(
    bootstrap_servers: Annotated[str, typer.Option(help="The cluster that every role will use.")],
    home: HomeOption = None,
    replication: Annotated[int | None, typer.Option(min=1, help="Copies of each topic. Default: 3.")] = None,
    vehicles: Annotated[int | None, typer.Option(help="Simulated vehicles. Default: 20.")] = None,
    rate: Annotated[float | None, typer.Option(help="Positions a second and vehicle. Default: 10.1.")] = None,
    codec: Annotated[str | None, typer.Option(help="json or avro. Default: json.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the simulation. Default: 1.")] = None,
    dagster_on: DagsterOption = None,
    wait: WaitOption = "120s",
) -> None:
    """Wait for a cluster, make the topics on it, remember both in the home. Doing it again is fine."""
    from orchestration import services

    opened_home, lab = opened(home)
    told = {
        "in_containers": True,
        "bootstrap_servers": bootstrap_servers,
        "replication": replication,
        "vehicles": vehicles,
        "rate_hz": rate,
        "codec": codec,
        "seed": seed,
    }
    _patiently(wait, lambda: _create(lab.changed(told)))
    _remember(opened_home, told)
    services.write_dagster_yaml(opened_home, postgres_service=dagster_on)
    typer.echo(f"topics of {bootstrap_servers} are there")


def postgres_files(
    target: Annotated[Path, typer.Argument(help="Where to write; a folder that only the database and Dagster see.")],
    host: Annotated[str, typer.Option(help="Postgres, as Dagster reaches it.")] = "postgres",
    name: Annotated[str, typer.Option(help="Of the libpq service, the database and its user.")] = "dagster",
) -> None:
    """Write a new password for Postgres and the libpq service file that has it, unless both are there."""
    import secrets

    password, service = target / "password", target / "pg_service.conf"
    if not (password.exists() and service.exists()):
        secret = secrets.token_urlsafe(24)
        service.write_text(f"[{name}]\nhost={host}\nport=5432\ndbname={name}\nuser={name}\npassword={secret}\n")
        password.write_text(secret)
    typer.echo(f"Postgres is told its password by {password}")


def rabbitmq_files(
    target: Annotated[Path, typer.Argument(help="Where to write; a folder that only the nodes see.")],
    home: HomeOption = None,
    read_at: Annotated[Path | None, typer.Option(help="As what the nodes see that folder. Default: the same.")] = None,
    nodes: NodesOption = 1,
) -> None:
    """Write what RabbitMQ nodes in containers are told: settings, users and rights. Passwords stay in the home."""
    from orchestration.brokers import node_ports
    from streaming.cluster.rabbitmq import Credentials
    from streaming.cluster.rabbitmq_container import write_files

    opened_home = home_of(home)
    opened_home.brokers("rabbitmq").mkdir(parents=True, exist_ok=True)
    credentials = Credentials.of(opened_home.brokers("rabbitmq"))
    write_files(target, read_at or target, credentials, [node_ports(Lab(), at) for at in range(1, nodes + 1)])
    typer.echo(f"files of {nodes} nodes are in {target}")


def create_queues(
    host: Annotated[str, typer.Option(help="RabbitMQ's nodes, as every role reaches them: n1,n2,n3.")],
    home: HomeOption = None,
    nodes: NodesOption = 1,
    dagster_on: DagsterOption = None,
    wait: WaitOption = "120s",
) -> None:
    """Wait for RabbitMQ's nodes, make queues and streams on them, remember both in the home. Again is fine."""
    from orchestration import services

    opened_home, lab = opened(home)
    brokers = tuple(dict.fromkeys((*lab.brokers, QUEUES, RABBITMQ_STREAMS)))
    told = {"in_containers": True, "rabbitmq_host": host, "rabbitmq_nodes": nodes, "brokers": brokers}
    _patiently(wait, lambda: _create_queues(opened_home, lab.changed(told)))
    _remember(opened_home, told)
    services.write_dagster_yaml(opened_home, postgres_service=dagster_on)
    typer.echo(f"queues and streams of {host} are there")


def register_schemas(
    registry: Annotated[str, typer.Option(help="Root of its Confluent-like interface: http://HOST:PORT/…")],
    home: HomeOption = None,
    wait: WaitOption = "120s",
) -> None:
    """Wait for a schema registry and register the Avro schema of every stream's topic. Doing it again is fine."""
    from streaming.codecs.avro import AvroCodec
    from streaming.codecs.registry import Registry
    from streaming.topology import STREAMS, StreamKind

    _, lab = opened(home)
    known = Registry(registry)
    _patiently(wait, known.insist)
    for each in STREAMS.values():
        if each.kind is not StreamKind.STATE:
            made = known.register(f"{lab.prefix}{each.name}", AvroCodec(each.schema).schema)
            typer.echo(f"{lab.prefix}{each.name}: schema {made}")


def role_health(
    name: RoleArgument,
    home: HomeOption = None,
    commits_within: Annotated[
        str | None, typer.Option(help="Data always flows there: something durable in 60s.")
    ] = None,
    *,
    rests: Annotated[bool, typer.Option("--rests", help="The role may have done all it had to do.")] = False,
) -> None:
    """Whether a role works, from what it reports of itself; exit code 1 and the reason when not. For containers."""
    from orchestration import roles
    from streaming.health import check

    opened_home, _ = opened(home)
    within_s = None if commits_within is None else roles.seconds(commits_within)
    reason = check(opened_home.run / f"{name}.json", commits_within_s=within_s, may_rest=rests)
    typer.echo(f"{name}: {reason or 'well'}")
    raise typer.Exit(int(reason is not None))


def _patiently(wait: str, work: Callable[[], None]) -> None:
    """Do it until the brokers answer; BrokerUnavailable when that takes longer than `wait`."""
    from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

    from orchestration import roles
    from streaming.errors import BrokerUnavailable

    patiently = Retrying(
        retry=retry_if_exception_type(BrokerUnavailable),
        stop=stop_after_delay(roles.seconds(wait)),
        wait=wait_fixed(_LOOK_AGAIN_S),
        before_sleep=lambda state: typer.echo(f"not yet: {state.outcome.exception() if state.outcome else ''}"),
        reraise=True,
    )
    patiently(work)


def _remember(home: Home, told: Mapping[str, object]) -> None:
    """Keep what was told in the home's lab; who prepares another broker beside us keeps his."""
    from filelock import FileLock

    with FileLock(home.root / "lab.lock"):
        Lab.load(home).changed(told).save(home)


def _create_queues(home: Home, lab: Lab) -> None:
    """Make queues and streams; BrokerUnavailable while fewer nodes run than each needs copies."""
    from orchestration.brokers import address_of, create_streams
    from streaming.cluster.rabbitmq import OPERATOR
    from streaming.errors import BrokerUnavailable
    from streaming.transports.rabbitmq.management import ask

    running = [each for each in ask(address_of(home, lab, QUEUES, OPERATOR), "/nodes") if each["running"]]
    if len(running) < lab.rabbitmq_nodes:
        raise BrokerUnavailable(f"{len(running)} of {lab.rabbitmq_nodes} RabbitMQ nodes run")
    create_streams(home, lab.changed({"brokers": (QUEUES, RABBITMQ_STREAMS)}))


def _create(lab: Lab) -> None:
    """Make the topics; BrokerUnavailable while fewer brokers are there than each topic needs copies."""
    from orchestration import roles
    from streaming.cluster import listeners
    from streaming.errors import BrokerUnavailable

    there: set[int] = set()
    for address in lab.kafka.split(","):
        host, _, port = address.rpartition(":")
        there |= set(listeners.advertised(host, int(port)))
    if len(there) < lab.replication:
        raise BrokerUnavailable(f"{len(there)} of {lab.replication} brokers answer at {lab.kafka}")
    roles.create_topics(lab)
