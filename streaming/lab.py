"""What this lab is: brokers, ports, codec and load, chosen at `up` and remembered in its home."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Final

from streaming.durability import replace_file
from streaming.errors import SetupError, UsageError
from streaming.home import Home
from streaming.tuning import Tuning

DEFAULT_PORT_BASE: Final = 29000
BROKER_COUNT: Final = 3
KAFKA: Final = "kafka"
QUEUES: Final = "rabbitmq"
RABBITMQ_STREAMS: Final = "rabbitmq-stream"
BROKERS: Final = (KAFKA, QUEUES, RABBITMQ_STREAMS)  # each carries the whole application


def service_name(broker: str, role: str) -> str:
    """The process of a role: Kafka's carry the role's name, the others their broker's before it."""
    return role if broker == KAFKA else f"{broker}.{role}"


@dataclass(frozen=True, slots=True)
class Lab:
    """The lab's configuration, as `up` was told. ports count from `port_base`."""

    port_base: int = DEFAULT_PORT_BASE
    bootstrap_servers: str | None = None  # an existing cluster's address; None: this lab starts its own brokers
    replication: int = 3  # copies of each topic; an existing cluster with fewer brokers needs fewer
    codec: str = "json"
    vehicles: int = 20
    rate_hz: float = 10.1  # positions a second and vehicle: above 10, so that the measured rate is at least 10.0
    seed: int = 1
    recording: str | None = None  # the file that recording-replay replays; None: the one that ships
    brokers: tuple[str, ...] = (KAFKA,)  # which of BROKERS this lab runs the application on
    rabbitmq_nodes: int = 1
    rabbitmq_host: str = "127.0.0.1"  # where its nodes are: one name for all, or by commas one for each
    rabbitmq_ports: tuple[int, int, int] | None = None  # a guest's: AMQP, streams, management of somebody else's node
    rabbitmq_url: str | None = None  # somebody else's cluster, without its password; None: this lab starts its own
    in_containers: bool = False  # compose.yaml's: neither brokers nor roles nor Dagster are processes of this lab
    prefix: str = ""  # a profile's or a guest's own: before every topic and group on Kafka, before RabbitMQ's vhost
    tuning: Tuning = field(default_factory=Tuning)  # a profile's own, for roles that are not as they usually are

    @property
    def owns_brokers(self) -> bool:
        """Whether Kafka's brokers are this lab's own processes."""
        return self.bootstrap_servers is None and KAFKA in self.brokers and not self.in_containers

    @property
    def owns_rabbitmq(self) -> bool:
        """Whether RabbitMQ's nodes are this lab's own processes."""
        return self.rabbitmq_url is None and self.uses_rabbitmq and not self.in_containers

    @property
    def uses_rabbitmq(self) -> bool:
        """Whether it runs the application on one of RabbitMQ's patterns."""
        return any(broker != KAFKA for broker in self.brokers)

    def broker_port(self, number: int) -> int:
        """The client port of Kafka broker `number` (1, 2, 3)."""
        return self.port_base + 90 + number

    def controller_port(self, number: int) -> int:
        """The controller port of Kafka broker `number`."""
        return self.port_base + 190 + number

    @property
    def web_port(self) -> int:
        """Dagster's webserver."""
        return self.port_base + 30

    @property
    def pages_port(self) -> int:
        """The profiles' reports."""
        return self.port_base + 31

    @property
    def kafka(self) -> str:
        """The bootstrap servers that clients use."""
        return self.bootstrap_servers or self.on_this_machine

    @property
    def on_this_machine(self) -> str:
        """Kafka's bootstrap servers on its machine: of its processes, or as compose.yaml publishes its containers."""
        return ",".join(f"127.0.0.1:{self.broker_port(number)}" for number in range(1, BROKER_COUNT + 1))

    def save(self, home: Home) -> None:
        """Remember the lab in its home."""
        replace_file(home.root / "lab.json", json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, home: Home) -> Lab:
        """The lab of this home; the defaults when `up` has not run yet."""
        path = home.root / "lab.json"
        try:
            kept = json.loads(path.read_text())
            guest_of = kept.get("rabbitmq_ports")
            tuples = {"brokers": tuple(kept.get("brokers", (KAFKA,))), "rabbitmq_ports": guest_of and tuple(guest_of)}
            return cls(**kept | tuples | {"tuning": Tuning(**kept.get("tuning", {}))})
        except FileNotFoundError:
            return cls()
        except (ValueError, TypeError) as error:
            raise SetupError(
                f"{path} can't be read: {error}", f"delete {path} and call `streamgauge up` again"
            ) from error

    def changed(self, options: Mapping[str, object]) -> Lab:
        """This lab with the given options that are not None."""
        given = {name: value for name, value in options.items() if value is not None}
        lab = replace(self, **given)  # type: ignore[arg-type]
        if not 1024 <= lab.port_base <= 65_000:
            raise UsageError(f"--port-base {lab.port_base}: ports go from 1024 to 65000")
        if lab.vehicles < 1:
            raise UsageError(f"--vehicles {lab.vehicles}: at least one")
        if not lab.brokers or set(lab.brokers) - set(BROKERS):
            raise UsageError(f"--brokers {','.join(lab.brokers)}: some of {','.join(BROKERS)}")
        if lab.rabbitmq_nodes not in {1, 3}:
            raise UsageError(f"--rabbitmq-nodes {lab.rabbitmq_nodes}: 1 or 3")
        if given.get("rabbitmq_url") and not lab.uses_rabbitmq:
            raise UsageError(
                f"--rabbitmq-url: say which pattern to use there: --brokers {QUEUES} or {RABBITMQ_STREAMS}"
            )
        if lab.rate_hz <= 0:
            raise UsageError(f"--rate {lab.rate_hz}: messages a second and vehicle, above 0")
        return lab
