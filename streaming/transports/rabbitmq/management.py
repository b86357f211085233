"""Questions and orders to RabbitMQ's management API. Its numbers of messages are some seconds old."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
from typing import Any, Final
from urllib.parse import quote

from streaming.errors import BrokerUnavailable, SetupError
from streaming.transports.rabbitmq.address import Address

_TIMEOUT_S: Final = 10.0


def ask(address: Address, path: str, *, method: str = "GET", body: object = None, timeout_s: float = _TIMEOUT_S) -> Any:
    """The answer to /api`path`, as Python values (None: an empty one), from the first node that gives one.

    SetupError when refused, BrokerUnavailable when there is none.
    """
    encoded = None if body is None else json.dumps(body)
    *others, last = address.nodes
    for node in others:
        with contextlib.suppress(BrokerUnavailable):
            return _ask(node, path, method, encoded, timeout_s)
    return _ask(last, path, method, encoded, timeout_s)


def _ask(address: Address, path: str, method: str, body: str | None, timeout_s: float) -> Any:
    if address.management_port is None:
        raise SetupError(f"{address}: the port of the management plugin is missing", "say where the plugin listens")
    token = base64.b64encode(f"{address.user}:{address.password}".encode()).decode()
    connection = http.client.HTTPConnection(address.host, address.management_port, timeout=timeout_s)
    try:
        headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
        connection.request(method, f"/api{path}", body, headers)
        response = connection.getresponse()
        answer = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise BrokerUnavailable(f"RabbitMQ's management API at {address} does not answer: {error}") from error
    finally:
        connection.close()
    if response.status in {401, 403}:
        raise SetupError(f"RabbitMQ's management API refuses {address}", "check user, password and tags")
    if response.status >= 400:
        raise BrokerUnavailable(
            f"RabbitMQ's management API at {address}: {method} {path}: {response.status} {answer[:200]!r}"
        )
    return json.loads(answer) if answer else None


def quoted(name: str) -> str:
    """A name as a part of a path."""
    return quote(name, safe="")
