"""A guest on a RabbitMQ node: a virtual host of its own in which each role has the rights that it has in the lab.

Invariant: the application's own virtual hosts are not touched, and with the guest's all its queues, streams and
connections are gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from streaming.cluster import rabbitmq
from streaming.cluster.rabbitmq import EXCHANGE, OPERATOR, Credentials, Node, address_of
from streaming.lab import QUEUES, RABBITMQ_STREAMS
from streaming.topology import Role
from streaming.transports.rabbitmq.management import ask, quoted

VHOSTS: Final = {QUEUES: rabbitmq.VHOST, RABBITMQ_STREAMS: rabbitmq.STREAM_VHOST}
LEAVING_S: Final = 60.0  # queues and streams are deleted before the answer comes
_ALL: Final = (".*", ".*", ".*")


def vhost_of(prefix: str, broker: str) -> str:
    """The virtual host of a pattern of RabbitMQ (KeyError for another broker); with a prefix, a guest's own."""
    return prefix + VHOSTS[broker]


def admit(node: Node, credentials: Credentials, prefix: str, broker: str, roles: Iterable[Role]) -> None:
    """Make the guest's virtual host for this pattern, with the roles' rights. BrokerUnavailable without an answer."""
    operator, vhost = address_of(node, credentials), quoted(vhost_of(prefix, broker))
    ask(operator, f"/vhosts/{vhost}", method="PUT", body={})
    rights_of = rabbitmq.on_queues if broker == QUEUES else rabbitmq.on_streams
    for user, rights in ((OPERATOR, _ALL), *((role.name, rights_of(role)) for role in roles)):
        body = dict(zip(("configure", "write", "read"), rights, strict=True))
        ask(operator, f"/permissions/{vhost}/{user}", method="PUT", body=body)
    for role in roles if broker == QUEUES else ():
        topics = {"exchange": EXCHANGE, "write": rabbitmq.topics(role), "read": "^$"}
        ask(operator, f"/topic-permissions/{vhost}/{role.name}", method="PUT", body=topics)


def dismiss(node: Node, credentials: Credentials, prefix: str, broker: str) -> None:
    """Delete the guest's virtual host, if there is one, and all that is in it. BrokerUnavailable without an answer."""
    operator, vhost = address_of(node, credentials), vhost_of(prefix, broker)
    if vhost in {each["name"] for each in ask(operator, "/vhosts")}:
        ask(operator, f"/vhosts/{quoted(vhost)}", method="DELETE", timeout_s=LEAVING_S)
