"""What RabbitMQ nodes in containers are told: the files of the native nodes, with a container's names and addresses.

Invariant: a setting, user or right is declared once, in rabbitmq.py; here only differs where a node listens and how it
is called. Ports inside are those outside: a stream's leader is advertised under one port, which both must reach.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from streaming.cluster import rabbitmq
from streaming.cluster.rabbitmq import Credentials, NodePorts

COOKIE: Final = "erlang.cookie"
DEFINITIONS: Final = "definitions.json"
PLUGINS: Final = "enabled_plugins"
_EVERYWHERE: Final = "0.0.0.0"  # noqa: S104 - a container's own network; compose publishes on 127.0.0.1


def write_files(target: Path, read_at: Path, credentials: Credentials, listening: Sequence[NodePorts]) -> None:
    """Settings, users, plugins and cookie of the nodes rabbitmq-1, … into `target`, which they see as `read_at`.

    Everything is readable there: only the nodes have that folder. A cookie that is there stays; passwords are hashed.
    """
    names = [f"rabbitmq-{number}" for number in range(1, len(listening) + 1)]
    native = rabbitmq.describe(read_at, listening, epmd_port=4369)
    for name, node in zip(names, native.nodes, strict=True):
        told = {**node.settings, **_of_a_container(name, node.ports, names)}
        (target / f"{name}.conf").write_text(rabbitmq.as_file(told))
    (target / PLUGINS).write_text(rabbitmq.PLUGINS)
    (target / DEFINITIONS).write_text(json.dumps(rabbitmq.definitions(credentials)))
    if not (target / COOKIE).exists():
        (target / COOKIE).write_text(rabbitmq.new_cookie())


def _of_a_container(name: str, listening: NodePorts, names: Sequence[str]) -> dict[str, str]:
    """What differs from a node that is a process of this machine."""
    told = {
        "listeners.tcp.1": f"{_EVERYWHERE}:{listening.amqp}",
        "stream.listeners.tcp.1": f"{_EVERYWHERE}:{listening.stream}",
        "stream.advertised_host": name,
        "management.tcp.ip": _EVERYWHERE,
        "prometheus.tcp.ip": _EVERYWHERE,
    }
    members = {f"cluster_formation.classic_config.nodes.{at}": f"rabbit@{each}" for at, each in enumerate(names, 1)}
    return told | members if len(names) > 1 else told
