"""Commands that operate the lab's own brokers, and topics of one's own; each shows the cluster before and after.

`broker stop` is a controlled shutdown, `broker kill` is SIGKILL; RabbitMQ's nodes have names (rabbitmq-1), Kafka's
brokers numbers. After either the supervisor lets the broker rest until `broker start` (or `up`): whoever takes a broker
away wants to see it gone. One that crashes is restarted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from orchestration.cli import nodes
from orchestration.cli.look import ServersOption, connected, layout_table, partition_dicts
from orchestration.cli.options import HomeOption, JsonOption, opened, print_json
from streaming.errors import UsageError
from streaming.lab import KAFKA

if TYPE_CHECKING:
    from streaming.home import Home
    from streaming.lab import Lab
    from streaming.transports.kafka.inspection import Cluster, Partition

BrokerArgument = Annotated[str, typer.Argument(help="2 or kafka-2, rabbitmq-1; `streamgauge broker list`.")]
TopicArgument = Annotated[str, typer.Argument(help="A topic of your own, not one of the application.")]
ConfigOption = Annotated[
    list[str] | None, typer.Option("--config", help="name=value under Kafka's own names; name= takes it back.")
]
SEEN_TIMEOUT_S: Final = 90.0  # the cluster misses a killed broker after its session's 9 s; copies may have to catch up

broker_app = typer.Typer(help="The lab's own brokers: list, stop, start, kill.", no_args_is_help=True)
topic_app = typer.Typer(help="Topics of your own: create, alter, delete.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(broker_app, name="broker")
    app.add_typer(topic_app, name="topic")


@broker_app.command("list")
def list_brokers(home: HomeOption = None, servers: ServersOption = None, *, as_json: JsonOption = False) -> None:
    """Each broker: is it there, what does it lead and keep? Exit code 1 when one of the lab's own is missing."""
    opened_home, lab = opened(home)
    rows = _kafka_rows(opened_home, lab, servers) if servers or KAFKA in lab.brokers else []
    seen = nodes.look(opened_home, lab) if lab.uses_rabbitmq and not servers else {}
    missing = lab.uses_rabbitmq and not servers and not all(each["is_running"] for each in nodes.as_dicts(seen) or [{}])
    if as_json:
        print_json([*rows, *nodes.as_dicts(seen)])
    else:
        for made in ([_brokers_table(rows)] if rows else []) + ([nodes.table("RabbitMQ", seen, seen)] if seen else []):
            Console().print(made)
    if missing or not all(row["is_alive"] for row in rows):
        raise typer.Exit(1)


def _kafka_rows(home: Home, lab: Lab, servers: str | None) -> list[dict[str, Any]]:
    _, _, cluster = connected(home.root, servers)
    states = _states(home) if servers is None and lab.owns_brokers else {}
    alive = {each.number: asdict(each) for each in cluster.brokers()}
    return [
        {"number": number, "is_alive": number in alive, **states.get(number, {}), **alive.get(number, {})}
        for number in sorted({*alive, *states})
    ]


@broker_app.command("stop")
def stop_broker(broker: BrokerArgument, home: HomeOption = None, *, as_json: JsonOption = False) -> None:
    """Controlled shutdown: the broker hands its leadership over first, nobody waits."""
    from orchestration import services
    from streaming.transports.kafka.operating import has_left

    _operate("stop", broker, home, services.stop, has_left, as_json=as_json)


@broker_app.command("kill")
def kill_broker(broker: BrokerArgument, home: HomeOption = None, *, as_json: JsonOption = False) -> None:
    """SIGKILL: the others notice after some seconds. It rests until `broker start` or `up`."""
    from orchestration import services
    from streaming.transports.kafka.operating import has_left

    _operate("kill", broker, home, services.kill, has_left, as_json=as_json)


