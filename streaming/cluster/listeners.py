"""Listeners: where brokers listen, what they advertise, and how far this machine gets with each address.

A broker that accepts connections is not yet a cluster, and a broker that answers may advertise an address that this
machine cannot reach, or where another broker sits; both show here in milliseconds, without a client. Invariant: every
problem comes with the line to change.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from streaming.cluster import wire
from streaming.cluster.machine import Finding
from streaming.cluster.wire import Address, Connection

TIMEOUT_S: Final = 3.0
_TLS_ALERT: Final = r"\x15\x03"
_NOBODY: Final = "nothing listens there"
_CONTROLLERS: Final = "a controllers' listener"
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
# The newest metadata.version that a release's brokers can have (MetadataVersion of Kafka 4.3.1's server-common).
_RELEASES: Final = {
    7: "3.3", 8: "3.4", 11: "3.5", 14: "3.6", 19: "3.7", 20: "3.8", 21: "3.9",
    25: "4.0", 27: "4.1", 29: "4.2", 30: "4.3",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Listener:
    """One of a broker's doors (or of another server: broker None). `bind` and `advertised` are host:port.

    `from_here`: "reached", or why not; empty when nobody has tried.
    """

    broker: int | None
    name: str
    bind: str
    advertised: str
    protocol: str
    used_by: str
    from_here: str = ""
    is_for_controllers: bool = False


@dataclass(frozen=True, slots=True)
class Reach:
    """How far this machine gets with one address. No problem: it is a broker that answers its clients."""

    address: Address
    problem: str = ""
    remedy: str = ""
    cluster_id: str | None = None
    brokers: Mapping[int, Address] = field(default_factory=dict)  # as they are advertised on this listener
    number: int | None = None  # which broker answers; None: it would not say
    settings: Mapping[str, str] = field(default_factory=dict)  # of that broker
    version: str | None = None  # that broker's release, such as 4.3: its protocol tells no patch level


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found by asking some addresses of a cluster, and every address that it then advertised."""

    given: Sequence[Reach]
    advertised: Mapping[int, Reach]  # broker → how far one gets with the address that it advertises
    listeners: Sequence[Listener]

    @property
    def is_answered(self) -> bool:
        """Whether any given address led to a cluster."""
        return any(reach.brokers for reach in self.given)

    @property
    def versions(self) -> str:
        """Which release each broker is of: `4.3 (brokers 1, 2), unknown (broker 3)`; empty when no broker answers."""
        told = {each.number: each.version for each in (*self.given, *self.advertised.values()) if each.number}
        of: dict[str, list[int]] = {}
        for number in self.advertised:
            of.setdefault(told.get(number) or "unknown", []).append(number)
        return ", ".join(
            f"{version} (broker{'s' if len(those) > 1 else ''} {', '.join(map(str, those))})"
            for version, those in of.items()
        )


def advertised(host: str, port: int, *, timeout_s: float = TIMEOUT_S) -> dict[int, Address]:
    """Broker number → host and port that it advertises, for each broker alive; empty when nobody answers there."""
    try:
        with wire.connect(host, port, timeout_s=timeout_s) as connection:
            return dict(connection.metadata().brokers)
    except (OSError, ValueError):  # nobody, an early end, or something that is no Kafka broker
        return {}


def reach(host: str, port: int, *, timeout_s: float = TIMEOUT_S) -> Reach:
    """Go as far as possible: name, connection, Kafka's handshake, the cluster's brokers, which of them this is."""
    here = f"{host}:{port}"
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with wire.connect(host, port, timeout_s=timeout_s) as connection:
            return _talk((host, port), connection)
    except socket.gaierror:
        problem = f"the name {host} is not known on this machine"
        remedy = _of_unknown(host)
    except ConnectionRefusedError:
        itself = " (inside a container that is the container itself)" if host in _LOOPBACK else ""
        problem, remedy = _NOBODY, f"start the broker, or correct the address {here}{itself}"
    except TimeoutError:
        problem = f"no connection within {timeout_s:g} s"
        remedy = f"let the firewall or network between here and {here} pass it; is the broker on another network?"
    except OSError as error:
        problem, remedy = f"no connection: {error.strerror or error}", f"make {here} reachable from this machine"
    return Reach((host, port), problem, remedy)


