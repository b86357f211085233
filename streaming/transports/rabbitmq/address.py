"""Where RabbitMQ's nodes are and as whom to talk to them; names of exchanges and queues follow from the streams'."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Final

READS_ALL: Final = "#"


@dataclass(frozen=True, slots=True)
class Address:
    """A node, a virtual host and a user. `prefix` goes before every name, so that tests can share a node.

    `others` are the cluster's other nodes, to be tried when this one does not answer.
    """

    port: int
    user: str
    password: str = field(repr=False)
    host: str = "127.0.0.1"
    stream_port: int | None = None
    management_port: int | None = None
    vhost: str = "streamgauge"
    prefix: str = ""
    others: tuple[Address, ...] = ()

    @property
    def nodes(self) -> tuple[Address, ...]:
        """Every node once, from one taken at random on, so that clients spread and a dead node costs each but a try."""
        all_of_them = (replace(self, others=()), *self.others)
        first = random.randrange(len(all_of_them))  # noqa: S311 - no secret
        return all_of_them[first:] + all_of_them[:first]

    @property
    def exchange(self) -> str:
        """The application's topic exchange: every stream is published here, with routing key <stream>.<key>."""
        return f"{self.prefix}streamgauge"

    @property
    def dead_letters(self) -> str:
        """The exchange, and the queue behind it, for what the broker gives up on."""
        return f"{self.prefix}streamgauge.dead"

    def queue(self, stream: str, group: str) -> str:
        """A group's own queue of a stream."""
        return f"{self.prefix}{stream}.{group}"

    def log(self, stream: str) -> str:
        """The RabbitMQ stream of a stream."""
        return f"{self.prefix}{stream}"

    def __str__(self) -> str:
        where = ",".join(f"{each.host}:{each.port}" for each in (self, *self.others))
        return f"{self.user}@{where}/{self.vhost}"