@broker_app.command("start")
def start_broker(
    broker: BrokerArgument,
    home: HomeOption = None,
    *,
    elect: Annotated[
        bool, typer.Option("--elect", help="Then give each partition back to its preferred leader.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Start a stopped or killed broker, and wait until all its copies are in sync.

    Leadership comes back by itself within five minutes (leader.imbalance.check.interval.seconds), or now: --elect.
    """
    from orchestration import services
    from streaming.transports.kafka.operating import elect_preferred, has_returned

    def is_done(cluster: Cluster, broker: int) -> bool:
        if not has_returned(cluster, broker):
            return False
        if elect:
            elect_preferred(cluster)
        return True

    _operate("start", broker, home, services.start, is_done, as_json=as_json)


@topic_app.command("create")
def create_topic(
    name: TopicArgument,
    home: HomeOption = None,
    servers: ServersOption = None,
    partitions: Annotated[int, typer.Option(min=1, help="How many.")] = 3,
    replication: Annotated[int, typer.Option("--replication-factor", min=1, help="Copies of each.")] = 3,
    config: ConfigOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Make a topic of your own."""
    from streaming.transports.kafka import operating

    settings = _settings(config)

    def make(cluster: Cluster) -> None:
        operating.create(cluster, name, partitions=partitions, replication=replication, settings=settings)

    _change(name, home, servers, make, as_json=as_json)


@topic_app.command("alter")
def alter_topic(
    name: TopicArgument,
    home: HomeOption = None,
    servers: ServersOption = None,
    partitions: Annotated[int | None, typer.Option(min=1, help="Only more than before: keys move then.")] = None,
    replication: Annotated[int | None, typer.Option("--replication-factor", min=1, help="Copies of each.")] = None,
    config: ConfigOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Change partitions, copies or settings of a topic of your own, and wait until the cluster has done it."""
    from streaming.transports.kafka import operating

    settings = _settings(config)
    if partitions is None and replication is None and not settings:
        raise UsageError("nothing to alter: say --partitions, --replication-factor or --config name=value")

    def alter(cluster: Cluster) -> None:
        if partitions is not None:
            operating.add_partitions(cluster, name, partitions)
        if replication is not None:
            operating.change_replication(cluster, name, replication)
        if settings:
            operating.configure(cluster, name, settings)

    _change(name, home, servers, alter, as_json=as_json)


@topic_app.command("delete")
def delete_topic(
    name: TopicArgument,
    home: HomeOption = None,
    servers: ServersOption = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete a topic of your own with all its records. Asks first."""
    from streaming.transports.kafka import operating

    _, lab, cluster = connected(home, servers)
    operating.insist_on_foreign(name.removeprefix(lab.prefix))
    cluster.partitions(name)
    if not yes:
        typer.confirm(f"Delete {name} at {cluster.bootstrap_servers} with all its records?", abort=True)
    _change(name, home, servers, lambda it: operating.delete(it, name), as_json=as_json)


def _operate(
    action: str,
    named: str,
    home: Any,
    act: Callable[[Home, str], None],
    is_done: Callable[[Cluster, int], bool],
    *,
    as_json: bool,
) -> None:
    """Do something to a broker of the running lab; show leaders and ISR before, and when the cluster has settled."""
    from orchestration import services
    from streaming.transports.kafka.inspection import wait_until

    opened_home, lab = opened(home)
    service = services.broker_name(opened_home, named)
    number = int(service.rpartition("-")[2])
    if service.startswith(nodes.SERVICE):
        _operate_node(action, service, number, opened_home, lab, act, as_json=as_json)
        return
    _, _, cluster = connected(home, None)
    before = cluster.layout()
    began = time.monotonic()
    act(opened_home, service)
    is_settled = wait_until(lambda: is_done(cluster, number), SEEN_TIMEOUT_S)
    took_s = time.monotonic() - began
    after = cluster.layout()
    if as_json:
        facts = {"broker": number, "action": action, "is_settled": is_settled, "took_s": round(took_s, 2)}
        print_json({**facts, "before": partition_dicts(before), "after": partition_dicts(after)})
    else:
        console = Console(highlight=False)
        console.print(layout_table(f"broker {action} {number}: before → after {took_s:.1f} s", before, after))
        console.print(_summary(before, after))
    _insist_on_settled("topics", is_settled=is_settled)


def _operate_node(
    action: str, service: str, number: int, home: Home, lab: Lab, act: Callable[[Home, str], None], *, as_json: bool
) -> None:
    """The same with a RabbitMQ node."""
    change = nodes.operate(
        home, lab, number, lambda: act(home, service), returns=action == "start", timeout_s=SEEN_TIMEOUT_S
    )
    if as_json:
        print_json({"broker": service, "action": action, **change.to_dict()})
    else:
        title = f"broker {action} {service}: before → after {change.took_s:.1f} s"
        Console(highlight=False).print(nodes.table(title, change.before, change.after))
    _insist_on_settled("broker list", is_settled=change.is_settled)


def _insist_on_settled(look: str, *, is_settled: bool) -> None:
    if not is_settled:
        typer.echo(
            f"the cluster has not settled within {SEEN_TIMEOUT_S:.0f} s; look again: streamgauge {look}", err=True
        )
        raise typer.Exit(1)


def _summary(before: list[Partition], after: list[Partition]) -> str:
    was = {(each.topic, each.number): each for each in before}
    pairs = [(was[each.topic, each.number], each) for each in after if (each.topic, each.number) in was]
    moved = sum(then.leader != now.leader for then, now in pairs)
    shrunk = sum(len(now.in_sync) < len(then.in_sync) for then, now in pairs)
    grown = sum(len(now.in_sync) > len(then.in_sync) for then, now in pairs)
    nobody = sum(now.leader is None for _, now in pairs)
    of = len(pairs)
    return (
        f"{moved} of {of} leaders moved, ISR shrank in {shrunk} and grew in {grown}, {nobody} partitions have no leader"
    )


def _change(name: str, home: Any, servers: str | None, change: Callable[[Cluster], None], *, as_json: bool) -> None:
    """Change a topic of one's own; show its leaders, copies and ISR before and after."""
    from streaming.transports.kafka.operating import insist_on_foreign

    insist_on_foreign(name)
    _, lab, cluster = connected(home, servers)
    insist_on_foreign(name.removeprefix(lab.prefix))
    before = cluster.layout([name])
    began = time.monotonic()
    change(cluster)
    took_s = time.monotonic() - began
    after = cluster.layout([name])
    settings = dict(cluster.topic(name).settings) if after else {}
    if as_json:
        value = {"topic": name, "took_s": round(took_s, 2), "settings": settings}
        print_json({**value, "before": partition_dicts(before), "after": partition_dicts(after)})
        return
    console = Console(highlight=False)
    console.print(layout_table(f"{name}: before → after {took_s:.1f} s", before, after))
    for setting, given in settings.items():
        console.print(f"{setting} = {given}")


def _states(home: Home) -> dict[int, dict[str, Any]]:
    """Broker number → what the supervisor says of its process."""
    from orchestration import services

    return {
        int(each.name.removeprefix("kafka-")): {"state": each.state, "pid": each.pid, "uptime_s": each.uptime_s}
        for each in services.status(home)
        if each.group == services.BROKERS and each.name.startswith("kafka-")
    }


def _brokers_table(rows: list[dict[str, Any]]) -> Table:
    table = Table("broker", "address", "process", "pid")
    for column in ("leads", "keeps copies", "of these in sync"):
        table.add_column(column, justify="right")
    for row in rows:
        cells = [
            str(row["number"]),
            row.get("address", "[red]gone[/]"),
            row.get("state", ""),
            str(row.get("pid") or ""),
        ]
        table.add_row(*cells, *(str(row.get(name, "")) for name in ("leads", "copies", "copies_in_sync")))
    return table


def _settings(pairs: list[str] | None) -> dict[str, str]:
    settings = {}
    for pair in pairs or []:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise UsageError(f"--config {pair}: name=value, e.g. min.insync.replicas=2")
        settings[name.strip()] = value.strip()
    return settings
