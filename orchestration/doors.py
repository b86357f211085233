"""How far this machine gets with each server of a lab: its own processes, somebody else's cluster, or containers.

Invariant: looking changes nothing, and nothing is asked of the lab's own brokers while the lab is down. Containers'
names are known on their own network only; from elsewhere they are reached by the ports that compose.yaml publishes.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from orchestration import services
from orchestration.brokers import address_of, epmd_port, node_ports
from streaming.cluster import listeners, ports
from streaming.cluster.listeners import Listener, Survey
from streaming.cluster.machine import Finding
from streaming.cluster.rabbitmq import OPERATOR
from streaming.home import Home
from streaming.lab import KAFKA, Lab

_COMPOSE: Final = "docker compose -f docker/compose.yaml"


@dataclass(frozen=True, slots=True)
class Doors:
    """What was found at a lab's servers. `bootstrap_servers`: where Kafka answers from here, None when nowhere."""

    findings: Sequence[Finding] = ()
    table: Sequence[Listener] = ()
    bootstrap_servers: str | None = None
    versions: dict[str, str] = field(default_factory=dict)  # of Kafka's brokers, when they answer


def look(home: Home, lab: Lab) -> Doors:
    """Whether the brokers' listeners are reached."""
    seen = Doors()
    if lab.bootstrap_servers or (lab.owns_brokers and services.is_up(home)):
        seen = of_kafka(lab)
    findings = [*seen.findings]
    if lab.rabbitmq_url is not None and lab.uses_rabbitmq:
        findings += _foreign_doors(home, lab)
    elif lab.uses_rabbitmq and (lab.in_containers or services.is_up(home)):
        start = f"{_COMPOSE} --profile rabbitmq up --detach" if lab.in_containers else "streamgauge up"
        findings += [
            Finding(each.name, each.from_here.startswith("reached"), f"{each.advertised}: {each.from_here}", start)
            for each in _rabbitmq_doors(lab)
        ]
    return replace(seen, findings=findings)


def look_at_listeners(home: Home, lab: Lab, bootstrap_servers: str | None = None) -> Doors:
    """Every listener of the lab, as its brokers tell or, while they rest, as they will be started; what is wrong.

    With `bootstrap_servers` those of that cluster alone.
    """
    uses_kafka = bootstrap_servers or lab.bootstrap_servers or lab.owns_brokers
    seen = of_kafka(lab, bootstrap_servers) if uses_kafka else Doors()
    table = [*seen.table]
    if lab.owns_brokers and not bootstrap_servers:
        told = {each.broker for each in table}
        resting = [each for each in services.brokers_of(home, lab) if each.number not in told]
        table += [each for broker in resting for each in listeners.declared(broker.number, broker.settings)]
    if lab.in_containers and not bootstrap_servers:
        table += _rabbitmq_doors(lab)
    elif not (bootstrap_servers or lab.bootstrap_servers):
        table += [*_rabbitmq_doors(lab), _door("dagster", lab.web_port, "HTTP", "your browser")]
        table += [_door(services.PAGES, lab.pages_port, "HTTP", "your browser")]
    return replace(seen, table=table)


def of_kafka(lab: Lab, asked: str | None = None) -> Doors:
    """How far this machine gets with each of the lab's brokers, all of which are wanted, or with those `asked` for."""
    told = asked or lab.kafka
    found = listeners.survey(told)
    is_own = asked is None and (lab.owns_brokers or lab.in_containers)
    findings = listeners.judge(told, found, wants_all=is_own)
    if not found.is_answered and lab.in_containers:
        return _by_another_way(lab, told, findings, is_asked=asked is not None)
    if is_own and not found.is_answered:
        findings = [replace(findings[0], remedy="streamgauge up")]
    elif is_own:
        findings = _with_starts(lab, told, findings)
    return _doors(told, found, findings)


def _doors(told: str, found: Survey, findings: Sequence[Finding]) -> Doors:
    if not found.is_answered:
        return Doors(findings, found.listeners)
    return Doors(findings, found.listeners, told, {"kafka": found.versions})


def _with_starts(lab: Lab, told: str, findings: Sequence[Finding]) -> list[Finding]:
    """The same, where one of the lab's brokers does not answer with the line that starts it."""
    program = f"{_COMPOSE} start" if lab.in_containers else "streamgauge start"
    lines = {f"address {each}": f"{program} kafka-{number}" for number, each in enumerate(told.split(","), start=1)}
    return [replace(each, remedy=lines.get(each.name, each.remedy)) for each in findings]


