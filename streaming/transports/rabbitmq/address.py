"""Where a RabbitMQ node is and as whom to talk to it; names of exchanges and queues follow from the streams'."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

READS_ALL: Final = "#"


@dataclass(frozen=True, slots=True)
class Address:
    """A node, a virtual host and a user. `prefix` goes before every name, so that tests can share a node."""

    port: int
    user: str
    password: str = field(repr=False)
    host: str = "127.0.0.1"
    stream_port: int | None = None
    management_port: int | None = None
    vhost: str = "streamgauge"
    prefix: str = ""

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
        return f"{self.user}@{self.host}:{self.port}/{self.vhost}"
