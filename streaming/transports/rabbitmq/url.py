"""A RabbitMQ cluster as one URL: amqp://user:password@host:5672,host2/vhost?stream_port=5552&management_port=15672.

Invariant: no error and no text made here holds the password.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from streaming.errors import UsageError
from streaming.transports.rabbitmq.address import Address

_AMQP, _STREAM, _MANAGEMENT = 5672, 5552, 15672  # RabbitMQ's own defaults
_PORTS: Final = ("stream_port", "management_port")
_FORM: Final = "amqp://user:password@host:5672/vhost?stream_port=5552&management_port=15672"


def address_of(url: str) -> Address:
    """The first node, with the others that are named by commas. UsageError, without the password, when it is none.

    Ports are RabbitMQ's defaults unless given; without a path the virtual host is /. `%2f` stands for a slash.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _wrong("it cannot be read") from None
    if parts.scheme == "amqps":
        raise _wrong("amqps (TLS) is not supported: use a listener without, on a network that you trust")
    login, at, where = parts.netloc.rpartition("@")
    user, colon, password = login.partition(":")
    if parts.scheme != "amqp" or not where:
        raise _wrong("it does not begin with amqp://")
    if not (at and colon and user and password):
        raise _wrong("user and password are missing; in them, write / as %2f, @ as %40 and : as %3a")
    streams, management = _ports_of(parts.query)
    known = Address(
        _AMQP,
        unquote(user),
        unquote(password),
        stream_port=streams,
        management_port=management,
        vhost=unquote(parts.path.removeprefix("/")) or "/",
    )
    first, *others = [replace(known, host=host, port=port) for host, port in map(_node, where.split(","))]
    return replace(first, others=tuple(others))


def without_password(address: Address) -> str:
    """The URL of an address, to be shown and kept."""
    where = ",".join(f"{each.host}:{each.port}" for each in (address, *address.others))
    asked = f"stream_port={address.stream_port}&management_port={address.management_port}"
    return f"amqp://{quote(address.user, safe='')}@{where}/{quote(address.vhost, safe='')}?{asked}"


def _node(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    host, port = (host, port) if colon else (text, str(_AMQP))
    return _not_empty(host).strip("[]"), _port("the port", port)


def _ports_of(query: str) -> list[int]:
    given = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := given.keys() - set(_PORTS):
        raise _wrong(f"{', '.join(sorted(unknown))} is unknown behind the question mark; known are {', '.join(_PORTS)}")
    given = {"stream_port": str(_STREAM), "management_port": str(_MANAGEMENT)} | given
    return [_port(name, given[name]) for name in _PORTS]


def _port(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65_536):
        raise _wrong(f"{name} is no number from 1 to 65535; in user and password, write : as %3a, / as %2f, @ as %40")
    return int(text)


def _not_empty(host: str) -> str:
    if not host:
        raise _wrong("a host is missing")
    return host


def _wrong(what: str) -> UsageError:
    return UsageError(f"--rabbitmq-url: {what}. It looks like {_FORM}")