def _by_another_way(lab: Lab, told: str, findings: Sequence[Finding], *, is_asked: bool) -> Doors:
    """Nobody answers at what was told: perhaps the lab's containers do, by their names or by their published ports."""
    for other in dict.fromkeys((lab.kafka, lab.on_this_machine)):
        found = listeners.survey(other) if other != told else None
        if found is None or not found.is_answered:
            continue
        if is_asked:
            begin = replace(findings[0], remedy=f"begin with the containers' addresses for here: {other}")
            return _doors(told, found, [begin, *findings[1:]])
        note = Finding(
            "the containers' own addresses",
            ok=False,
            detail=f"{told}: for containers only; from here the brokers are reached by their published ports",
            remedy=f"give each command here --bootstrap-servers {other}",
            matters=False,
        )
        judged = _with_starts(lab, other, listeners.judge(other, found, wants_all=True))
        return _doors(other, found, [note, *judged])
    if is_asked:
        return Doors(findings)
    remedy = f"{_COMPOSE} up --detach; with ports of your own: streamgauge doctor --bootstrap-servers 127.0.0.1:PORT"
    return Doors([replace(findings[0], remedy=remedy)])


def _foreign_doors(home: Home, lab: Lab) -> list[Finding]:
    """Whether each node of somebody else's RabbitMQ takes connections where its URL says."""
    remedy = "correct the ports: streamgauge up --rabbitmq-url amqp://…?stream_port=…&management_port=…"
    address = address_of(home, lab, next(each for each in lab.brokers if each != KAFKA), OPERATOR)
    return [
        Finding(f"RabbitMQ {kind}", said == "reached", f"{node.host}:{port}: {said}", remedy)
        for node in (address, *address.others)
        for kind, port in (("amqp", node.port), ("stream", node.stream_port), ("management", node.management_port))
        for said in [_reached(node.host, port or 0)]
    ]


def _rabbitmq_doors(lab: Lab) -> list[Listener]:
    """The doors of the lab's RabbitMQ nodes, in the order in which a client would use them."""
    if not lab.owns_rabbitmq:
        return [*_rabbitmq_containers(lab)] if lab.in_containers and lab.uses_rabbitmq else []
    table = [_door("rabbitmq-epmd", epmd_port(lab), "epmd", "RabbitMQ's nodes")]
    for number in range(1, lab.rabbitmq_nodes + 1):
        node, name = node_ports(lab, number), f"rabbitmq-{number}"
        table += [
            _door(f"{name} amqp", node.amqp, "AMQP 0-9-1", "clients of queues"),
            _door(f"{name} stream", node.stream, "stream", "clients of streams"),
            _door(f"{name} management", node.management, "HTTP", "your browser, the lab"),
            _door(f"{name} prometheus", node.prometheus, "HTTP", "a metrics collector"),
            _door(f"{name} distribution", node.distribution, "Erlang", "RabbitMQ's nodes"),
        ]
    return table


def _rabbitmq_containers(lab: Lab) -> Iterator[Listener]:
    """Each node by its name or, where that is not known, by the same ports of this machine."""
    hosts = lab.rabbitmq_host.split(",")
    for number in range(1, lab.rabbitmq_nodes + 1):
        name, node = hosts[(number - 1) % len(hosts)], node_ports(lab, number)
        host, hint = (name, "") if _is_known(name) else (ports.HOST, f" (the name {name} is not known here)")
        for kind, port, protocol, used_by in (
            ("amqp", node.amqp, "AMQP 0-9-1", "clients of queues"),
            ("stream", node.stream, "stream", "clients of streams"),
            ("management", node.management, "HTTP", "your browser, the lab"),
        ):
            door = _door(f"rabbitmq-{number} {kind}", port, protocol, used_by, host)
            yield replace(door, from_here=door.from_here + hint)


def _is_known(name: str) -> bool:
    try:
        return bool(socket.getaddrinfo(name, None))
    except OSError:
        return False


def _door(name: str, port: int, protocol: str, used_by: str, host: str = ports.HOST) -> Listener:
    """A server of the lab that is no Kafka broker; it is reached when it accepts a connection."""
    address = f"{host}:{port}"
    return Listener(None, name, address, address, protocol, used_by, _reached(host, port))


def _reached(host: str, port: int) -> str:
    """`reached`, or why not."""
    try:
        with socket.create_connection((host, port), timeout=listeners.TIMEOUT_S):
            return "reached"
    except OSError as error:
        return error.strerror or str(error)
