"""What is on RabbitMQ: exchanges, bindings, queues with what waits in them. Looking changes nothing.

The numbers come from the management plugin's books, which are some seconds old.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from streaming.transports.rabbitmq.address import Address
from streaming.transports.rabbitmq.management import ask, quoted


@dataclass(frozen=True, slots=True)
class QueueState:
    """One queue or stream. `published` counts since its process began; `ready` of a stream is all that it keeps."""

    name: str
    stream: str  # the part of the name before the group; the whole name where there is none
    group: str
    kind: str  # quorum, classic or stream
    state: str
    ready: int
    unacked: int
    consumers: int
    published: int
    acknowledged: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Binding:
    """Messages that `exchange` gets with a key that fits `routing_key` go to `queue`."""

    exchange: str
    exchange_kind: str
    routing_key: str
    queue: str


@dataclass(frozen=True, slots=True)
class NodeState:
    """One node of the cluster, and what it has of the virtual host's `queues` queues and streams.

    Whoever leads one tells of it every five seconds: for that long after a change nobody may lead it here.
    """

    name: str
    is_running: bool
    queues: int
    leads: int
    copies: int
    copies_online: int


def nodes(address: Address) -> list[NodeState]:
    """Every node of the cluster, by name, as those see it that answer."""
    listed = ask(address, f"/queues/{quoted(address.vhost)}")
    held = [_placed(each) for each in listed if each["name"].startswith(address.prefix)]
    return [
        NodeState(
            name=name,
            is_running=is_running,
            queues=len(held),
            leads=sum(is_running and leader == name for leader, _, _ in held),
            copies=sum(name in members for _, members, _ in held),
            copies_online=sum(name in online for _, _, online in held),
        )
        for name, is_running in sorted((each["name"], each["running"]) for each in ask(address, "/nodes"))
    ]


def _placed(said: dict[str, Any]) -> tuple[str | None, list[str], list[str]]:
    """A queue's leader, members and members that are there; a classic queue is on one node.

    RabbitMQ 3.10 does not tell a stream's leader, but the node of its process, and that is the same.
    """
    if said.get("type", "classic") == "classic":
        own = [said["node"]]
        return said["node"], own, own if said.get("state") == "running" else []
    return said.get("leader", said.get("node")), said.get("members", []), said.get("online", [])


def queues(address: Address) -> list[QueueState]:
    """Every queue and stream of the address's virtual host whose name begins with its prefix, by name."""
    found = [_queue(address, each) for each in ask(address, f"/queues/{quoted(address.vhost)}")]
    return sorted((each for each in found if each.name.startswith(address.prefix)), key=lambda each: each.name)


def bindings(address: Address) -> list[Binding]:
    """How the exchanges of the virtual host feed its queues; the nameless one, which feeds each by name, is none."""
    host = quoted(address.vhost)
    kinds = {each["name"]: each["type"] for each in ask(address, f"/exchanges/{host}")}
    return [
        Binding(each["source"], kinds.get(each["source"], ""), each["routing_key"], each["destination"])
        for each in ask(address, f"/bindings/{host}")
        if each["source"] and each["destination"].startswith(address.prefix)
    ]


def _queue(address: Address, said: dict[str, Any]) -> QueueState:
    stream, _, group = said["name"].removeprefix(address.prefix).partition(".")
    counted = said.get("message_stats", {})
    return QueueState(
        name=said["name"],
        stream=stream,
        group=group,
        kind=said.get("type", "classic"),
        state=said.get("state", "unknown"),
        ready=said.get("messages_ready", 0),
        unacked=said.get("messages_unacknowledged", 0),
        consumers=said.get("consumers", 0),
        published=counted.get("publish", 0),
        acknowledged=counted.get("ack", 0),
        size_bytes=said.get("message_bytes", 0),
    )