def survey(bootstrap_servers: str) -> Survey:
    """Ask each given address, then each address that the brokers found advertise."""
    given = [reach(*_split(address)) for address in bootstrap_servers.split(",")]
    asked = {each.address: each for each in given}
    found: dict[int, Address] = {}
    for each in given:
        found |= each.brokers
    reached = {number: asked.get(address) or reach(*address) for number, address in sorted(found.items())}
    settings = {each.number: each.settings for each in (*given, *reached.values()) if each.number is not None}
    table = [
        listener
        for number in sorted(found)
        for listener in (
            declared(number, settings[number]) if number in settings else [_unknown(number, found[number])]
        )
    ]
    asked |= {each.address: each for each in reached.values()}
    return Survey(given, reached, [replace(each, from_here=_from_here(each, asked)) for each in table])


def examine(bootstrap_servers: str, *, wants_all: bool = False) -> list[Finding]:
    """Whether the given addresses answer, and whether each broker can be reached where it says it is.

    One given address that answers is enough, unless the caller `wants_all`.
    """
    return judge(bootstrap_servers, survey(bootstrap_servers), wants_all=wants_all)


def judge(bootstrap_servers: str, found: Survey, *, wants_all: bool = False) -> list[Finding]:
    """The findings of a survey: each with what is wrong and the line to change."""
    answer = Finding(
        "bootstrap servers",
        found.is_answered,
        f"{bootstrap_servers}: " + (f"{len(found.advertised)} brokers" if found.is_answered else "no broker answers"),
        "start the brokers, or correct --bootstrap-servers",
    )
    shown = {broker.address for broker in found.advertised.values()}  # judged below
    silent = [
        Finding(
            f"address {_joined(each.address)}",
            ok=False,
            detail=each.problem,
            remedy=_instead(each, found),
            matters=matters,
        )
        for each in found.given
        for matters in [wants_all or not found.is_answered]
        if each.problem and each.address not in shown
    ]
    return [answer, *silent, *(_judge(number, found) for number in found.advertised)]


def declared(number: int, settings: Mapping[str, str]) -> list[Listener]:
    """The listeners in a broker's settings (its own names and values)."""
    binds = _entries(settings.get("listeners", ""))
    shown = _entries(settings.get("advertised.listeners") or settings.get("listeners", ""))
    protocols = dict(pair.split(":") for pair in settings.get("listener.security.protocol.map", "").split(",") if pair)
    between_brokers = settings.get("inter.broker.listener.name") or settings.get("security.inter.broker.protocol", "")
    controllers = set(settings.get("controller.listener.names", "").split(","))
    voters = dict(each.split("@") for each in settings.get("controller.quorum.voters", "").split(",") if each)
    return [
        Listener(
            broker=number,
            name=name,
            bind=bind,
            advertised=(voters.get(str(number), "") if name in controllers else shown.get(name, "")),
            protocol=protocols.get(name, name),
            used_by=_users(name, between_brokers, controllers),
            is_for_controllers=name in controllers,
        )
        for name, bind in binds.items()
    ]


def _users(name: str, between_brokers: str, controllers: set[str]) -> str:
    if name in controllers:
        return "controllers"
    return "clients, brokers" if name == between_brokers else "clients"


def _unknown(number: int, address: Address) -> Listener:
    """Of a broker that could not be asked: all that is known is what the others say of it."""
    return Listener(number, "?", "?", _joined(address), "?", "clients")


def _from_here(listener: Listener, asked: Mapping[Address, Reach]) -> str:
    if not listener.advertised:
        return ""
    address = _split(listener.advertised)
    there = asked.get(address) or reach(*address)
    fine = _CONTROLLERS if listener.is_for_controllers else ""
    return "reached" if there.problem == fine else there.problem or "reached"


def _talk(address: Address, connection: Connection) -> Reach:
    here = _joined(address)
    try:
        apis = connection.apis()
    except TimeoutError:
        return Reach(address, "accepts the connection and never answers", f"is {here} paused, or no Kafka broker?")
    except (OSError, ValueError) as error:
        return Reach(address, *_no_plain_kafka(here, str(error)))
    if wire.METADATA not in apis:
        return Reach(address, _CONTROLLERS, "use the broker's other port: this one is not for clients")
    try:
        metadata = connection.metadata()
    except (OSError, ValueError):
        remedy = "use a listener whose protocol is PLAINTEXT: listener.security.protocol.map in its server.properties"
        return Reach(address, "wants authentication (SASL)", remedy)
    number, settings = _who(connection, metadata.brokers)
    return Reach(address, "", "", metadata.cluster_id, metadata.brokers, number, settings, _version(connection))


