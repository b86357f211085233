"""Commands for containers: create-topics prepares a home and a cluster for roles that others start; role-health.

A supervisor that is not ours (compose, Kubernetes) runs create-topics once, then every role as a container of its own.
"""

from __future__ import annotations

from typing import Annotated, Final

import typer

from orchestration.cli.options import HomeOption, RoleArgument, opened
from streaming.lab import Lab

_LOOK_AGAIN_S: Final = 0.5


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("create-topics", hidden=True)(create_topics)
    app.command("role-health", hidden=True)(role_health)


def create_topics(
    bootstrap_servers: Annotated[str, typer.Option(help="The cluster that every role will use.")],
    home: HomeOption = None,
    replication: Annotated[int | None, typer.Option(min=1, help="Copies of each topic. Default: 3.")] = None,
    vehicles: Annotated[int | None, typer.Option(help="Simulated vehicles. Default: 20.")] = None,
    rate: Annotated[float | None, typer.Option(help="Positions a second and vehicle. Default: 10.1.")] = None,
    codec: Annotated[str | None, typer.Option(help="json or avro. Default: json.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the simulation. Default: 1.")] = None,
    wait: Annotated[str, typer.Option(help="How long to wait for the brokers: 60s, 5m.")] = "120s",
) -> None:
    """Wait for a cluster, make the topics on it, remember both in the home. Doing it again is fine."""
    from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

    from orchestration import roles, services
    from streaming.errors import BrokerUnavailable

    opened_home, lab = opened(home)
    lab = lab.changed(
        {
            "bootstrap_servers": bootstrap_servers,
            "replication": replication,
            "vehicles": vehicles,
            "rate_hz": rate,
            "codec": codec,
            "seed": seed,
        }
    )
    patiently = Retrying(
        retry=retry_if_exception_type(BrokerUnavailable),
        stop=stop_after_delay(roles.seconds(wait)),
        wait=wait_fixed(_LOOK_AGAIN_S),
        before_sleep=lambda state: typer.echo(f"not yet: {state.outcome.exception() if state.outcome else ''}"),
        reraise=True,
    )
    patiently(_create, lab)
    lab.save(opened_home)
    services.write_dagster_yaml(opened_home)
    typer.echo(f"topics of {bootstrap_servers} are there")


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