def _version(connection: Connection) -> str | None:
    """The release of the broker at this end; None where it can't be known, as before 3.3 and with ZooKeeper."""
    try:
        newest = connection.features().get("metadata.version")
    except (OSError, ValueError):
        return None
    if newest is None or newest < min(_RELEASES):
        return None
    return next((release for level, release in _RELEASES.items() if newest <= level), "later than 4.3")


def _of_unknown(host: str) -> str:
    hosts = f"add the line `ADDRESS {host}` to /etc/hosts, with the broker's address"
    if "." in host:
        return hosts
    return (
        f"if {host} is a container, begin with the address that it publishes on its host (docker/compose.yaml's: "
        f"127.0.0.1:29091): its name is known to other containers only; else {hosts}"
    )


def _who(connection: Connection, brokers: Mapping[int, Address]) -> tuple[int | None, Mapping[str, str]]:
    """A broker tells its own settings only, so the one that does is the one at this end."""
    try:
        answers = ((number, connection.settings(number)) for number in brokers)
        return next(((number, settings) for number, settings in answers if settings is not None), (None, {}))
    except (OSError, ValueError):  # not allowed to ask, or an old broker
        return None, {}


def _no_plain_kafka(here: str, said: str) -> tuple[str, str]:
    if _TLS_ALERT in said:
        return "speaks TLS", f"use a listener of that broker whose protocol is PLAINTEXT, not {here}"
    if "HTTP" in said:
        return "a web server, no Kafka broker", f"correct the address {here}"
    return f"accepts the connection, but {said}", f"is {here} a TLS listener, or no Kafka broker at all?"


def _judge(number: int, found: Survey) -> Finding:
    there = found.advertised[number]
    problem, remedy = there.problem, there.remedy
    cluster_ids = {each.cluster_id for each in found.given if each.brokers}
    if not problem and there.cluster_id not in cluster_ids:
        problem = f"another cluster ({there.cluster_id}) answers there"
    elif not problem and there.number not in {number, None}:
        problem = f"broker {there.number} answers there"
    if problem:
        line = f"{_line(number, found)} (then restart it); or else {remedy or 'stop what listens there'}"
        other = _other_door(number, found)
        remedy = f"{other}; or, if it is this listener that is meant for here: {line}" if other else line
    says = f"advertises {_joined(there.address)}"
    return Finding(f"broker {number}", not problem, f"{says}: {problem}" if problem else says, remedy)


def _instead(silent: Reach, found: Survey) -> str:
    """What to give in place of an address that does not answer here: perhaps one of its broker's other listeners."""
    shown = _joined(silent.address)
    owner = next((each.broker for each in found.listeners if each.advertised == shown), None)
    doors = [each.advertised for each in found.listeners if each.broker == owner and _is_door(each)]
    return f"give {doors[0]} instead: {shown} is broker {owner}'s listener for others" if doors else silent.remedy


def _is_door(listener: Listener) -> bool:
    return listener.from_here == "reached" and not listener.is_for_controllers


def _other_door(number: int, found: Survey) -> str:
    """What to begin with instead: another listener for clients that is reached from here, best one of that broker.

    Empty when there is none. Whoever begins there is told the other brokers' addresses on that same listener.
    """
    shown = {_joined(broker.address) for broker in found.advertised.values()}
    doors = [each for each in found.listeners if _is_door(each) and each.advertised not in shown]
    door = min(doors, key=lambda each: each.broker != number, default=None)
    if door is None:
        return ""
    owner = f"broker {door.broker}'s listener {door.name}"
    return f"begin with {door.advertised} instead: {owner} is the one that is reached from here"


def _line(number: int, found: Survey) -> str:
    """The line to change so that broker `number` is found where this machine reaches it."""
    where = next(
        (_joined(each.address) for each in found.given if each.number == number), "HOST:PORT-REACHED-FROM-HERE"
    )
    shown = _joined(found.advertised[number].address)
    name = next((each.name for each in found.listeners if (each.broker, each.advertised) == (number, shown)), "?")
    line = f"advertised.listeners={name.replace('?', 'NAME')}://{where}"
    return (
        f"in broker {number}'s server.properties: {line} (a container's: KAFKA_ADVERTISED_LISTENERS in its environment)"
    )


def _entries(value: str) -> dict[str, str]:
    """NAME://host:port,… as name → host:port."""
    return dict(entry.strip().split("://") for entry in value.split(",") if "://" in entry)


def _joined(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


def _split(address: str) -> Address:
    host, _, port = address.strip().rpartition(":")
    return (host, int(port)) if host and port.isdigit() else (address.strip(), 9092)
